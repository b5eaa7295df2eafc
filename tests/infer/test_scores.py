import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from mood_infer.scores import BLOCK, sample_score, smooth, weigh_by_context


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 9)] * 3), elements=st.floats(0, 1, width=32)))
def test_mean_of_the_100_highest(scores: np.ndarray) -> None:
    top = np.sort(scores.astype(np.float64), axis=None)[::-1][:100]
    assert sample_score(scores) == pytest.approx(top.mean(), abs=1e-9)


@pytest.mark.parametrize("levels", [3, 50, 10**6])
def test_the_highest_of_a_large_map_are_found_by_blocks(levels: int) -> None:
    """The highest may lie together in one block or in the rest behind the last one, and many are tied."""
    rng = np.random.default_rng(levels)
    scores = (rng.integers(0, levels, 300 * BLOCK + 777) / levels).astype(np.float32)
    for start, count in ((5 * BLOCK, 0), (5 * BLOCK, 90), (300 * BLOCK + 600, 150)):
        scores[start : start + count] = rng.random(count, dtype=np.float32)
        top = np.sort(scores.astype(np.float64))[::-1][:100]
        assert sample_score(scores.reshape(1, 1, -1)) == pytest.approx(top.mean(), abs=1e-12)


def test_the_101st_voxel_does_not_count() -> None:
    scores = np.zeros((20, 20, 20), np.float32)
    scores.ravel()[:100] = 0.8
    assert sample_score(scores) == pytest.approx(0.8)
    scores.ravel()[100] = 0.7
    assert sample_score(scores) == pytest.approx(0.8)


def _blobs(shape: tuple[int, int, int]) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape, np.float32), (7, 5, 2))
    return (noise - noise.min()) / (noise.max() - noise.min())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.5, 5.0)])
def test_context_is_a_gaussian_in_millimetres(spacing: tuple[float, float, float]) -> None:
    """Against SciPy's Gaussian, away from the rim: nearer than a tenth more or less of its sigma is."""
    scores = _blobs((100, 80, 70))
    inner = (slice(25, -25),) * 3

    def expected(sigma: float) -> np.ndarray:
        around = ndimage.gaussian_filter(scores, np.divide(sigma, spacing), mode="constant", cval=0.3)
        return np.sqrt(scores * around)[inner]

    made = weigh_by_context(scores.copy(), 0.3, spacing, 8.0)[inner]
    error = np.abs(made - expected(8.0)).mean()
    assert error < 1e-3
    assert all(2 * error < np.abs(made - expected(other)).mean() for other in (7.2, 8.8))


def test_context_lowers_what_stands_alone_and_leaves_what_is_even() -> None:
    even = np.full((20, 20, 20), 0.4, np.float32)
    np.testing.assert_allclose(weigh_by_context(even.copy(), 0.4, (1, 1, 1), 6.0), even, rtol=1e-5)
    scores = np.zeros((60, 40, 40), np.float32)
    scores[10, 20, 20] = 0.9  # alone
    scores[32:53, 10:31, 10:31] = 0.9
    made = weigh_by_context(scores.copy(), 0.0, (1, 1, 1), 4.0)
    assert made[10, 20, 20] < 0.05 and made[42, 20, 20] > 0.88
    assert not made[scores == 0].any()  # borders stay where they are
    for nothing in (smooth, weigh_by_context):
        assert np.array_equal(nothing(scores.copy(), 0.0, (1, 1, 1), 0.0), scores)
