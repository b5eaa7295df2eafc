from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter, ValidationError
from scipy.ndimage import zoom

from mood_infer.intensity import CurveRule, IntensityRule, QuartileRule, UnitRule, to_unit

RULES = [QuartileRule(), CurveRule(), UnitRule()]
CUBES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=4)


@pytest.mark.parametrize("rule", RULES)
@given(array=hnp.arrays(np.float32, CUBES, elements=st.floats(0, 1, width=32)))
def test_unit_input_passes_bit_for_bit(rule: IntensityRule, array: np.ndarray) -> None:
    assert to_unit(array, rule).tobytes() == array.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_unit_input_that_overshoots_is_cut_and_no_raw_scan(rule: IntensityRule) -> None:
    array = np.linspace(-0.03, 1.04, 60, dtype=np.float32).reshape(3, 4, 5)
    assert np.array_equal(to_unit(array, rule), np.clip(array, 0, 1))
    farther = array * 2
    assert np.array_equal(to_unit(farther, rule), rule.apply(farther))


@pytest.mark.parametrize("rule", RULES)
@given(array=hnp.arrays(np.float32, CUBES, elements=st.floats(-5000, 5000, width=32)))
def test_all_input_lands_in_unit_and_keeps_its_order(rule: IntensityRule, array: np.ndarray) -> None:
    result = to_unit(array, rule)
    assert result.dtype == np.float32 and result.shape == array.shape
    assert result.min() >= 0 and result.max() <= 1
    order = np.argsort(array, axis=None, kind="stable")
    assert (np.diff(result.ravel()[order]) >= 0).all()


@given(gain=st.floats(0.1, 1000), offset=st.floats(0, 100))
def test_the_quartiles_of_tissue_go_to_their_places(gain: float, offset: float) -> None:
    """Whatever a scanner's scale and contrast."""
    tissue = np.linspace(1, 3, 101)  # quartiles 1.5, 2, 2.5
    array = np.concatenate([np.zeros(99), (tissue + offset) * gain]).reshape(2, 10, 10).astype(np.float32)
    array[0, 0, 0] = -5  # no tissue, and no scan in [0,1]
    result = to_unit(array, QuartileRule())
    expected = np.concatenate([np.zeros(99), 0.45 + 0.285 * (tissue - 2)]).reshape(2, 10, 10)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    bright = array.copy()
    bright[1, 9, 9] *= 1000  # one voxel, however bright, leaves the others as they are
    np.testing.assert_allclose(to_unit(bright, QuartileRule()).ravel()[:-1], result.ravel()[:-1], atol=1e-6)


def test_tissue_stays_above_the_background() -> None:
    array = np.array([0, -1, 0.1, 100, 101, 102, 103, 500], np.float32).reshape(2, 2, 2)
    result = to_unit(array, QuartileRule()).ravel()
    assert result[0] == result[1] == 0 and result[2] == np.float32(1e-3) and result[-1] == 1


def test_tissue_all_alike_goes_where_the_median_goes() -> None:
    array = np.array([0, 7, 7, 7, 7, 7, 7, 7], np.float32).reshape(2, 2, 2)
    np.testing.assert_allclose(to_unit(array, QuartileRule()).ravel()[1:], 0.45)


def test_nothing_above_zero_becomes_black() -> None:
    assert not to_unit(np.full((2, 2, 2), -3, np.float32), QuartileRule()).any()


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e37])
def test_the_smallest_and_largest_numbers_stay_finite(size: float) -> None:
    array = np.array([0, -1, 1, 0.5, 2, 3e38], np.float32).reshape(1, 2, 3)
    array[array == 1] = size
    array[array == 0.5] = size
    array[array == 2] = size
    result = to_unit(array, QuartileRule())
    assert np.isfinite(result).all() and result.min() == 0 and result.max() <= 1


@pytest.mark.parametrize(
    ("low", "high", "air", "words"),
    [
        (1, 900, 0.5, None),
        (0.3, 0.7, 0.5, None),
        (1, 900, 0.06, None),
        (1, 900, 0.04, "hardly a voxel is 0; these weights know whole brains on a background of 0"),
        (-90, 90, 0, "48% of the voxels are below 0 and were taken for background, not for tissue"),
        (-1, 3, 0.5, "11% of the voxels are below 0 and were taken for background, not for tissue"),
        (-1000, 1000, 0, "much of it lies far below 0, as in CT; these weights know brain MR"),
        (5, 5, 0, None),
    ],
)
def test_what_is_no_stripped_brain_is_told(low: float, high: float, air: float, words: str | None) -> None:
    array = np.linspace(low, high, 1000, dtype=np.float32)
    array[np.linspace(0, 999, round(1000 * air), dtype=int)] = 0
    if air:
        array[1] = low
    assert QuartileRule().doubts(array.reshape(10, 10, 10)) == ((words,) if words else ())


@pytest.mark.parametrize("scale", [1.0, 30_000.0])
def test_what_a_spline_adds_beside_the_edge_of_a_brain_is_no_doubt(scale: float) -> None:
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij"))
    head = np.where((place**2).sum(axis=0) < 0.8, np.random.default_rng(0).uniform(0.5, 2, place[0].shape), 0)
    resampled = (scale * zoom(head, 1.3, order=3)).astype(np.float32)
    assert resampled.min() < -0.1 * scale and np.mean(resampled < 0) > 0.05
    assert QuartileRule().doubts(resampled) == ()


def test_the_curve_at_its_points_and_between() -> None:
    hu = np.array([-3000, -1000, -600, -200, -100, 50, 200, 600, 2000, 9000], np.float32).reshape(1, 2, 5)
    expected = [0, 0, 0.075, 0.15, 0.25, 0.5, 0.75, 0.9, 1, 1]
    np.testing.assert_allclose(to_unit(hu, CurveRule()).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("hu", [CurveRule().hu, (-1000.5, -3.25, 7.5, 0.75, 1999.5)])
def test_looked_up_whole_numbers_are_as_interpolated_ones(
    order: Literal["C", "F"], hu: tuple[float, ...]
) -> None:
    """With slabs of whole numbers, slabs of others and slabs of both, in a scan that is left as it was."""
    rule = CurveRule(hu=tuple(sorted(hu)), value=(0, 0.15, 0.25, 0.75, 0.9, 1)[-len(hu) :])
    random = np.random.default_rng(0)
    array = random.integers(-1500, 3500, (7, 8, 9)).astype(np.float32)
    array[2], array[:, :, 4], array[5, 5, 5] = array[2] + 0.25, random.normal(0, 900, (7, 8)), -900.5
    array = np.asarray(array, order=order)
    before = array.copy()
    expected = np.interp(array, rule.hu, rule.value).astype(np.float32)
    assert np.array_equal(rule.apply(array), expected)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "hu-curve", "hu": [0, 0], "value": [0, 1]},
        {"name": "hu-curve", "hu": [0, 1], "value": [1, 0]},
        {"name": "hu-curve", "hu": [0, 1], "value": [0, 2]},
        {"name": "hu-curve", "hu": [0], "value": [0]},
        {"name": "hu-curve", "hu": [0, 1e9], "value": [0, 1]},
        {"name": "mr-quartiles", "median_to": 1.5},
        {"name": "percentile"},
    ],
)
def test_rules_that_make_no_sense_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(IntensityRule).validate_python(broken)
