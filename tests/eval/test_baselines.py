"""The baselines that learn nothing but averages, against closed forms."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from mood_eval.baselines import (
    LEVELS,
    Baselines,
    BodyScan,
    IntensityHistogram,
    LocalEntropy,
    MeanScan,
    local_entropy,
)
from mood_eval.validation_set import HEALTHY, Made, Recipe, make_cases, plan_cases
from mood_infer.challenge import Region, find_scans
from mood_infer.errors import ScanError
from mood_infer.grid import Grid
from mood_infer.scores import sample_score


def _scan(array: np.ndarray) -> BodyScan:
    array = array.astype(np.float32)
    x, y, z = array.shape
    return BodyScan(array, array > 0, Grid((x, y, z), np.diag([2.0, 2.0, 2.0, 1.0])))


def test_rarity_is_the_logarithm_of_the_share_with_one_more_in_each_bin() -> None:
    baseline = IntensityHistogram()
    for _ in range(2):
        baseline.add(_scan(np.full((10, 10, 10), 0.25)))
    array = np.full((4, 5, 6), 0.25)
    array[0], array[1] = 0.75, 0
    scores, _ = baseline.score(_scan(array))
    assert np.all(scores[0] == 1) and np.all(scores[1] == 0)  # never seen; no body
    assert scores[2:] == pytest.approx(np.log(2256 / 2001) / np.log(2256), rel=1e-5)


def test_histograms_are_compared_as_scipy_does_with_the_nearest() -> None:
    rng = np.random.default_rng(0)
    normal = [rng.beta(a, 5, (12, 12, 12)) * 0.9 + 0.05 for a in (2, 3, 6)]
    baseline = IntensityHistogram()
    for array in normal:
        baseline.add(_scan(array))
    case = rng.beta(4, 5, (9, 9, 9)) * 0.9 + 0.05
    _, distance = baseline.score(_scan(case))
    steps = [np.floor(array * 256).ravel() / 256 for array in (case, *normal)]
    assert distance == pytest.approx(min(stats.wasserstein_distance(steps[0], one) for one in steps[1:]))
    assert baseline.score(_scan(normal[1]))[1] == 0


def _ramp(
    shape: tuple[int, int, int], start: tuple[int, int, int], length: tuple[int, int, int]
) -> np.ndarray:
    """A block of body with a linear ramp over its own length, in air."""
    array = np.zeros(shape)
    places = [(np.arange(n) + 0.5) / n for n in length]
    block = 0.2 + 0.2 * places[0][:, None, None] + 0.3 * places[1][None, :, None] + 0.1 * places[2]
    array[tuple(slice(a, a + n) for a, n in zip(start, length, strict=True))] = block
    return array


def test_the_mean_scan_is_laid_over_a_scan_of_another_place_and_size() -> None:
    baseline = MeanScan()
    baseline.add(_scan(_ramp((40, 50, 40), (4, 6, 3), (30, 36, 28))))
    baseline.add(_scan(_ramp((50, 44, 36), (9, 2, 6), (34, 40, 26))))
    array = _ramp((60, 40, 50), (11, 5, 8), (40, 30, 36))
    scan = _scan(array)
    inner = (slice(16, 46), slice(9, 31), slice(13, 39))  # the faces are blurred
    scores, sample = baseline.score(scan)
    assert scores[inner].max() < 1e-3 and not scores[~scan.body].any()
    assert sample == sample_score(scores)
    array[20:24, 15:20, 20:24] += 0.25
    changed, _ = baseline.score(_scan(array))
    assert changed[20:24, 15:20, 20:24] == pytest.approx(0.25, abs=1e-3)
    # nothing else moves: the map is not normalised by the case
    rest = np.ones(array.shape, bool)
    rest[20:24, 15:20, 20:24] = False
    assert np.array_equal(changed[rest], scores[rest])


def test_local_entropy_of_flat_and_striped_bodies() -> None:
    flat = np.zeros((20, 20, 20))
    flat[3:17, 3:17, 3:17] = 0.4
    assert local_entropy(_scan(flat)).max() < 1e-5  # air beside the body does not count
    striped = flat.copy()
    striped[3:17:2, 3:17, 3:17] = 0.8
    expected = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))  # three planes of one level, two of the other
    assert local_entropy(_scan(striped))[5:15, 5:15, 5:15] == pytest.approx(expected, abs=1e-4)
    noise = _scan(np.random.default_rng(0).random((24, 24, 24)) * 0.99 + 0.005)
    # of 125 draws it falls short of the true one by (levels - 1) / (2 draws), to first order (Miller & Madow)
    expected_noise = np.log(LEVELS) - (LEVELS - 1) / 250
    assert local_entropy(noise)[4:-4, 4:-4, 4:-4].mean() == pytest.approx(expected_noise, abs=5e-3)

    baseline = LocalEntropy()
    baseline.add(_scan(flat))
    scores, sample = baseline.score(_scan(striped))
    assert scores[5:15, 5:15, 5:15] == pytest.approx(expected / np.log(LEVELS), abs=1e-4)
    assert sample == pytest.approx(sample_score(scores)) and not scores[0].any()


def test_an_empty_case_is_scored_and_an_empty_training_scan_refused(scans: Path, tmp_path: Path) -> None:
    fitted = Baselines.fit(find_scans(scans)[:1], Region.BRAIN)
    empty = _scan(np.zeros((6, 6, 6)))
    for part in fitted.parts.values():
        scores, sample = part.score(empty)
        assert not scores.any() and 0 <= sample <= 1
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 6), np.int16), np.eye(4)), tmp_path / "air.nii.gz")
    with pytest.raises(ScanError, match=r"air\.nii\.gz: no voxel of it is body"):
        Baselines.fit([tmp_path / "air.nii.gz"], Region.BRAIN)


@pytest.mark.parametrize("number", range(3))
def test_maps_lie_in_the_unit_interval_on_a_grid_of_the_case(number: int, scans: Path) -> None:
    paths = find_scans(scans)
    fitted = Baselines.fit(paths[1:], Region.BRAIN)
    recipe = Recipe(Region.BRAIN, number, {HEALTHY: 1, "uniform": 1})
    cases: list[Made] = list(
        make_cases(paths[0], [case for _, case in plan_cases(paths[:1], recipe)], recipe)
    )
    for made in cases:
        for scored in fitted.score(made).values():
            assert scored.working.dtype == np.float32 and scored.working.shape == scored.grid.shape
            assert 0 <= scored.working.min() <= scored.working.max() <= 1 and 0 <= scored.sample <= 1
