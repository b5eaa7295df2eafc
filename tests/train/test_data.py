"""Scans, folds, crops and augmentation."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.intensity import to_unit
from mood_train.augment import Augmentation
from mood_train.config import RegionConfig, load_preset
from mood_train.data import cut, cut_to_edge, data_digest, list_scans, load_scans
from mood_train.folds import make_split, read_split, subject_of, write_split

SHARED_SPLIT = Path(__file__).parents[2] / "../shared/data/split.json"


def _write(path: Path, array: np.ndarray, spacing: float = 1.0) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([spacing, spacing, spacing, 1])), path)
    return path


def _ct(side: int = 24) -> np.ndarray:
    """A round body of 50 HU with an air hole and a table below it, in air."""
    x, y = np.meshgrid(*[np.arange(side) - side / 2] * 2, indexing="ij")
    plane = np.where(x**2 + y**2 < (0.35 * side) ** 2, 50, -1000)
    plane = np.where(x**2 + y**2 < (0.1 * side) ** 2, -1000, plane)
    plane[:, 0] = 100
    return np.repeat(plane[:, :, None], 12, axis=2).astype(np.int16)


@given(
    side=st.tuples(*[st.integers(1, 12)] * 3),
    centre=st.tuples(*[st.integers(-4, 12)] * 3),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_cut_is_numpys_pad_and_slice(
    side: tuple[int, int, int], centre: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    margin = 30
    padded = np.pad(array, margin)
    start = [c - n // 2 + margin for c, n in zip(centre, side, strict=True)]
    expected = padded[tuple(slice(s, s + n) for s, n in zip(start, side, strict=True))]
    assert np.array_equal(cut(array, np.array(centre), side), expected)


def test_scans_are_cached_once_on_their_own_voxels(tmp_path: Path) -> None:
    path = tmp_path / "a1.nii.gz"
    affine = np.array([[0, 0, -3.0, 9], [2.0, 0, 0, 5], [0, 2.0, 0, -4], [0, 0, 0, 1]])  # axes A-S-L
    nib.save(nib.Nifti1Image(_ct(), affine), path)
    place = load_preset("compact").regions[Region.ABDOM]
    (scan,) = load_scans([path], place, tmp_path / "cache")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    (again,) = load_scans([path], place, tmp_path / "cache")
    assert stamps == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert np.array_equal(scan.image, again.image)
    canonical = nib.as_closest_canonical(nib.load(path))
    unit = to_unit(np.asarray(canonical.dataobj, np.float32), place.intensity)
    filled = np.argwhere(unit > 0)
    # one voxel more where there is one
    box = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(filled.min(0), filled.max(0), strict=True))
    assert np.array_equal(scan.image, unit[box].astype(np.float16))
    assert scan.spacing == canonical.header.get_zooms() == (3.0, 2.0, 2.0)
    assert float(scan.image[scan.body].max()) == pytest.approx(0.25 + 150 / 300 * 0.5, abs=2e-3)


def test_voxels_too_small_to_be_true_are_refused(tmp_path: Path) -> None:
    place = load_preset("compact").regions[Region.ABDOM]
    with pytest.raises(UserError, match=r"a1\.nii\.gz.*0\.01 mm wide.*correct the spacing"):
        load_scans([_write(tmp_path / "a1.nii.gz", _ct(), 0.01)], place, tmp_path / "cache")


def test_the_table_falls_off_on_any_voxels(tmp_path: Path) -> None:
    place = load_preset("compact").regions[Region.ABDOM]
    for number, factors in enumerate(((1, 1, 1), (3, 1, 1), (1, 3, 2))):
        ct = _ct(40)
        for axis, factor in enumerate(factors):
            ct = np.repeat(ct, factor, axis=axis)  # the same phantom on finer voxels
        path = tmp_path / f"a{number}.nii.gz"
        nib.save(nib.Nifti1Image(ct, np.diag([*(3 / np.array(factors)), 1])), path)
        (scan,) = load_scans([path], place, tmp_path / "cache")
        table = np.asarray(scan.image) > 0.55
        assert table.any() and not scan.body[table].any()
        area = scan.body.sum() * np.prod(scan.spacing) / (12 * 3)
        assert area == pytest.approx(np.pi * (14 * 3) ** 2, rel=0.1)


def test_tissue_is_body_without_its_air(tmp_path: Path) -> None:
    place = load_preset("compact").regions[Region.ABDOM]
    (scan,) = load_scans([_write(tmp_path / "a1.nii.gz", _ct(40))], place, tmp_path / "cache")
    at_tissue = scan.image[tuple(scan.tissue.T)]
    at_places = scan.image[tuple(scan.places.T)]
    assert at_tissue.min() > place.body_above > at_places.min()
    assert len(scan.tissue) == (at_places > place.body_above).sum()
    assert scan.body[tuple(scan.tissue.T)].all()


def test_the_body_has_its_holes_but_not_the_table(tmp_path: Path) -> None:
    place = load_preset("reference").regions[Region.ABDOM]
    (scan,) = load_scans([_write(tmp_path / "a1.nii.gz", _ct(40))], place, tmp_path / "cache")
    assert 0.9 < scan.body[:, :, 6].sum() / (np.pi * 14**2) < 1.1
    hole = (np.asarray(scan.image) < 0.01) & scan.body
    assert hole[:, :, 6].sum() > 0.8 * np.pi * 4**2
    table = np.asarray(scan.image) > 0.55
    assert not scan.body[table].any() and table.any()


def test_a_ct_is_no_brain(tmp_path: Path) -> None:
    place = load_preset("compact").regions[Region.BRAIN]
    with pytest.raises(UserError, match=r"a1.nii.gz.*CT.*--region abdom"):
        load_scans([_write(tmp_path / "a1.nii.gz", _ct())], place, tmp_path / "cache")


def test_lists_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.nii"):
        list_scans(tmp_path)
    _write(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.float32))
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))
    assert list_scans(listing) == [tmp_path / "a.nii.gz"] == list_scans(tmp_path)
    listing.write_text(json.dumps({"training": ["b.nii.gz"]}))
    with pytest.raises(UserError, match=r"b\.nii\.gz"):
        list_scans(listing)
    listing.write_text("{}")
    with pytest.raises(UserError, match="'training'"):
        list_scans(listing)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("sub-01_T1w.nii.gz", "sub-01"),
        ("ctc0518_abdomen.nii.gz", "ctc0518"),
        ("cort_liver.nii.gz", "cort_liver"),
        ("pancreas_cb001.nii.gz", "pancreas_cb001"),
        ("x.nii", "x"),
        ("BraTS2021_00001.nii.gz", "BraTS2021_00001"),
        ("ds002748_sub-07_T1w.nii.gz", "sub-07"),
    ],
)
def test_subjects_of_names(name: str, subject: str) -> None:
    assert subject_of(name) == subject


@given(count=st.integers(5, 40), doubled=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_splits_keep_subjects_together_and_lose_nobody(count: int, doubled: int, seed: int) -> None:
    names = [f"sub-{n:02d}_a.nii.gz" for n in range(count)]
    names += [f"sub-{n:02d}_b.nii.gz" for n in range(doubled)]
    split = make_split(names, seed)
    parts = [split.set_aside, *split.folds]
    assert sorted(name for part in parts for name in part) == sorted(names)
    owners = [{subject_of(name) for name in part} for part in parts]
    assert sum(map(len, owners)) == count
    assert len(owners[0]) == (count // 5 if count > 5 else 0)
    assert all(owners[1:])
    assert max(map(len, owners[1:])) - min(map(len, owners[1:])) <= 1
    assert split == make_split(reversed(names), seed)
    assert not split.training(2) & (set(split.set_aside) | split.held_out(2))


def test_a_leaked_subject_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    write_split(path, Region.BRAIN, make_split([f"sub-{n:02d}.nii.gz" for n in range(10)], 0))
    assert len(read_split(path, Region.BRAIN).folds) == 5
    content = json.loads(path.read_text())
    content["brain"]["folds"][0].append(content["brain"]["set_aside"][0].replace(".nii", "_again.nii"))
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="_again"):
        read_split(path, Region.BRAIN)


def test_a_split_is_never_dealt_anew(tmp_path: Path) -> None:
    """Or whoever adds scans later judges networks on subjects that they were trained on."""
    path = tmp_path / "split.json"
    names = [f"sub-{n:02d}.nii.gz" for n in range(10)]
    for region in Region:
        write_split(path, region, make_split(names, 0))
    before = path.read_bytes()
    write_split(path, Region.BRAIN, make_split(names, 0))
    with pytest.raises(UserError, match="has another split of brain"):
        write_split(path, Region.BRAIN, make_split([*names, "sub-10.nii.gz"], 0))
    assert path.read_bytes() == before
    assert read_split(path, Region.BRAIN) == read_split(path, Region.ABDOM) == make_split(names, 0)
    for damaged in (before[:-9], b"[1]"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is no split file"):
            write_split(path, Region.BRAIN, make_split(names, 0))
        assert path.read_bytes() == damaged


@pytest.mark.skipif(not SHARED_SPLIT.exists(), reason="the shared split of real scans is not here")
@pytest.mark.parametrize("region", list(Region))
def test_no_set_aside_subject_trains(region: Region) -> None:
    split = read_split(SHARED_SPLIT, region)
    aside = {subject_of(name) for name in split.set_aside}
    for fold in (None, 0, 1, 2, 3, 4):
        assert not aside & {subject_of(name) for name in split.training(fold)}


def test_the_digest_knows_names_and_contents(tmp_path: Path) -> None:
    place = load_preset("reference").regions[Region.BRAIN]
    base = np.ones((4, 4, 4), np.float32)
    paths = [_write(tmp_path / f"s{n}.nii.gz", base * (n + 1)) for n in range(2)]
    scans = load_scans(paths, place, tmp_path / "cache")
    assert data_digest(scans) == data_digest(scans[::-1])
    assert data_digest(scans) != data_digest(scans[:1])


def test_scans_are_prepared_anew_only_for_what_shapes_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "s.nii.gz", np.full((8, 8, 8), 5.0, np.float32))
    cache = tmp_path / "cache"
    for changed in ({}, {"smoothing": 3.0}, {"zoom": 0.3}, {"noise": 0.2}, {"spacing": 2.0}):
        load_scans([path], _place(**changed), cache)
        assert len(list(cache.iterdir())) == 3
    load_scans([path], _place(body_above=0.1), cache)
    assert len(list(cache.iterdir())) == 6


def _place(**changed: float) -> RegionConfig:
    return load_preset("reference").regions[Region.BRAIN].model_copy(update=changed)


def test_noise_is_as_rare_and_as_strong_as_the_region_says() -> None:
    image = np.full((20, 20, 20), 0.5, np.float32)
    augmentation = Augmentation(16, _place(intensity_rate=0.0))
    still = [augmentation.intensity(image, np.random.default_rng(seed)) for seed in range(20)]
    assert max(patch.std() for patch in still) < 1e-6
    augmentation = Augmentation(16, _place(intensity_rate=1.0, noise=0.2))
    # bias field, contrast and blur come with it, so compare the texture between neighbours alone
    rough = [augmentation.intensity(image, np.random.default_rng(seed)) for seed in range(20)]
    steps = [float(np.diff(patch[4:12, 4:12, 4:12], axis=2).std()) for patch in rough]
    assert 0 < max(steps) < 0.2 * 2**0.5


def test_a_curve_keeps_the_order_of_intensities_and_their_ends() -> None:
    image = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    order = np.argsort(image, axis=None)
    augmentation = Augmentation(16, _place(intensity_rate=0.0, curve_rate=1.0))
    largest = []
    for seed in range(20):
        patch = augmentation.intensity(image, np.random.default_rng(seed))
        assert (np.diff(patch.ravel()[order]) >= 0).all()
        assert abs(patch.min() - image.min()) < 1e-6 and abs(patch.max() - image.max()) < 1e-6
        largest.append(float(np.abs(patch - image).max()))
    assert min(largest) > 0.02 and max(largest) > 0.1


def test_patches_are_moved_as_often_and_zoomed_as_far_as_the_region_says() -> None:
    line = np.arange(40) - 19.5
    ball = (np.add.outer(np.add.outer(line**2, line**2), line**2) < 10**2).astype(np.float32)

    def volumes(place_rate: float, zoom: float) -> list[float]:
        augmentation = Augmentation(32, _place(place_rate=place_rate, zoom=zoom))
        patches = [augmentation.place(ball[None], np.random.default_rng(seed)) for seed in range(60)]
        return [float(patch.sum()) / float(ball.sum()) for patch in patches]

    assert set(volumes(0.0, 0.25)) == {1.0}
    zoomed = [volume ** (1 / 3) for volume in volumes(1.0, 0.25)]
    assert 0.72 < min(zoomed) < 0.82 and 1.18 < max(zoomed) < 1.28
    some = sum(abs(volume - 1) > 0.06 for volume in volumes(0.5, 0.25))  # a turn loses less
    assert 15 < some < 40


def test_intensities_change_but_zeros_stay() -> None:
    augmentation = Augmentation(16, _place(gain=0.2, intensity_rate=0.3))
    image = np.zeros((24, 20, 9), np.float32)
    image[4:18, 6:20, 2:7] = 0.6
    seen = set()
    for seed in range(60):
        patch = augmentation.intensity(image, np.random.default_rng(seed))
        assert patch.shape == image.shape and patch.dtype == np.float32
        assert patch.min() >= 0 and patch.max() <= 1
        assert not patch[image == 0].any()
        seen.add(patch.tobytes())
    assert len(seen) > 40  # most seeds change something


def test_crops_move_together() -> None:
    augmentation = Augmentation(16, _place(place_rate=0.5))
    first = np.random.default_rng(0).random((24, 24, 24), dtype=np.float32)
    moved = 0
    for seed in range(40):
        crops = augmentation.place(np.stack([first, first / 2]), np.random.default_rng(seed))
        assert crops.shape == (2, 16, 16, 16) and crops.dtype == np.float32
        assert np.allclose(crops[0] / 2, crops[1], atol=1e-6)
        moved += not np.allclose(crops[0], first[4:20, 4:20, 4:20])
    assert moved > 30


def test_augmentation_draws_from_its_generator_alone() -> None:
    augmentation = Augmentation(16, _place(intensity_rate=0.5, place_rate=0.5))
    image = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)

    def both() -> np.ndarray:
        rng = np.random.default_rng(5)
        return augmentation.place(augmentation.intensity(image, rng)[None], rng)

    one = both()
    np.random.seed(1)
    assert np.array_equal(one, both())


def test_a_box_that_leaves_the_scan_goes_on_with_its_outermost_voxels() -> None:
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float16)
    padded = np.pad(array, 8, mode="edge").astype(np.float32)
    for centre, shape in (((0, 0, 0), (4, 5, 6)), ((4, 3, 6), (7, 3, 8)), ((2, 3, 3), (3, 3, 3))):
        first = np.array(centre) - np.array(shape) // 2 + 8
        expected = padded[tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))]
        assert np.array_equal(cut_to_edge(array, np.array(centre), shape), expected)
