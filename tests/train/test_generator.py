"""Samples: what changed, what did not, and where the foreign patches come from."""

import hashlib

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_train.anomalies.generator import AnomalyGenerator, Sample, stretch
from mood_train.anomalies.textures import (
    OWN_NOISE,
    OWN_ODDS,
    OWN_SHIFT,
    OWN_ZOOM,
    MemoryBank,
    augment_texture,
    change_own,
    same_scan_patch,
)
from mood_train.config import RunConfig
from mood_train.data import CachedScan, binned
from mood_train.trainer import SampleDataset, sample_numbers
from tests.train.conftest import LEVELS, cached, make_scan


def _bytes(sample: Sample) -> str:
    parts = (sample.image, sample.label, sample.normal, sample.foreign)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _with(config: RunConfig, **anomalies: object) -> RunConfig:
    changed = config.preset.anomalies.model_copy(update=anomalies)
    return config.model_copy(update={"preset": config.preset.model_copy(update={"anomalies": changed})})


def _in_place(config: RunConfig, **place: object) -> RunConfig:
    """Without flips, turns, zooms and changes of intensity."""
    still = {"place_rate": 0.0, "intensity_rate": 0.0, "gain": 0.0} | place
    regions = config.preset.regions | {config.region: config.place.model_copy(update=still)}
    return config.model_copy(update={"preset": config.preset.model_copy(update={"regions": regions})})


@pytest.fixture(params=[(1.0, 1.0, 1.0), (0.7, 0.9, 3.0)], ids=["working", "own"])
def any_scans(request: pytest.FixtureRequest) -> list[CachedScan]:
    """Three subjects on the working grid, or on voxels of their own, one of them on others still."""
    spacings = [request.param, request.param, request.param[::-1]]
    levels = zip(LEVELS.items(), spacings, strict=True)
    return [make_scan(name, level, spacing=spacing) for (name, level), spacing in levels]


@pytest.mark.parametrize("edges", ["hard", "smooth"])
@pytest.mark.parametrize("poisson", [0.0, 1.0])
def test_outside_the_label_not_a_bit_changes(
    any_scans: list[CachedScan], tiny_run: RunConfig, edges: str, poisson: float
) -> None:
    run = _with(tiny_run.model_copy(update={"edges": edges}), poisson_share=poisson)
    generator = AnomalyGenerator(any_scans, run)
    changed = 0
    for number in range(12):
        sample = generator.sample(number)
        untouched = sample.label == 0
        assert np.array_equal(sample.image[untouched], sample.normal[untouched])
        for array in (sample.image, sample.label, sample.normal, sample.foreign):
            assert array.dtype == np.float32 and array.shape == (32, 32, 32)
            assert array.min() >= 0 and array.max() <= 1
        changed += int((sample.image != sample.normal).sum())
    assert changed > 1000


def test_hard_labels_hold_only_the_blending_factor(scans: list[CachedScan], tiny_run: RunConfig) -> None:
    run = _in_place(_with(tiny_run.model_copy(update={"edges": "hard"}), max_count=1))
    generator = AnomalyGenerator(scans, run)
    for number in range(10):
        values = np.unique(generator.sample(number).label)
        assert len(values) <= 2 and values[0] == 0
        assert all(0.3 <= value <= 1 for value in values[1:])


def test_linear_blend_is_reproduced_from_its_parts(scans: list[CachedScan], tiny_run: RunConfig) -> None:
    generator = AnomalyGenerator(scans, _in_place(_with(tiny_run, max_count=1)))
    for number in range(8):
        s = generator.sample(number)
        expected = s.normal * (1 - s.label) + s.foreign * s.label
        assert np.allclose(s.image, expected, atol=1e-6)


def test_training_reads_image_and_label_of_the_very_sample(
    any_scans: list[CachedScan], tiny_run: RunConfig
) -> None:
    busy = _in_place(tiny_run, place_rate=0.5, intensity_rate=0.5)
    generator = AnomalyGenerator(any_scans, busy)
    for number in range(10):
        sample, (image, label) = generator.sample(number), generator.pair(number)
        assert np.array_equal(sample.image, image) and np.array_equal(sample.label, label)


def _noise_scan(name: str, seed: int, spacing: tuple[float, float, float]) -> CachedScan:
    shape = tuple(round(96 / step) for step in spacing)
    image = np.random.default_rng(seed).uniform(0.2, 0.8, shape).astype(np.float32)
    body = np.zeros(shape, bool)
    body[tuple(slice(round(n * 0.35), round(n * 0.65)) for n in shape)] = True  # windows stay in the scan
    return cached(name, image, body, spacing)


@pytest.mark.parametrize("other_share", [0.0, 1.0])
def test_anomalies_lie_on_the_scans_own_slices(tiny_run: RunConfig, other_share: float) -> None:
    """Between two slices of the scan interpolation is straight, within an anomaly as beside it."""
    scans = [_noise_scan(f"sub-{n}", n, (1.0, 1.0, 4.0)) for n in range(2)]
    plain = _with(
        tiny_run.model_copy(update={"edges": "hard"}),
        other_share=other_share,
        alpha_min=1.0,
        shapes={"cuboid": 1.0},
        min_size=0.5,
        max_count=1,
    )
    generator, seen = AnomalyGenerator(scans, _in_place(plain)), 0
    for number in range(12):
        sample = generator.sample(number)
        bend = np.abs(np.diff(sample.image, n=2, axis=2))
        beside = (sample.label == 0).all(axis=2)
        straight = bend[beside].max(axis=0) < 1e-3
        assert 14 <= straight.sum() <= 16  # of each four planes two lie wholly between two slices
        ones = sample.label == 1
        whole = ones[:, :, :-2] & ones[:, :, 1:-1] & ones[:, :, 2:] & straight
        assert bend[whole].max(initial=0.0) < 1e-3
        seen += int(whole.sum())
    assert seen > 1000


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (1.5, 0.8, 3.0)])
def test_anomalies_have_the_same_size_in_mm_on_any_voxels(
    tiny_run: RunConfig, spacing: tuple[float, float, float]
) -> None:
    scans = [_noise_scan(f"sub-{n}", n, spacing) for n in range(2)]
    run = _with(
        tiny_run.model_copy(update={"edges": "hard"}),
        alpha_min=1.0,
        shapes={"sphere": 1.0},
        min_size=0.5,
        max_size=0.5,
        max_count=1,
    )
    generator = AnomalyGenerator(scans, _in_place(run))
    for number in range(6):
        label = generator.sample(number).label.astype(np.float64)
        assert label.sum() == pytest.approx(np.pi / 6 * 16**3, rel=0.07)  # a ball of 16 mm, rims in part
        points = np.indices(label.shape).reshape(3, -1)
        spread = np.sqrt(np.cov(points, aweights=label.ravel()).diagonal())
        assert spread == pytest.approx([8 / 5**0.5] * 3, rel=0.1)  # of a ball's points along an axis


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.7, 2.0), (2.3, 1.1, 5.0)])
def test_the_window_is_on_the_working_grid(tiny_run: RunConfig, spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(150 / step) for step in spacing)
    mm = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    )
    slope = np.array([0.001, 0.002, 0.003])
    image = (0.05 + np.tensordot(slope, mm, 1)).astype(np.float32)
    middle = tuple(slice(n // 3, n - n // 3) for n in shape)
    body = np.zeros(shape, bool)
    body[middle] = True
    scans = [cached(f"sub-{n}", image, body, spacing) for n in range(2)]
    run = _in_place(_with(tiny_run, rate=0.0))
    for number in range(5):
        normal = AnomalyGenerator(scans, run).sample(number).normal
        for axis in range(3):
            steps = np.diff(normal, axis=axis)
            assert steps.mean() == pytest.approx(slope[axis], rel=0.01)
            assert steps == pytest.approx(slope[axis], abs=6e-4)  # half precision


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (1.7, 0.6, 7.0)])
@pytest.mark.parametrize("poisson", [0.0, 1.0])
def test_foreign_patches_fill_their_shapes(
    tiny_run: RunConfig, spacing: tuple[float, float, float], poisson: float
) -> None:
    """No air comes in with a patch of a scan that has none, and thick slices lose no anomaly."""
    scans = [_noise_scan("sub-0", 0, (0.8, 0.8, 0.8)), _noise_scan("sub-1", 1, spacing)]
    run = tiny_run.model_copy(update={"edges": "hard"})
    run = _with(run, max_count=1, min_size=0.5, shapes={"sphere": 1.0}, poisson_share=poisson)
    generator = AnomalyGenerator(scans, _in_place(run))
    for number in range(16):
        sample = generator.sample(number)
        assert sample.label.any()
        assert not (sample.foreign[sample.label == sample.label.max()] == 0).all(axis=0).any()


def test_the_largest_shapes_fit_without_a_margin(tiny_run: RunConfig) -> None:
    hard = tiny_run.model_copy(update={"edges": "hard"})
    run = _with(hard, min_size=0.98, max_size=0.99, shapes={"cuboid": 1.0}, poisson_share=0.5)
    patches = run.preset.patches.model_copy(update={"margin": 1.0})
    run = run.model_copy(update={"preset": run.preset.model_copy(update={"patches": patches})})
    for spacing in ((1.0, 1.0, 1.0), (0.8, 0.9, 5.0)):
        generator = AnomalyGenerator([_noise_scan(f"sub-{n}", n, spacing) for n in range(2)], run)
        assert all(generator.sample(number).label.any() for number in range(8))


def test_a_scan_ends_at_its_last_slice_as_at_inference(tiny_run: RunConfig) -> None:
    spacing = (1.0, 1.0, 5.0)
    image = np.full((60, 60, 6), 0.5, np.float32)  # 25 mm between the outermost slices
    scans = [cached(f"sub-{n}", image, image > 0, spacing) for n in range(2)]
    generator = AnomalyGenerator(scans, _in_place(_with(tiny_run, rate=0.0)))
    for number in range(10):
        normal = generator.sample(number).normal
        assert set(np.unique(normal)) <= {0.0, 0.5}
        longest = (normal > 0).any(axis=(0, 1)).sum()
        assert 8 <= longest <= 26


def test_turns_are_turns_in_mm() -> None:
    """A ball in mm is turned into itself, on thick slices too."""
    spacing = (1.0, 1.0, 3.0)
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (31, 31, 11)], indexing="ij")
    ball = 0.5 + 0.3 * np.exp(-(x**2 + y**2 + (3 * z) ** 2) / 100).astype(np.float32)
    turned = 0
    for seed in range(60):
        own = change_own(ball, "hard", np.random.default_rng(seed), spacing)
        texture = augment_texture(ball, np.random.default_rng(seed), spacing)
        for changed in (own, texture):
            difference = np.abs(changed - ball)[8:23, 8:23, 3:8]
            turned += 0 < difference.max() < 0.02
    assert turned > 60 * 0.2  # a fifth of both, but for textures that are also shifted or noisy


def test_stretched_patches_keep_their_middle_and_their_slope() -> None:
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in (21, 16, 9)], indexing="ij")
    array = (0.5 + 0.01 * x - 0.005 * y + 0.02 * z).astype(np.float32)
    there = stretch(array, (1.0, 2.0, 3.0), (2.0, 1.0, 1.5))
    assert there.shape == (10, 32, 18)
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in there.shape], indexing="ij")
    expected = 0.5 + 0.01 * 2 * x - 0.005 * y / 2 + 0.02 * z / 2
    assert there == pytest.approx(np.clip(expected, 0, 1), abs=1e-5)
    assert stretch(array, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0 + 1e-6)) is array


def test_brain_anomalies_stay_in_the_foreground(scans: list[CachedScan], tiny_run: RunConfig) -> None:
    generator = AnomalyGenerator(scans, tiny_run)
    samples = [generator.sample(number) for number in range(20)]
    assert any((sample.normal == 0).any() for sample in samples)
    assert not any(sample.label[sample.normal == 0].any() for sample in samples)


def test_the_rate_is_kept(scans: list[CachedScan], tiny_run: RunConfig) -> None:
    generator = AnomalyGenerator(scans, _with(tiny_run, rate=0.5))
    with_anomaly = sum(bool(generator.sample(number).label.any()) for number in range(120))
    assert 41 <= with_anomaly <= 79  # three and a half standard deviations about 60


def test_the_same_seed_gives_the_same_bytes_in_any_order(
    any_scans: list[CachedScan], tiny_run: RunConfig
) -> None:
    forwards, backwards = AnomalyGenerator(any_scans, tiny_run), AnomalyGenerator(any_scans, tiny_run)
    ours = [_bytes(forwards.sample(number)) for number in range(6)]
    theirs = [_bytes(backwards.sample(number)) for number in reversed(range(6))]
    assert ours == theirs[::-1]
    other = AnomalyGenerator(any_scans, tiny_run.model_copy(update={"seed": 4}))
    assert len({*ours, *(_bytes(other.sample(number)) for number in range(6))}) == 12


def test_workers_draw_apart_and_agree_with_none(any_scans: list[CachedScan], tiny_run: RunConfig) -> None:
    dataset = SampleDataset(AnomalyGenerator(any_scans, tiny_run))

    def first(workers: int) -> list[bytes]:
        loader = DataLoader(dataset, batch_size=2, sampler=sample_numbers(0, 2, 0, 1), num_workers=workers)
        batches = iter(loader)
        images = [image.numpy().tobytes() for _ in range(3) for image in next(batches)[0]]
        del batches
        return images

    alone = first(0)
    assert len(set(alone)) == 6
    assert first(2) == alone


def test_ranks_share_the_samples_without_overlap() -> None:
    streams = [sample_numbers(5, 2, rank, 3) for rank in range(3)]
    drawn = [[next(stream) for _ in range(8)] for stream in streams]
    assert sorted(number for stream in drawn for number in stream) == list(range(30, 54))


def test_foreign_patches_are_never_of_the_same_subject(scans: list[CachedScan], tiny_run: RunConfig) -> None:
    bank = MemoryBank(scans, 8, seed=0)
    rng = np.random.default_rng(0)
    for number in range(200):
        subject = scans[number % 3].subject
        assert scans[bank.draw(number, subject, 12, rng).scan].subject != subject
    with pytest.raises(UserError, match="same subject"):
        AnomalyGenerator(scans[:1], tiny_run)


def test_after_a_thousand_draws_patches_still_have_their_scans_intensities(scans: list[CachedScan]) -> None:
    bank = MemoryBank(scans, 50, seed=1)
    rng = np.random.default_rng(1)
    for number in range(1000):
        patch = bank.draw(number, "nobody", 12, rng)
    for number in range(1000, 1060):
        patch = bank.draw(number, "nobody", 12, rng)
        tissue = patch.array[patch.array > 0]
        assert abs(float(tissue.mean()) - LEVELS[scans[patch.scan].subject]) < 0.025


def test_the_bank_replaces_one_patch_an_image(scans: list[CachedScan]) -> None:
    bank = MemoryBank(scans, 5, seed=2)

    def held(image: int) -> set[bytes]:
        rng = np.random.default_rng(0)
        return {bank.draw(image, "nobody", 8, rng).array.tobytes() for _ in range(80)}

    now, later = held(100), held(101)
    assert len(now) == len(later) == 5
    assert len(now & later) == 4


def test_no_foreign_patch_is_cut_out_of_air(tiny_run: RunConfig) -> None:
    whole = make_scan("sub-01", 0.5, side=96, spacing=(2.0, 2.0, 2.0))
    line = np.arange(48) - 24
    gas = (np.add.outer(np.add.outer(line**2, line**2), line**2) < 13**2) & whole.body
    image = np.where(gas, 0.05, whole.image).astype(np.float32)
    above = tiny_run.preset.regions[Region.ABDOM].body_above
    bank = MemoryBank([cached("sub-01", image, whole.body, whole.spacing, above)], 50, 0)
    assert min(float(bank.patch(number, 18.0).array[4, 4, 4]) for number in range(200)) > above


def test_voxels_longer_than_the_working_grids_may_stay_as_they_are(tiny_run: RunConfig) -> None:
    """Then the window has a scan's own voxels, bit for bit, and edges lie between two of them."""
    scans = [_noise_scan(f"sub-{n}", n, (1.0, 1.5, 3.0)) for n in range(2)]
    own = _with(tiny_run.model_copy(update={"edges": "hard"}), alpha_min=1.0)
    own = _in_place(own, upsample=False)
    generator = AnomalyGenerator(scans, own)
    values = [np.append(scan.image.astype(np.float32), 0) for scan in scans]  # 0 beyond the scan
    for number in range(8):
        sample = generator.sample(number)
        assert any(np.isin(sample.normal, known).all() for known in values)
        assert set(np.unique(sample.label)) <= {0.0, 1.0}


def test_what_changes_nothing_is_no_anomaly(tiny_run: RunConfig) -> None:
    """A body full of air, as a colon may be: darker, turned or zoomed it is what it was."""
    body = np.ones((96, 96, 96), bool)
    scans = [cached(f"sub-{n}", np.zeros(body.shape, np.float32), body, (1.0, 1.0, 1.0)) for n in range(2)]
    run = _with(tiny_run, own_share=1.0, other_share=0.0).model_copy(update={"region": Region.ABDOM})
    generator, labelled = AnomalyGenerator(scans, _in_place(run)), 0
    for number in range(40):
        sample = generator.sample(number)
        assert sample.label.any() == (sample.image != sample.normal).any()
        labelled += bool(sample.label.any())
    assert 5 < labelled < 35  # brighter or noisy air is one


def test_a_patch_is_binned_as_the_image_is(tiny_run: RunConfig) -> None:
    """Averages of 3 x 3 voxels of noise spread a third as far, in the image as in what is blended into it."""
    scans = [_noise_scan(f"sub-{n}", n, (1.0, 1.0, 1.0)) for n in range(2)]
    hard = tiny_run.model_copy(update={"edges": "hard"})
    run = _in_place(_with(hard, max_count=1, alpha_min=1.0), upsample=False, bins=(1, 3))
    generator, spread = AnomalyGenerator(scans, run), 0.6 / 12**0.5
    seen = set()
    for number in range(24):
        sample = generator.sample(number)
        inside = sample.label > 0
        if inside.sum() < 300:
            continue
        deviations = np.std(sample.normal[sample.normal > 0]), np.std(sample.foreign[inside])
        known = 1 if deviations[0] > spread / 2 else 3
        seen.add(known)
        if deviations[1] < 0.1 + spread:  # neither shifted nor noisy
            assert deviations[1] == pytest.approx(spread / known, rel=0.5)
    assert seen == {1, 3}


def test_bins_average_within_slices(tiny_run: RunConfig) -> None:
    scan = _noise_scan("sub-0", 0, (1.0, 1.5, 3.0))
    image = scan.image.astype(np.float64)[:-1]  # an odd number of voxels: the last is dropped
    scan = cached("sub-0", image.astype(np.float32), scan.body[:-1], scan.spacing)
    twice = binned(scan, 2, 0.0)
    x, y, z = scan.image.shape
    assert twice.spacing == (2.0, 3.0, 3.0)
    assert twice.image.shape == twice.body.shape == (x // 2, y // 2, z)
    expected = sum(image[a : x // 2 * 2 : 2, b : y // 2 * 2 : 2] for a in (0, 1) for b in (0, 1)) / 4
    np.testing.assert_allclose(twice.image, expected, atol=1e-3)  # half precision
    assert twice.body[tuple(twice.places.T)].all()


def test_same_scan_patches_come_from_that_scan_and_another_place(scans: list[CachedScan]) -> None:
    middle = np.array([24, 24, 24])
    for seed in range(20):
        patch = same_scan_patch(scans[1], 1, middle, 12, np.random.default_rng(seed))
        tissue = patch.array[patch.array > 0]
        assert patch.scan == 1 and abs(float(tissue.mean()) - LEVELS["sub-02"]) < 0.025


def test_same_scan_patches_lie_half_a_side_away() -> None:
    """Three scans tell by their brightness where along an axis a voxel lies; equal seeds, equal places."""
    middle, side = np.array([24, 24, 24]), 25  # its middle voxel stays there in a flip
    places = np.indices((48, 48, 48)).astype(np.float32)
    body = np.ones((48, 48, 48), bool)
    along = [cached(f"sub-{axis}", (1 + places[axis]) / 64, body, (1.0, 1.0, 1.0)) for axis in range(3)]
    for seed in range(50):
        patches = [
            same_scan_patch(scan, 0, middle, side, np.random.default_rng(seed)).array for scan in along
        ]
        centre = np.array([float(patch[side // 2, side // 2, side // 2]) * 64 - 1 for patch in patches])
        assert np.abs(centre - middle).max() >= side / 2


@pytest.mark.parametrize("edges", ["hard", "smooth"])
def test_a_change_in_place_is_one_of_four_and_never_faint(edges: str) -> None:
    line = np.arange(25) - 12.0
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    ball = (0.5 + 0.04 * np.cos(radius / 2)).astype(np.float32)  # turns into itself
    wedge = (0.5 + 0.04 * np.sin(x / 2)).astype(np.float32)
    kinds = {"shift": 0, "noise": 0, "turn": 0, "zoom": 0}
    for seed in range(120):
        of_ball = change_own(ball, edges, np.random.default_rng(seed)) - ball
        of_wedge = change_own(wedge, edges, np.random.default_rng(seed)) - wedge
        core = of_ball[6:19, 6:19, 6:19]  # a turn brings in mirrored corners
        if core.std() < 1e-6:
            kinds["shift"] += 1
            assert OWN_SHIFT[0] <= abs(core.mean()) <= OWN_SHIFT[1]
        elif np.abs(core).max() < 0.01:
            kinds["turn"] += 1
            assert of_wedge.std() > 0.005
        elif np.abs(core - np.flip(core)).max() < 1e-5:
            kinds["zoom"] += 1
            factors = np.concatenate([np.linspace(*OWN_ZOOM, 200), 1 / np.linspace(*OWN_ZOOM, 200)])
            along = ball[12:, 12, 12] + of_ball[12:, 12, 12]
            # three times as far as this, and the array is mirrored
            errors = [np.abs(0.5 + 0.04 * np.cos(np.arange(4) * f / 2) - along[:4]).max() for f in factors]
            assert min(errors) < 0.005
        else:
            kinds["noise"] += 1
            assert 0.95 * OWN_NOISE[0] < of_ball.std() < 1.05 * OWN_NOISE[1]
    for count, share in zip(kinds.values(), OWN_ODDS[edges], strict=True):
        assert abs(count - 120 * share) < 3.5 * np.sqrt(120 * share * (1 - share))


def test_a_patch_of_its_own_place_needs_no_second_subject(
    scans: list[CachedScan], tiny_run: RunConfig
) -> None:
    run = _with(tiny_run, other_share=0.0, own_share=1.0, max_count=1)
    generator = AnomalyGenerator(scans[:1], run)
    level, shifts = LEVELS["sub-01"], 0
    for number in range(30):
        sample = generator.sample(number)
        inside = (sample.label > 0) & (sample.normal > 0.5 * level)
        step = (sample.foreign - sample.normal)[inside & (sample.foreign > 0)]
        shifts += int(step.size > 0 and step.std() < 1e-6)
    assert shifts >= 2  # a quarter of 30, but for those clipped at 0
