from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass, map_coordinates
from scipy.spatial.transform import Rotation

from mood_infer.grid import NEAR, Grid, axes_in_ras, resample, working_grid

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
SLOPE = np.array([0.004, -0.003, 0.005])


def oriented(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * spacing
    affine[:3, 3] = (-31.3, 12.9, 77.1)
    return affine


def oblique(spacing: tuple[float, ...], angles: tuple[float, ...] = (20, -15, 35)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (5, -40, 11)
    return affine


def world(grid: Grid) -> np.ndarray:
    """(3, X, Y, Z) mm of each voxel centre."""
    index = np.indices(grid.shape).reshape(3, -1)
    return (grid.affine[:3, :3] @ index + grid.affine[:3, 3:]).reshape(3, *grid.shape)


def ramp(grid: Grid) -> np.ndarray:
    return (np.tensordot(SLOPE, world(grid), 1) + 0.5).astype(np.float32)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_ramp_in_mm_survives_both_ways(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    scan = Grid((23, 17, 9), oriented(order, signs, (0.5, 2.3, 8.0)))
    working = working_grid(scan, 1.0)
    there = resample(ramp(scan), scan, working)
    np.testing.assert_allclose(there, ramp(working), atol=1e-4)
    np.testing.assert_allclose(resample(there, working, scan), ramp(scan), atol=1e-4)
    assert nib.aff2axcodes(working.affine) == ("R", "A", "S")


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_axes_in_ras_are_nibabels(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = oriented(order, signs, (0.5, 2.3, 8.0))
    array = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    turned, spacing = axes_in_ras(array, affine)
    assert np.array_equal(turned, canonical.get_fdata(dtype=np.float32))
    assert spacing == pytest.approx(canonical.header.get_zooms())


@given(
    st.tuples(*[st.floats(0.5, 8)] * 3),
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.sampled_from([1.0, 2.0]),
)
@settings(deadline=None, max_examples=60)
def test_a_ramp_survives_on_oblique_grids(
    spacing: tuple[float, ...], shape: tuple[int, int, int], angles: tuple[float, ...], step: float
) -> None:
    scan = Grid(shape, oblique(spacing, angles))
    working = working_grid(scan, step)
    there = resample(ramp(scan), scan, working)
    lengths = np.asarray(shape)
    if lengths.min() > 1:  # a single plane says nothing of the slope across it
        np.testing.assert_allclose(there, ramp(working), atol=1e-4)
    np.testing.assert_allclose(resample(there, working, scan), ramp(scan), atol=1e-4)
    kept = [length for length in scan.spacing if abs(length - step) <= NEAR * step]
    for length in working.spacing:
        assert any(length == pytest.approx(allowed, rel=1e-9) for allowed in (step, *kept))
    inside = np.linalg.inv(working.affine) @ np.vstack([world(scan).reshape(3, -1), np.ones(lengths.prod())])
    edge = np.asarray(working.shape)[:, None] - 1
    assert (inside[:3] > -1e-3).all() and (inside[:3] < edge + 1e-3).all()


@pytest.mark.parametrize(
    "affine", [oblique((0.9, 0.7, 3.1)), oriented((2, 0, 1), (-1, 1, -1), (0.6, 1.7, 5.0))]
)
@pytest.mark.parametrize("layout", [*permutations(range(3)), None])
def test_equals_scipy_on_the_same_coordinates(affine: np.ndarray, layout: tuple[int, ...] | None) -> None:
    """However the axes of the array lie in memory; without a layout it lies backwards."""
    scan = Grid((19, 22, 11), affine)
    array = np.random.default_rng(0).random(scan.shape, dtype=np.float32)
    if layout is None:
        array = np.flip(np.flip(array).copy())
    else:
        array = np.ascontiguousarray(array.transpose(layout)).transpose(np.argsort(layout))
    working = working_grid(scan, 1.0)
    there = resample(array, scan, working)
    for result, source, target, values in (
        (there, scan, working, array),
        (resample(there, working, scan), working, scan, there),
    ):
        index = np.indices(target.shape).reshape(3, -1)
        to_source = np.linalg.inv(source.affine) @ target.affine
        coordinates = to_source[:3, :3] @ index + to_source[:3, 3:]
        inside = ((coordinates >= 0) & (coordinates <= np.array(source.shape)[:, None] - 1)).all(axis=0)
        assert inside.mean() > 0.5
        expected = map_coordinates(values.astype(np.float64), coordinates, order=1)
        np.testing.assert_allclose(result.ravel()[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize(
    "affine", [oblique((1.3, 0.8, 4.0)), oriented((1, 2, 0), (1, -1, -1), (2.5, 0.7, 5.0))]
)
def test_a_blob_stays_where_it_is(affine: np.ndarray) -> None:
    scan = Grid((60, 64, 28), affine)
    centre = (affine @ [28.4, 30.7, 13.2, 1])[:3]
    blob = np.exp(-((world(scan) - centre[:, None, None, None]) ** 2).sum(axis=0) / (2 * 5.0**2)).astype(
        np.float32
    )
    working = working_grid(scan, 1.0)
    there = resample(blob, scan, working)
    back = resample(there, working, scan)
    before, during, after = (
        (grid.affine @ [*center_of_mass(array), 1])[:3]
        for array, grid in ((blob, scan), (there, working), (back, scan))
    )
    np.testing.assert_allclose(during, before, atol=0.03)
    np.testing.assert_allclose(after, before, atol=0.03)


@pytest.mark.parametrize("shift", [(0, 0, 0), (-90.3, -126.7, -72.1)])
def test_at_1_mm_in_ras_nothing_changes(shift: tuple[float, float, float]) -> None:
    affine = np.eye(4)
    affine[:3, 3] = shift
    scan = Grid((13, 20, 7), affine)
    array = np.random.default_rng(1).random(scan.shape, dtype=np.float32)
    working = working_grid(scan, 1.0)
    assert working.shape == scan.shape
    np.testing.assert_allclose(working.affine, affine, atol=1e-9)
    assert np.array_equal(resample(array, scan, working), array)


@pytest.mark.parametrize("spacing", [0.9961, 0.99999, 1.0000004, 1.00001, 1.0039])
@pytest.mark.parametrize("upsample", [True, False])
def test_a_scan_of_all_but_1_mm_is_not_interpolated(spacing: float, upsample: bool) -> None:
    affine = oblique((spacing, spacing, spacing)).astype(np.float32).astype(np.float64)
    scan = Grid((180, 40, 13), affine)
    array = np.random.default_rng(1).random(scan.shape, dtype=np.float32)
    working = working_grid(scan, 1.0, upsample)
    there = resample(array, scan, working)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    assert np.array_equal(there, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(working.affine, canonical.affine, atol=1e-9)
    assert np.array_equal(resample(there, working, scan), array)


def test_a_scan_of_plainly_another_spacing_is() -> None:
    scan = Grid((180, 40, 13), np.diag([1.006, 0.994, 1.0, 1.0]))
    working = working_grid(scan, 1.0)
    assert working.shape == (182, 40, 13)
    assert working.spacing == pytest.approx((1, 1, 1), rel=1e-9)


def test_a_flip_at_1_mm_only_reorders() -> None:
    scan = Grid((13, 20, 7), oriented((1, 0, 2), (-1, 1, -1), (1, 1, 1)))
    array = np.random.default_rng(2).random(scan.shape, dtype=np.float32)
    working = working_grid(scan, 1.0)
    there = resample(array, scan, working)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, scan.affine))
    assert np.array_equal(there, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(working.affine, canonical.affine, atol=1e-9)
    assert np.array_equal(resample(there, working, scan), array)


def test_grids_that_are_not_parallel_are_refused() -> None:
    scan = Grid((4, 4, 4), np.eye(4))
    with pytest.raises(ValueError, match="parallel"):
        resample(np.zeros((4, 4, 4), np.float32), scan, Grid((4, 4, 4), oblique((1, 1, 1))))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_coarse_axes_may_stay_as_they_are(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    spacings = (0.5, 2.3, 8.0)
    scan = Grid((23, 17, 9), oriented(order, signs, spacings))
    working = working_grid(scan, 1.0, upsample=False)
    there = resample(ramp(scan), scan, working)
    np.testing.assert_allclose(there, ramp(working), atol=1e-4)
    np.testing.assert_allclose(resample(there, working, scan), ramp(scan), atol=1e-4)
    assert sorted(working.spacing) == pytest.approx([1.0, 2.3, 8.0])
    assert sorted(working.shape) == [9, 12, 17]


def test_voxels_that_stay_keep_their_values() -> None:
    scan = Grid((13, 20, 7), oriented((1, 0, 2), (-1, 1, -1), (1.5, 3, 2)))
    array = np.random.default_rng(2).random(scan.shape, dtype=np.float32)
    working = working_grid(scan, 0.9, upsample=False)
    there = resample(array, scan, working)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, scan.affine))
    assert np.array_equal(there, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(working.affine, canonical.affine, atol=1e-9)
