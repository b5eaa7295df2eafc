"""Smoothed and weighed maps against SciPy, and what both must not do."""

import numpy as np
import pytest
from scipy import ndimage

from mood_infer import refinement
from mood_infer.refinement import MeanMap, smooth, weigh_by_context


def _blobs(shape: tuple[int, int, int]) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape, np.float32), (7, 5, 2))
    return (noise - noise.min()) / (noise.max() - noise.min())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.5, 5.0)])
def test_context_is_a_gaussian_in_millimetres(spacing: tuple[float, float, float]) -> None:
    """Against SciPy's Gaussian, to the very rim: nearer than a tenth more or less of its sigma is."""
    scores = _blobs((100, 80, 70))

    def expected(sigma: float) -> np.ndarray:
        around = ndimage.gaussian_filter(scores, np.divide(sigma, spacing), mode="reflect")
        return np.sqrt(scores * around)

    made = weigh_by_context(scores, spacing, 8.0)
    for part in (np.s_[25:-25, 25:-25, 25:-25], np.s_[:5], np.s_[:, -5:], np.s_[:, :, :5]):
        errors = {sigma: np.abs(made - expected(sigma))[part].mean() for sigma in (7.2, 8.0, 8.8)}
        assert errors[8.0] < 1e-3 and np.abs(made - expected(8.0))[part].max() < 0.01
        assert 2 * errors[8.0] < min(errors[7.2], errors[8.8])


def test_a_map_ends_in_air_or_is_mirrored_where_the_scan_ends() -> None:
    """A box in a grid gives what the whole grid does, and a scan's end lowers nothing."""
    even = MeanMap(
        np.full((60, 50, 40), 0.8, np.float32), 0.0, (np.s_[0:60],) * 3, (60, 50, 40), (1.0, 1.0, 1.0)
    )
    np.testing.assert_allclose(even.refined(6.0, 20.0)[0], even.inside, rtol=1e-5)
    whole = np.full((150, 60, 40), 0.1, np.float32)
    box = (np.s_[55:95], np.s_[3:60], np.s_[0:40])
    whole[box] = inside = _blobs((40, 57, 40))
    mean = MeanMap(inside, 0.1, box, whole.shape, (1.0, 1.0, 2.0))
    made, _ = mean.refined(1.5, 8.0)
    expected = weigh_by_context(smooth(whole, mean.spacing, 1.5), mean.spacing, 8.0)
    np.testing.assert_allclose(made, expected, atol=2e-3)


def test_context_lowers_what_stands_alone_and_leaves_what_is_even() -> None:
    even = np.full((20, 20, 20), 0.4, np.float32)
    np.testing.assert_allclose(weigh_by_context(even, (1, 1, 1), 6.0), even, rtol=1e-5)
    scores = np.zeros((60, 40, 40), np.float32)
    scores[10, 20, 20] = 0.9  # alone
    scores[32:53, 10:31, 10:31] = 0.9
    made = weigh_by_context(scores, (1, 1, 1), 4.0)
    assert made[10, 20, 20] < 0.05 and made[42, 20, 20] > 0.88
    assert not made[scores == 0].any()  # borders stay where they are
    for nothing in (smooth, weigh_by_context):
        assert np.array_equal(nothing(scores, (1, 1, 1), 0.0), scores)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are more of them than lines."""
    scores = _blobs((40, 9, 5))
    mean = MeanMap(scores, 0.1, (np.s_[0:40], np.s_[3:12], np.s_[0:5]), (40, 15, 5), (1.0, 1.5, 2.0))
    made, parts = [], []
    blur = refinement._blur_part

    def count(part: np.ndarray, axis: int, sigma: float) -> None:
        parts.append(axis)
        blur(part, axis, sigma)

    monkeypatch.setattr(refinement, "_blur_part", count)
    for threads in (1, 2, 7):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        parts.clear()
        made.append(mean.refined(2.0, 10.0))
        # smoothed twice along each axis; lines are told apart by the next axis
        assert [parts.count(axis) for axis in range(3)] == [2 * min(threads, n) for n in (15, 5, 40)]
    for working, score in made[1:]:
        assert np.array_equal(working, made[0][0]) and score == made[0][1]


def test_long_sums_leave_scores_in_range() -> None:
    """Scores of all magnitudes, then nothing: what is left of a running sum there is not exactly 0."""
    scores = (10.0 ** np.random.default_rng(0).uniform(-20, 0, (200, 40, 40))).astype(np.float32)
    scores[100:] = 0
    made = weigh_by_context(smooth(scores, (1, 1, 1), 6.0), (1, 1, 1), 20.0)
    assert np.isfinite(made).all() and 0 <= made.min() <= made.max() <= 1


def test_the_scan_s_score_is_that_of_the_smoothed_map() -> None:
    scores = _blobs((40, 30, 20))
    mean = MeanMap(scores, 0.1, (np.s_[0:40], np.s_[0:30], np.s_[0:20]), scores.shape, (1.0, 1.0, 2.0))
    working, score = mean.refined(3.0, 9.0)
    smoothed = smooth(scores, mean.spacing, 3.0)
    assert score == pytest.approx(np.sort(smoothed, axis=None)[-100:].mean(), abs=1e-6)
    assert np.array_equal(working, weigh_by_context(smoothed, mean.spacing, 9.0))
    assert np.array_equal(mean.refined(0.0, 0.0)[0], _blobs((40, 30, 20)))  # nothing was used up
