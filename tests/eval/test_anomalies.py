"""Each type against its rule written a second way; nothing may change outside the label or the body."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from mood_eval.anomalies import SMALL, Anomaly, Kind, make_anomaly, soft_weight
from mood_eval.sites import Scan, draw_sphere, sphere
from mood_eval.unseen import UnseenKind, make_unseen, unseen_kinds
from mood_infer.challenge import Region
from mood_infer.errors import UserError

SHAPE = (48, 40, 36)


def make_scan(spacing: tuple[float, float, float] = (2.0, 2.0, 3.0), seed: int = 0) -> Scan:
    """An ellipsoid of smooth texture between 0.3 and 0.7 in air, with one voxel of 1: I is exactly 1."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    array = (0.5 + 0.2 * texture / np.abs(texture).max()).astype(np.float32)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = sum(g * g for g in grid) < 0.85
    array[~body] = 0
    array[2, 20, 18] = 1
    body[2, 20, 18] = True
    return Scan(array, body, spacing)


def _distance(scan: Scan, anomaly: Anomaly) -> NDArray[np.float64]:
    index = np.indices(scan.array.shape)
    return np.sqrt(
        sum(((i - c) * s) ** 2 for i, c, s in zip(index, anomaly.centre, scan.spacing, strict=True))
    )


@pytest.mark.parametrize("kind", [*Kind, *UnseenKind], ids=lambda kind: kind.value)
@pytest.mark.parametrize("seed", range(4))
def test_nothing_changes_outside_the_label_and_the_label_lies_in_the_body(
    kind: Kind | UnseenKind, seed: int
) -> None:
    scan = make_scan()
    before = scan.array.copy()
    rng = np.random.default_rng(seed)
    anomaly = make_anomaly(scan, kind, rng) if isinstance(kind, Kind) else make_unseen(scan, kind, rng)
    assert np.array_equal(anomaly.image[~anomaly.label], scan.array[~anomaly.label])
    assert np.array_equal(scan.array, before)
    assert not np.any(anomaly.label & ~scan.body)
    assert anomaly.image.dtype == np.float32 and anomaly.image.shape == scan.array.shape
    assert anomaly.image.min() >= 0 and anomaly.image.max() <= 1
    assert np.mean(anomaly.image[anomaly.label] != scan.array[anomaly.label]) > 0.5
    assert anomaly.kind == kind.value


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("seed", range(4))
def test_the_label_is_the_sphere_cut_to_the_body(kind: Kind, seed: int) -> None:
    scan = make_scan()
    anomaly = make_anomaly(scan, kind, np.random.default_rng(seed))
    ball = _distance(scan, anomaly) < anomaly.radius
    assert np.array_equal(anomaly.label, ball & scan.body)
    assert anomaly.label.sum() >= ball.sum() / 2
    assert all(n // 4 <= c < n // 4 + n // 2 for c, n in zip(anomaly.centre, SHAPE, strict=True))
    large = kind in (Kind.DEFORMATION, Kind.SHIFT, Kind.REFLECTION)
    low, high = (0.08, 0.13) if large else (0.05, 0.10)
    assert low * 96 <= anomaly.radius <= high * 96  # 48 voxels of 2 mm from left to right


def _difference(scan: Scan, anomaly: Anomaly) -> NDArray[np.float64]:
    return (anomaly.image.astype(np.float64) - scan.array)[anomaly.label]


@pytest.mark.parametrize("seed", range(6))
def test_uniform_adds_one_number(seed: int) -> None:
    scan = make_scan()
    anomaly = make_anomaly(scan, Kind.UNIFORM, np.random.default_rng(seed))
    step = float(anomaly.detail.split()[1])
    assert 0.2 <= abs(step) <= 0.3 and np.sign(step) == anomaly.sign
    assert np.allclose(_difference(scan, anomaly), step, atol=6e-4)  # the detail has three decimals
    assert np.ptp(_difference(scan, anomaly)) < 1e-6


def test_values_are_clipped() -> None:
    scan = make_scan()
    array = np.where(scan.body, np.where(scan.array > 0.5, 0.95, 0.05), 0).astype(np.float32)
    scan = Scan(array, scan.body, scan.spacing)
    for seed in range(4):
        anomaly = make_anomaly(scan, Kind.UNIFORM, np.random.default_rng(seed))
        expected = np.clip(array + float(anomaly.detail.split()[1]), 0, 1)
        assert np.allclose(anomaly.image[anomaly.label], expected[anomaly.label], atol=6e-4)


@pytest.mark.parametrize("seed", range(6))
def test_noise_is_uniform_from_5_to_30_percent_with_one_sign(seed: int) -> None:
    scan = make_scan()
    anomaly = make_anomaly(scan, Kind.NOISE, np.random.default_rng(seed))
    steps = _difference(scan, anomaly) * anomaly.sign
    assert steps.min() >= 0.05 - 1e-6 and steps.max() <= 0.3 + 1e-6
    assert steps.mean() == pytest.approx(0.175, abs=0.25 / np.sqrt(12 * steps.size) * 4)


@pytest.mark.parametrize("seed", range(6))
def test_deformation_samples_where_its_formula_says(seed: int) -> None:
    scan = make_scan()
    anomaly = make_anomaly(scan, Kind.DEFORMATION, np.random.default_rng(seed))
    sample = RegularGridInterpolator([np.arange(n) for n in SHAPE], scan.array.astype(np.float64))
    x, c = np.argwhere(anomaly.label).astype(float), np.asarray(anomaly.centre, float)
    q = (_distance(scan, anomaly)[anomaly.label] / anomaly.radius)[:, None] ** 2
    at = c + (x - c) * q if anomaly.sign > 0 else x + (x - c) * (1 - q)
    at = np.clip(at, 0, np.asarray(SHAPE) - 1)
    assert np.allclose(anomaly.image[anomaly.label], sample(at), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_shift_copies_from_x_minus_s(seed: int) -> None:
    scan = make_scan()
    anomaly = make_anomaly(scan, Kind.SHIFT, np.random.default_rng(seed))
    steps = [int(step) for step in anomaly.detail.split()[1:]]
    for step, length in zip(steps, scan.spacing, strict=True):
        assert 0.02 * 96 - length / 2 <= abs(step) * length <= 0.05 * 96 + length / 2
    pad = max(abs(step) for step in steps)
    rolled = np.roll(np.pad(scan.array, pad, "edge"), steps, (0, 1, 2))[pad:-pad, pad:-pad, pad:-pad]
    assert np.array_equal(anomaly.image[anomaly.label], rolled[anomaly.label])


@pytest.mark.parametrize("axis", [0, 1])
def test_reflection_copies_from_the_other_side(axis: int) -> None:
    scan = dataclasses.replace(make_scan(), left_right=axis)
    anomaly = make_anomaly(scan, Kind.REFLECTION, np.random.default_rng(axis))
    for voxel in np.argwhere(anomaly.label):
        other = voxel.copy()
        other[axis] = SHAPE[axis] - 1 - voxel[axis]
        assert anomaly.image[tuple(voxel)] == scan.array[tuple(other)]


@pytest.mark.parametrize(
    ("soft", "hard"), [(Kind.UNIFORM_SMOOTH, Kind.UNIFORM), (Kind.NOISE_SMOOTH, Kind.NOISE)]
)
@pytest.mark.parametrize("seed", range(3))
def test_soft_types_are_the_hard_ones_times_a_weight(soft: Kind, hard: Kind, seed: int) -> None:
    scan = make_scan()
    one = make_anomaly(scan, soft, np.random.default_rng(seed))
    other = make_anomaly(scan, hard, np.random.default_rng(seed))
    assert np.array_equal(one.label, other.label)
    weight = soft_weight(_distance(scan, one)[one.label], one.radius)
    assert np.allclose(_difference(scan, one), weight * _difference(scan, other), atol=1e-6)


def test_soft_weight_is_a_gaussian_smoothed_ball_that_ends_at_the_radius() -> None:
    radius, sigma, step = 15.0, 2.0, 0.5
    line = np.arange(-25, 25 + step / 2, step)
    x, y, z = np.meshgrid(line, line, line, indexing="ij", sparse=True)
    distance = np.sqrt(x * x + y * y + z * z)
    ball = np.clip((radius - sigma - distance) / step + 0.5, 0, 1)  # its edge voxels count in part
    smoothed = ndimage.gaussian_filter(ball, sigma / step, truncate=6)
    rim = np.interp(radius, line[line >= 0], smoothed[50, 50, 50:])
    expected = np.clip((smoothed - rim) / (1 - rim), 0, 1)
    assert np.abs(soft_weight(distance, radius) - expected).max() < 2e-3


@given(st.floats(1, 60))
@settings(max_examples=30)
def test_soft_weight_falls_from_one_to_zero(radius: float) -> None:
    weight = soft_weight(np.linspace(0, 2 * radius, 200), radius)
    assert weight[0] > 0.99 and np.all(np.diff(weight) <= 1e-9)
    assert np.all(weight[100:] == 0)
    # only a thin shell of the label is hardly changed at all
    volume = np.linspace(0, radius, 2000) ** 2
    faint = soft_weight(np.linspace(0, radius, 2000), radius) < 0.1
    assert volume[faint].sum() / volume.sum() < 0.2


@pytest.mark.parametrize("kind", [*Kind, *UnseenKind])
def test_same_seed_same_anomaly_and_other_seed_another(kind: Kind | UnseenKind) -> None:
    scan = make_scan()

    def make(seed: int) -> Anomaly:
        rng = np.random.default_rng(seed)
        return make_anomaly(scan, kind, rng) if isinstance(kind, Kind) else make_unseen(scan, kind, rng)

    assert make(3).image.tobytes() == make(3).image.tobytes()
    assert make(3).label.tobytes() == make(3).label.tobytes()
    assert make(3).image.tobytes() != make(4).image.tobytes()


def test_both_signs_and_all_the_middle_are_drawn() -> None:
    scan, rng = make_scan(), np.random.default_rng(0)
    anomalies = [make_anomaly(scan, Kind.UNIFORM, rng) for _ in range(200)]
    assert 70 < sum(anomaly.sign > 0 for anomaly in anomalies) < 130
    centres = np.array([anomaly.centre for anomaly in anomalies])
    assert np.all(centres.min(0) <= np.array(SHAPE) // 4 + 2)
    assert np.all(centres.max(0) >= 3 * np.array(SHAPE) // 4 - 4)


def test_a_scan_without_body_is_refused() -> None:
    scan = dataclasses.replace(make_scan(), body=np.zeros(SHAPE, bool))
    with pytest.raises(UserError, match="no body in the middle"):
        draw_sphere(scan, SMALL, np.random.default_rng(0))


@given(st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), st.floats(1, 30))
@settings(max_examples=30)
def test_sphere_is_cut_to_the_array(centre: tuple[int, int, int], radius: float) -> None:
    scan = dataclasses.replace(make_scan(), body=np.ones(SHAPE, bool))
    site = sphere(scan, centre, radius)
    whole = np.zeros(SHAPE, bool)
    whole[site.box] = site.inside
    index = np.indices(SHAPE)
    expected = (
        sum(((i - c) * s) ** 2 for i, c, s in zip(index, centre, scan.spacing, strict=True)) < radius**2
    )
    assert np.array_equal(whole, expected)


def test_bias_multiplies_most_in_the_middle() -> None:
    scan = make_scan()
    anomaly = make_unseen(scan, UnseenKind.BIAS, np.random.default_rng(1))
    gain = anomaly.image[anomaly.label] / scan.array[anomaly.label]
    q = (_distance(scan, anomaly)[anomaly.label] / anomaly.radius) ** 2
    clipped = anomaly.image[anomaly.label] >= 1
    strength = ((gain - 1) / (1 - q))[~clipped]
    assert np.ptp(strength) < 1e-3 and 0.4 <= abs(strength.mean()) <= 0.7


def test_blur_is_scipys_on_the_whole_scan() -> None:
    scan = make_scan(spacing=(2.0, 2.0, 2.0))
    anomaly = make_unseen(scan, UnseenKind.BLUR, np.random.default_rng(1))
    low, high = (
        ndimage.gaussian_filter(scan.array, sigma / 2, mode="nearest")
        for sigma in np.array([-0.05, 0.05]) + float(anomaly.detail.split()[1])
    )
    image = anomaly.image[anomaly.label]
    assert np.all(image >= np.minimum(low, high)[anomaly.label] - 1e-3)
    assert np.all(image <= np.maximum(low, high)[anomaly.label] + 1e-3)


def test_shuffle_keeps_the_slices_and_moves_every_one() -> None:
    scan = dataclasses.replace(make_scan(), body=np.ones(SHAPE, bool))
    anomaly = make_unseen(scan, UnseenKind.SLICE_SHUFFLE, np.random.default_rng(1))
    axis = int(anomaly.detail.split()[1])
    x, y, z = ndimage.find_objects(anomaly.label.astype(np.uint8))[0]
    line = [slice(c, c + 1) for c in anomaly.centre]
    line[axis] = (x, y, z)[axis]
    new, old = anomaly.image[tuple(line)].ravel(), scan.array[tuple(line)].ravel()
    assert sorted(new) == sorted(old) and not np.any(new == old)


def test_mirrored_turns_the_sphere_about_its_own_centre() -> None:
    scan = dataclasses.replace(make_scan(), body=np.ones(SHAPE, bool))
    anomaly = make_unseen(scan, UnseenKind.MIRRORED, np.random.default_rng(2))
    axis = int(anomaly.detail.split()[1])
    for voxel in np.argwhere(anomaly.label):
        other = voxel.copy()
        other[axis] = np.clip(2 * anomaly.centre[axis] - voxel[axis], 0, SHAPE[axis] - 1)
        assert anomaly.image[tuple(voxel)] == scan.array[tuple(other)]


def test_rod_is_one_bright_value() -> None:
    scan = make_scan()
    anomaly = make_unseen(scan, UnseenKind.FOREIGN_OBJECT, np.random.default_rng(2))
    values = anomaly.image[anomaly.label]
    assert np.ptp(values) == 0 and 0.9 <= values[0] <= 1
    assert _distance(scan, anomaly)[anomaly.label].max() < anomaly.radius


def test_ghost_is_a_weaker_copy_in_the_plane() -> None:
    scan = make_scan()
    anomaly = make_unseen(scan, UnseenKind.GHOST, np.random.default_rng(3))
    _, weight, step, *_, axis = anomaly.detail.replace(",", "").split()
    assert axis in "01" and 0.3 <= float(weight) <= 0.5
    assert 0.1 * 96 - 1 <= abs(int(step)) * 2 <= 0.2 * 96 + 1
    ghost = np.roll(scan.array, int(step), int(axis))
    expected = (1 - float(weight)) * scan.array + float(weight) * ghost
    assert np.allclose(anomaly.image[anomaly.label], expected[anomaly.label], atol=1e-3)


def test_streaks_run_from_a_bright_core_in_every_slice() -> None:
    scan = dataclasses.replace(make_scan(), body=np.ones(SHAPE, bool))
    anomaly = make_unseen(scan, UnseenKind.STREAK, np.random.default_rng(3))
    distance = _distance(scan, anomaly)
    assert np.all(anomaly.image[distance < anomaly.radius / 8] == 1)
    change = np.abs(anomaly.image - scan.array)
    assert np.all(
        change <= 0.5 * (1 - distance / anomaly.radius).clip(0) + 0.7 * (distance < anomaly.radius / 8)
    )


def test_missing_is_black_as_slab_and_as_bubble() -> None:
    scan = make_scan()
    shapes = set()
    for seed in range(8):
        anomaly = make_unseen(scan, UnseenKind.MISSING, np.random.default_rng(seed))
        assert np.all(anomaly.image[anomaly.label] == 0)
        shapes.add(anomaly.detail)
    assert shapes == {"slab", "bubble"}


def test_spike_is_one_frequency() -> None:
    shape = (64, 64, 16)
    scan = Scan(np.full(shape, 0.5, np.float32), np.ones(shape, bool))
    anomaly = make_unseen(scan, UnseenKind.SPIKE, np.random.default_rng(1))
    stripes = anomaly.image[:, :, anomaly.centre[2]] - 0.5
    # a scan without contrast has I = 0, so no stripes
    assert np.all(stripes == 0)
    array = scan.array.copy()
    array[0, 0, 0], array[0, 0, 1] = 0, 1
    anomaly = make_unseen(Scan(array, scan.body), UnseenKind.SPIKE, np.random.default_rng(1))
    stripes = anomaly.image[:, :, anomaly.centre[2]] - 0.5
    power = np.abs(np.fft.rfft2(stripes * np.hanning(64)[:, None] * np.hanning(64))) ** 2
    peak = np.unravel_index(power.argmax(), power.shape)
    frequency = np.hypot(np.fft.fftfreq(64)[peak[0]], np.fft.rfftfreq(64)[peak[1]])
    assert 1 / 16 < frequency < 1 / 4.5
    assert np.abs(stripes).max() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("region", list(Region))
def test_each_region_has_its_own_artefact(region: Region) -> None:
    kinds = unseen_kinds(region)
    assert (UnseenKind.SPIKE in kinds) == (region is Region.BRAIN)
    assert (UnseenKind.STREAK in kinds) == (region is Region.ABDOM)
    assert len(kinds) == len(UnseenKind) - 1
