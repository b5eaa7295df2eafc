import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import pad

from mood_infer import predictor as predictor_module
from mood_infer.challenge import Region
from mood_infer.errors import UserError, WeightsError
from mood_infer.intensity import CurveRule, to_unit
from mood_infer.memory import Room
from mood_infer.network import window_logits
from mood_infer.predictor import STAGGER, Predictor
from mood_infer.preparation import body_box
from mood_infer.volume import Volume, read_volume
from mood_infer.weights import load_member, read_manifest
from mood_infer.windows import count_windows, cube_weights, slide

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scan(make_scan: Callable[..., Path], tmp_path: Path) -> Volume:
    return read_volume(make_scan(tmp_path / "scan.nii.gz", (50, 36, 28)))


@pytest.mark.parametrize("air", [0, 40])
def test_equals_a_plain_ensemble_in_float32(
    air: int, make_weights: Callable[..., Path], scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the whole grid, where windows of nothing but air are scored once."""
    scan = Volume(np.pad(scan.array, [(air, 0)] * 3), scan.affine, scan.header)
    folder = make_weights(
        tmp_path / "weights", sigma=0.25
    )  # as broad as MONAI's floor needs to be without effect
    predictor = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32")
    assert predictor.precision == "float32"
    predictor.place_windows(0.5, margin=10)  # in windows: all there is
    computed: list[int] = []
    monkeypatch.setattr(
        predictor_module,
        "window_logits",
        lambda network, windows: computed.append(len(windows)) or window_logits(network, windows),
    )
    result = predictor.predict(scan)
    manifest = read_manifest(folder / "brain")
    windows = 2 * count_windows(scan.array.shape, 32, 0.5)
    assert sum(computed) >= windows if air == 0 else sum(computed) < windows
    inferer = SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian", sigma_scale=0.25)
    volume = torch.from_numpy(scan.array)[None, None]
    maps = []
    with torch.no_grad():
        for member in manifest.members:
            network = load_member(folder / "brain", manifest, member)
            maps.append(inferer(volume, nn.Sequential(network, nn.Sigmoid()))[0, 0])
    assert float((maps[0] - maps[1]).abs().max()) > 0.1  # the members differ
    expected = torch.stack(maps).mean(dim=0).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(result.working, expected, atol=1e-5)
    assert np.array_equal(result.scores, result.working)  # the scan lies on the working grid
    assert result.members == ("member0.safetensors", "member1.safetensors")
    assert result.seconds > 0
    top = np.sort(expected, axis=None)[-100:].mean()
    assert result.sample_score == pytest.approx(top, abs=1e-5)


def test_member_by_member_equals_window_by_window(
    make_weights: Callable[..., Path], scan: Volume, tmp_path: Path
) -> None:
    """The other order: each window goes through every network, unfolded, before the next is looked at."""
    folder = make_weights(tmp_path / "weights", count=4)
    manifest = read_manifest(folder / "brain")
    networks = [load_member(folder / "brain", manifest, member) for member in manifest.members]

    def mean_score(windows: Tensor) -> Tensor:
        return torch.stack([torch.sigmoid(window_logits(network, windows)) for network in networks]).mean(0)

    expected = slide(torch.from_numpy(scan.array), 32, 0.5, 0.125, mean_score).numpy()
    result = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32").predict(scan)
    np.testing.assert_allclose(result.working, expected, atol=1e-5)
    assert result.complete and not result.warnings


def test_no_members_map_is_kept_beside_the_next(
    make_weights: Callable[..., Path], scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is flat in the number of members."""
    maps: list[weakref.ref[Tensor]] = []

    def remembering(*arguments: Any) -> Tensor:
        assert not any(one() is not None for one in maps)
        made = slide(*arguments)
        maps.append(weakref.ref(made))
        return made

    monkeypatch.setattr(predictor_module, "slide", remembering)
    folder = make_weights(tmp_path / "weights", count=4)
    Predictor.load(Region.BRAIN, folder, "cpu").predict(scan)
    assert len(maps) == 4


def test_smooth_members_count_as_the_manifest_says(
    make_weights: Callable[..., Path], scan: Volume, tmp_path: Path
) -> None:
    folder = make_weights(tmp_path / "weights", count=3, smooth=[1], smooth_weight=0.5)
    manifest = read_manifest(folder / "brain")
    one, two, three = (
        Predictor.load(Region.BRAIN, folder, "cpu", [member.file]).predict(scan).working
        for member in manifest.members
    )
    every = Predictor.load(Region.BRAIN, folder, "cpu").predict(scan)
    np.testing.assert_allclose(every.working, 0.4 * one + 0.2 * two + 0.4 * three, atol=1e-6)
    assert np.abs(every.working - (one + two + three) / 3).max() > 0.01


def test_the_crop_changes_nothing_that_the_same_windows_see(weights: Path) -> None:
    """The windows over this box are some of the uncropped ones; the rest reach 4 voxels into the body."""
    array = np.zeros((128, 112, 32), np.float32)
    array[36:92, 36:76] = np.random.default_rng(0).uniform(0.3, 0.7, (56, 40, 32))
    box = (slice(32, 96), slice(32, 80), slice(0, 32))  # a margin of an eighth of the window
    seen: list[tuple[int, int]] = []
    predictor = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32")
    result = predictor.predict(
        Volume(array, np.eye(4), nib.Nifti1Header()), lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (12, 12)  # 3 x 2 x 1 for each of two members; uncropped 7 x 6 x 1
    networks = predictor._networks

    def mean_score(windows: Tensor) -> Tensor:
        return torch.stack([torch.sigmoid(window_logits(network, windows)) for network in networks]).mean(0)

    expected = slide(torch.from_numpy(array), 32, 0.5, 0.125, mean_score).numpy()
    inner = (slice(48, 80), slice(48, 64))
    np.testing.assert_allclose(result.working[inner], expected[inner], atol=1e-5)
    difference = np.abs(result.working - expected)[box]
    assert difference.mean() < 0.02 and difference.max() < 0.3
    outside = np.ones(array.shape, bool)
    outside[box] = False
    cube = cube_weights(32, 0.125)
    empty = float((mean_score(torch.zeros(1, 1, 32, 32, 32))[0, 0] * cube).sum() / cube.sum())
    np.testing.assert_allclose(result.working[outside], empty, atol=1e-5)


@pytest.mark.parametrize("upsample", [True, False])
def test_maps_are_smoothed_by_millimetres_on_their_own_grid(
    make_weights: Callable[..., Path], tmp_path: Path, upsample: bool
) -> None:
    """Against SciPy over the whole unsmoothed map, which beyond the body's box is of one value."""
    array = np.zeros((80, 70, 60), np.float32)
    array[26:56, 20:50, 14:44] = np.random.default_rng(0).uniform(0.3, 0.7, (30, 30, 30))
    steps = (2.0, 2.0, 2.0) if upsample else (2.0, 2.5, 6.0)
    scan = Volume(array, np.diag([*steps, 1.0]), nib.Nifti1Header())
    maps = {}
    for smoothing, context in ((0.0, 0.0), (3.0, 0.0), (3.0, 9.0)):
        settings = {"spacing": 2.0, "upsample": upsample, "smoothing": smoothing, "context": context}
        folder = make_weights(tmp_path / f"{smoothing} {context}", **settings)
        maps[smoothing + context] = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32").predict(
            scan
        )
    plain = maps[0.0].working
    assert plain.shape == array.shape
    inside = plain != plain[0, 0, 0]
    assert 0.01 < inside.mean() < 0.9
    expected = ndimage.gaussian_filter(plain, np.divide(3.0, steps), mode="reflect")
    np.testing.assert_allclose(maps[3.0].working, expected, atol=1e-5)
    assert np.abs(plain - expected).max() > 0.02
    around = ndimage.gaussian_filter(maps[3.0].working, np.divide(9.0, steps), mode="reflect")
    weighed = np.sqrt(maps[3.0].working * around)
    np.testing.assert_allclose(maps[12.0].working, weighed, atol=1e-5)
    assert np.abs(maps[3.0].working - weighed).max() > 0.02


@pytest.mark.parametrize(("upsample", "length", "told"), [(True, 3.0, "1 mm"), (False, 6.5, "up to 6 mm")])
def test_voxels_longer_than_the_networks_know_are_told(
    upsample: bool, length: float, told: str, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    predictor = Predictor.load(Region.BRAIN, make_weights(tmp_path, upsample=upsample), "cpu")
    array = np.random.default_rng(0).random((24, 24, 8), np.float32)

    def warnings(step: float) -> tuple[str, ...]:
        return predictor.predict(Volume(array, np.diag([1.0, 1.0, step, 1.0]), nib.Nifti1Header())).warnings

    assert any(
        f"voxels are up to {length:g} mm long, the networks know {told}" in text for text in warnings(length)
    )
    assert not any("mm long" in text for text in warnings(length * 0.6))


def test_reduced_precision_is_close(weights: Path, scan: Volume) -> None:
    exact = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32").predict(scan).working
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    predictor._reduced = torch.bfloat16  # any CPU computes in it, if slowly
    reduced = predictor.predict(scan).working
    assert predictor.precision == "bfloat16"
    assert 0 < np.abs(reduced - exact).mean() < 0.01 and np.abs(reduced - exact).max() < 0.05
    assert np.corrcoef(reduced.ravel(), exact.ravel())[0, 1] > 0.99
    assert len(np.unique(reduced)) > 0.5 * reduced[scan.array > 0].size  # no ties from 8-bit logits


def test_a_subset_of_members(weights: Path, scan: Volume) -> None:
    load = Predictor.load
    both = load(Region.BRAIN, weights, "cpu", precision="float32")
    singles = [
        load(Region.BRAIN, weights, "cpu", [f"member{n}.safetensors"], precision="float32") for n in range(2)
    ]
    assert len({predictor.digest for predictor in (both, *singles)}) == 3
    mean = np.mean([predictor.predict(scan).working for predictor in singles], axis=0)
    np.testing.assert_allclose(both.predict(scan).working, mean, atol=1e-5)
    with pytest.raises(WeightsError, match="memberX"):
        load(Region.BRAIN, weights, "cpu", ["memberX"])
    with pytest.raises(WeightsError, match="no members"):
        load(Region.BRAIN, weights, "cpu", [])


def test_weights_of_the_other_region_are_refused(weights: Path) -> None:
    with pytest.raises(WeightsError, match="weights for abdom; give those for brain"):
        Predictor.load(Region.BRAIN, weights / "abdom")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(weights: Path) -> None:
    with pytest.raises(UserError, match="no usable GPU"):
        Predictor.load(Region.BRAIN, weights, "cuda")


def test_a_gpu_that_computes_nothing_is_left_alone(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones

    def fail(*size: int, device: object = None, **more: object) -> torch.Tensor:
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution\nand more")
        return ones(*size, device=device, **more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.warns(
        UserWarning, match=r"the GPU cannot be used \(CUDA error: no kernel .* execution\); the CPU"
    ):
        assert Predictor.load(Region.BRAIN, weights).device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_the_same_map(weights: Path, scan: Volume) -> None:
    exact = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32").predict(scan).working
    single = Predictor.load(Region.BRAIN, weights, "cuda", precision="float32").predict(scan).working
    half = Predictor.load(Region.BRAIN, weights, "cuda").predict(scan).working
    np.testing.assert_allclose(single, exact, atol=5e-3)  # convolutions may run in TF32
    np.testing.assert_allclose(half, exact, atol=2e-2)


def test_an_overflow_in_16_bits_is_mended(weights: Path, scan: Volume) -> None:
    """Weights so large that float16 would overflow must give the float32 result."""
    # both by the same batches: logits so large amplify the rounding that differs between those
    predictor, exact = (Predictor.load(Region.BRAIN, weights, "cpu", precision="float32") for _ in range(2))
    predictor._reduced = torch.float16
    for owner in (predictor, exact):
        for network in owner._networks:
            network.input_block.conv1.conv.weight.mul_(1e6)
    np.testing.assert_allclose(predictor.predict(scan).working, exact.predict(scan).working, atol=1e-5)


def test_the_map_lies_where_the_scan_lies(weights: Path, tmp_path: Path) -> None:
    """The same anatomy stored another way gives the same scores at the same places."""
    random = np.random.default_rng(0)
    array = random.uniform(0.2, 0.8, (36, 40, 33)).astype(np.float32)
    image = nib.Nifti1Image(array, np.eye(4))
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    maps = []
    for name, stored in (("plain", image), ("turned", turned)):
        nib.save(stored, tmp_path / f"{name}.nii")
        predictor = Predictor.load(Region.ABDOM, weights, "cpu", precision="float32")
        result = predictor.predict(read_volume(tmp_path / f"{name}.nii"))
        assert result.scores.shape == stored.shape
        maps.append(nib.Nifti1Image(result.scores, stored.affine))
    back = nib.as_closest_canonical(maps[1])
    np.testing.assert_allclose(back.affine, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(np.asarray(back.dataobj), np.asarray(maps[0].dataobj), atol=1e-6)


def test_doubts_are_told(weights: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    head = np.pad(np.random.default_rng(0).random((36, 36, 9)), ((2, 2), (2, 2), (0, 0)))
    cases = {
        "same value": (np.full((40, 40, 40), 0.3), 1.0, "all voxels have the value 0.3"),
        "thick": (head, (1.0, 1.0, 5.0), "5 mm long"),
        "tiny": (head, 0.1, "the spacing may be wrong"),
        "unstripped": (np.random.default_rng(0).random((40, 40, 40)), 1.0, "hardly a voxel is 0"),
    }
    for name, (array, spacing, words) in cases.items():
        affine = np.diag([*np.broadcast_to(spacing, 3), 1])
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), tmp_path / f"{name}.nii")
        result = predictor.predict(read_volume(tmp_path / f"{name}.nii"))
        assert len(result.warnings) == 1 and words in result.warnings[0]
        assert np.isfinite(result.scores).all() and result.scores.shape == array.shape


@pytest.mark.parametrize(
    ("low", "high", "doubted"),
    [
        (-1024, 1800, False),
        (-210, 60, False),
        (0, 1, False),
        (-0.02, 1.03, False),
        (0, 255, True),
        (0, 3000, True),
        (-1, 1, True),
        (-160, 240, True),
    ],
)
def test_values_that_are_no_hounsfield_units_are_told(
    low: float, high: float, doubted: bool, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    weights = make_weights(tmp_path / "weights", intensity=CurveRule())
    array = np.random.default_rng(0).uniform(low, high, (40, 40, 40)).astype(np.float32)
    array[0, 0, :2] = low, high
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "ct.nii")
    result = Predictor.load(Region.ABDOM, weights, "cpu").predict(read_volume(tmp_path / "ct.nii"))
    words = f"values from {low:g} to {high:g} do not look like Hounsfield units"
    assert result.warnings == ((words,) if doubted else ())


@pytest.mark.parametrize("spacing", [900, 1e20])
def test_a_working_grid_beyond_reason_is_refused_at_once(
    spacing: float, weights: Path, tmp_path: Path
) -> None:
    affine = np.diag([spacing, spacing, spacing, 1])
    nib.save(nib.Nifti1Image(np.ones((60, 60, 60), np.float32), affine), tmp_path / "s.nii")
    with pytest.raises(UserError, match="spacing"):
        Predictor.load(Region.BRAIN, weights, "cpu").predict(read_volume(tmp_path / "s.nii"))


def test_fast_with_one_member_is_exact(
    make_weights: Callable[..., Path], scan: Volume, tmp_path: Path
) -> None:
    """The first member's windows are not moved: at equal windows there is no difference at all."""
    folder = make_weights(tmp_path / "weights", count=1)
    exact = Predictor.load(Region.BRAIN, folder, "cpu")
    fast = Predictor.load(Region.BRAIN, folder, "cpu", speed="fast")
    assert np.array_equal(exact.predict(scan).working, fast.predict(scan).working)
    assert fast.digest == f"{exact.digest}-fast"


def test_fast_moves_each_members_windows_by_its_own_share(
    make_weights: Callable[..., Path], make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_weights(tmp_path / "weights", count=3)
    scan = read_volume(make_scan(tmp_path / "scan.nii.gz", (70, 50, 28)))
    predictor = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32", speed="fast")
    seen: list[tuple[int, int]] = []
    result = predictor.predict(scan, lambda done, of: seen.append((done, of)))
    maps, count = [], 0
    for number, network in enumerate(predictor._networks):
        shift = [number * share % 1 for share in STAGGER]
        volume = torch.from_numpy(scan.array)
        count += count_windows(volume.shape, 32, 0.5)

        def score(windows: Tensor, network: nn.Module = network) -> Tensor:
            return torch.sigmoid(window_logits(network, windows))

        maps.append(slide(volume, 32, 0.5, 0.125, score, shift=shift))
    np.testing.assert_allclose(result.working, torch.stack(maps).mean(0).numpy(), atol=1e-5)
    assert seen[-1] == (count, count)


def test_ten_members_stand_apart() -> None:
    """No two of ten members are moved by the same share of what is free along an axis, and they fill it."""
    for share in STAGGER:
        places = sorted(number * share % 1 for number in range(10))
        gaps = np.diff([*places, 1])
        assert gaps.min() > 0.03 and gaps.max() < 0.2


@pytest.mark.parametrize(("window", "expected"), [(32, {2}), (96, {2}), (112, {1})])
def test_a_cpu_computes_small_windows_in_pairs(
    window: int,
    expected: set[int],
    make_weights: Callable[..., Path],
    tmp_path: Path,
    scan: Volume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float32, the last odd one too; that is for speed, and the map is that of windows one by one."""
    folder = make_weights(tmp_path / "weights", count=1, window=window)
    sizes: set[int] = set()

    def noting(network: nn.Module, windows: Tensor) -> Tensor:
        sizes.add(len(windows))
        return window_logits(network, windows)

    monkeypatch.setattr("mood_infer.predictor.window_logits", noting)
    predictor = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32")
    pairs = predictor.predict(scan).working
    assert sizes == expected
    monkeypatch.setattr(Predictor, "_needs_pairs", lambda *_: False)
    alone = Predictor.load(Region.BRAIN, folder, "cpu", precision="float32").predict(scan).working
    assert 1 in sizes
    np.testing.assert_allclose(alone, pairs, atol=1e-6)


class Ticks:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(Predictor):
    """Every window takes a second of its clock, and nothing else takes any."""

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        self._clock.now += len(windows)
        return super()._score(network, windows)


def timed(folder: Path, limit: float | None) -> Timed:
    load = Timed.load
    return load(Region.BRAIN, folder, "cpu", precision="float32", time_limit=limit, clock=Ticks())


@pytest.fixture(scope="module")
def ten(make_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("ten"), count=10, window=16)


@pytest.fixture
def small(make_scan: Callable[..., Path], tmp_path: Path) -> Volume:
    return read_volume(make_scan(tmp_path / "small.nii.gz", (25, 18, 14)))


# 3 x 2 x 1 windows for each member, after two pairs that show how long one takes
@pytest.mark.parametrize(
    ("limit", "used"), [(10, 1), (15.9, 1), (16, 2), (21.9, 2), (22, 3), (63.9, 9), (64, 10), (None, 10)]
)
def test_as_many_members_as_there_is_time_for(
    limit: float | None, used: int, ten: Path, small: Volume
) -> None:
    predictor = timed(ten, limit)
    result = predictor.predict(small)
    files = [member.file for member in predictor.manifest.members[:used]]
    assert list(result.members) == files
    assert result.seconds == 6 * used + (0 if limit is None else 4)
    assert result.complete == (used == 10)
    if used < 10:
        assert (
            f"because of the time limit of {limit:g} s only {used} of 10 members were used" in result.warnings
        )
    alone = Predictor.load(Region.BRAIN, ten, "cpu", files, precision="float32").predict(small)
    assert np.array_equal(alone.working, result.working)


@pytest.mark.parametrize(("limit", "overlap"), [(9.9, 0.375), (8, 0.375), (7.9, 0), (0, 0)])
def test_wider_steps_where_not_even_one_member_fits(
    limit: float, overlap: float, ten: Path, small: Volume
) -> None:
    result = timed(ten, limit).predict(small)
    assert result.members == ("member0.safetensors",) and not result.complete
    assert result.seconds == 4 + 2 * 2 * 1
    words = f"because of the time limit of {limit:g} s windows overlap by {overlap:g}, not 0.5"
    assert words in result.warnings
    member = timed(ten, None)._networks[0]
    image = torch.from_numpy(small.array)
    expected = slide(image, 16, overlap, 0.125, lambda each: torch.sigmoid(window_logits(member, each)))
    np.testing.assert_allclose(result.working, expected.numpy(), atol=1e-5)


def test_preparation_counts_against_the_limit(
    ten: Path, small: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = timed(ten, 25)
    prepare = predictor_module.prepare

    def slow(*arguments: Any) -> Any:
        predictor._clock.now += 7
        return prepare(*arguments)

    monkeypatch.setattr(predictor_module, "prepare", slow)
    assert len(predictor.predict(small).members) == 2


NO_MEMORY = (
    torch.OutOfMemoryError("no room"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
)


class Full(Predictor):
    """Its first few calls find no memory."""

    failures = 0
    batches: tuple[int, ...] = ()

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        self.batches += (len(windows),)
        if self.failures:
            self.failures -= 1
            raise NO_MEMORY[self.failures % len(NO_MEMORY)]
        return super()._score(network, windows)


STEPS = (
    "the GPU's memory was too small, so batches of 2 were used",
    "the GPU's memory was too small, so batches of 1 were used",
    "the GPU's memory was too small, so the map was kept in the computer's own memory",
    "the GPU's memory was too small, so the CPU was used",
)


@pytest.mark.parametrize("failures", range(6))
def test_less_memory_gives_the_same_map(failures: int, weights: Path, scan: Volume) -> None:
    plain = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32").predict(scan).working
    predictor = Full.load(Region.BRAIN, weights, "cpu", precision="float32")
    accelerator = torch.device("cpu", 0)  # another device to torch than "cpu", in the role of a GPU
    predictor._room, predictor.failures = Room(accelerator, accelerator, 4, 2), failures
    if failures > len(STEPS):
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            predictor.predict(scan)
        return
    result = predictor.predict(scan)
    assert result.warnings == STEPS[:failures]
    assert max(predictor.batches[failures:]) == (4, 2, 1, 1, 2)[failures]  # a CPU is quick with pairs
    assert result.complete
    np.testing.assert_allclose(result.working, plain, atol=1e-6)
    assert predictor.predict(scan).warnings == ()  # the next scan is tried as usual


class Late(Timed):
    """Its first member runs out of memory after a while."""

    failures = 1

    def _member(self, *arguments: Any) -> tuple[Tensor, float, float]:
        if self.failures:
            self.failures -= 1
            self._clock.now += 50
            raise NO_MEMORY[0]
        return super()._member(*arguments)


def test_time_lost_for_memory_is_not_taken_for_a_member_s(ten: Path, small: Volume) -> None:
    """8 s to see how long a window takes, 50 lost, 4 to see it again, 6 for each member: two have time."""
    predictor = Late.load(Region.BRAIN, ten, "cpu", precision="float32", time_limit=75, clock=Ticks())
    accelerator = torch.device("cpu", 0)
    predictor._room = Room(accelerator, accelerator, 4, 2)
    result = predictor.predict(small)
    assert len(result.members) == 2 and result.seconds == 8 + 50 + 4 + 2 * 6


class Slower(Late):
    """Pairs, as a CPU takes them, last ten times as long."""

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        self._clock.now += 9 * len(windows) if len(windows) == 2 else 0
        return super()._score(network, windows)


def test_windows_overlap_less_where_a_lack_of_memory_leaves_too_little_time(ten: Path, small: Volume) -> None:
    """2 s to see how long a window takes, 50 lost, 40 to see it again, 40 for 4 windows: 6 are too many."""
    load = Slower.load
    predictor = load(Region.BRAIN, ten, "cpu", precision="float32", time_limit=132, clock=Ticks())
    predictor._room = Room(torch.device("cpu", 0), torch.device("cpu"), 1, 2)
    result = predictor.predict(small)
    assert result.seconds == 2 + 50 + 40 + 40 and len(result.members) == 1
    assert "because of the time limit of 132 s windows overlap by 0.375, not 0.5" in result.warnings


def test_a_window_of_air_is_computed_only_where_there_is_air(ten: Path, small: Volume) -> None:
    """Of 16 voxels and a margin of 2, so 20 more of air on one side are not all in the box."""
    assert timed(ten, None).predict(small).seconds == 10 * 6
    array = np.pad(small.array, ((20, 0), (0, 0), (0, 0)))
    result = timed(ten, None).predict(Volume(array, small.affine, small.header))
    assert result.seconds == 10 * (count_windows((27, 18, 14), 16, 0.5) + 1)
    assert np.ptp(result.working[:15]) == 0 and result.working[0, 0, 0] != result.working[30, 9, 7]


def test_an_error_of_another_kind_is_not_tried_again(
    weights: Path, scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Full.load(Region.BRAIN, weights, "cpu", precision="float32")
    predictor._room, predictor.failures = replace(predictor._room, batch=4), 1
    monkeypatch.setitem(globals(), "NO_MEMORY", (RuntimeError("CUDA error: invalid argument"),))
    with pytest.raises(RuntimeError, match="invalid argument"):
        predictor.predict(scan)
    assert predictor.failures == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_less_memory_on_a_gpu(failures: int, weights: Path, scan: Volume) -> None:
    plain = Predictor.load(Region.BRAIN, weights, "cuda", precision="float32").predict(scan).working
    predictor = Full.load(Region.BRAIN, weights, "cuda", precision="float32")
    predictor._room, predictor.failures = replace(predictor._room, batch=2), failures
    result = predictor.predict(scan)
    assert result.warnings == STEPS[1 : 1 + failures]
    np.testing.assert_allclose(result.working, plain, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("edges", ["hard", "smooth"])
def test_16_bits_move_scores_of_a_shipped_network_by_little(edges: str) -> None:
    """In bfloat16, the coarser of the two, in one window from the middle of the sample brain."""
    manifest = read_manifest(ROOT / "weights" / "brain")
    file = next(member.file for member in manifest.members if member.edges == edges)
    volume = read_volume(ROOT / "samples/brain/colin27.nii.gz")
    middle = tuple(slice(n // 2 - 32, n // 2 + 32) for n in volume.array.shape)
    window = torch.from_numpy(np.ascontiguousarray(to_unit(volume.array, manifest.intensity)[middle]))
    predictor = Predictor.load(Region.BRAIN, ROOT / "weights", "cpu", [file], precision="float32")
    scores = []
    for reduced in (None, torch.bfloat16):
        predictor._reduced = reduced
        with torch.inference_mode():
            scores.append(predictor._score(predictor._networks[0], window[None, None]).numpy())
    difference = np.abs(scores[1] - scores[0])
    assert 0 < difference.mean() < 0.01 and difference.max() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("region", "name"), [("brain", "colin27"), ("abdom", "totalseg3mm")])
def test_the_crop_on_a_sample(region: str, name: str) -> None:
    """Other places of windows, other scores, but no more so than windows moved by half a step."""
    volume = read_volume(ROOT / "samples" / region / f"{name}.nii.gz")
    first = read_manifest(ROOT / "weights" / region).members[0].file
    predictor = Predictor.load(Region(region), ROOT / "weights", "cpu", [first])
    predictor._manifest = predictor.manifest.model_copy(update={"smoothing": 0.0, "context": 0.0})
    air = [(20, 9), (3, 20), (10, 31)]
    array = np.pad(volume.array, air, constant_values=volume.array.min())
    result = predictor.predict(Volume(array, volume.affine, volume.header))
    window, score = predictor.manifest.window, partial(predictor._score, predictor._networks[0])
    image, half = torch.from_numpy(result.image), window // 4
    box = body_box(result.image, Region(region), window // 8)
    assert result.image[box].size < 0.9 * result.image.size
    with torch.inference_mode():
        plain = slide(image, window, 0.5, 0.125, score, batch=2).numpy()
        shifted = pad(image, (half, 0) * 3, value=float(image.min()))
        moved = slide(shifted, window, 0.5, 0.125, score, batch=2).numpy()[half:, half:, half:]
    body = np.zeros(image.shape, bool)
    body[body_box(result.image, Region(region), 0)] = True
    body &= result.image > 0.05
    assert np.abs(result.working - plain)[body].mean() < 0.04

    def agreement(scores: NDArray[np.float32]) -> float:
        return float(np.corrcoef(scores[body], plain[body])[0, 1])

    assert agreement(result.working) > agreement(moved) - 0.02
