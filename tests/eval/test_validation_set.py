"""Images, labels and index of a set must tell one story, and never about a scan that trained."""

import csv
import hashlib
import json
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mood_eval.anomalies import Kind
from mood_eval.body import body_mask
from mood_eval.split import judge_scans, training_scans
from mood_eval.unseen import unseen_kinds
from mood_eval.validation_set import (
    HEALTHY,
    Case,
    Index,
    Recipe,
    default_counts,
    make_set,
    plan_cases,
    read_index,
)
from mood_infer.challenge import Region, find_scans
from mood_infer.errors import UserError
from mood_infer.intensity import CurveRule, QuartileRule, to_unit
from mood_infer.volume import read_volume
from mood_train.folds import read_split, subject_of


def _recipe(**changes: object) -> Recipe:
    fields = {"region": Region.BRAIN, "seed": 5, "counts": default_counts(Region.BRAIN, "both", 3, 3)}
    return Recipe(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    out = tmp_path_factory.mktemp("set")
    return out / "brain", make_set(find_scans(scans), out, _recipe())


def _arrays(folder: Path, case: Case) -> tuple[np.ndarray, np.ndarray]:
    image = np.asarray(nib.load(folder / "toy" / case.name).dataobj)
    label = np.asarray(nib.load(folder / "toy_label" / "pixel" / case.name).dataobj)
    return image, label


def test_table_one_is_the_default() -> None:
    counts = default_counts(Region.BRAIN, "seen")
    assert counts == {HEALTHY: 50} | {kind.value: 30 for kind in Kind}
    assert sum(counts.values()) == 260


def test_every_image_is_its_source_outside_the_label(made: tuple[Path, Index], scans: Path) -> None:
    folder, index = made
    for case in index.cases:
        source = to_unit(read_volume(scans / case.source).array, QuartileRule())
        image, label = _arrays(folder, case)
        assert image.dtype == np.float32 and label.dtype == np.uint8
        assert set(np.unique(label)) <= {0, 1}
        assert np.array_equal(image[label == 0], source[label == 0])
        body = body_mask(source, Region.BRAIN, (3, 3, 4))
        assert not np.any(label[~body])
        assert (case.kind == HEALTHY) == (not label.any())
        assert (case.kind == HEALTHY) == np.array_equal(image, source)
        assert image.min() >= 0 and image.max() <= 1


def test_affines_are_the_sources(made: tuple[Path, Index], scans: Path) -> None:
    folder, index = made
    for case in index.cases:
        source = nib.load(scans / case.source)
        for path in (folder / "toy" / case.name, folder / "toy_label" / "pixel" / case.name):
            image = nib.load(path)
            assert np.allclose(image.affine, source.affine)
            assert image.header["sform_code"] == source.header["sform_code"]


def test_index_agrees_with_the_labels(made: tuple[Path, Index]) -> None:
    folder, index = made
    whole = 0
    for case in index.cases:
        _, label = _arrays(folder, case)
        assert case.voxels == label.sum()
        assert case.volume_ml == pytest.approx(label.sum() * 36 / 1000)
        sample = (folder / "toy_label" / "sample" / f"{case.name}.txt").read_text()
        assert int(sample) == int(label.any())
        if case.centre_voxel is None or case.radius_mm is None:
            assert case.kind == HEALTHY
            continue
        affine = nib.load(folder / "toy" / case.name).affine
        assert np.allclose(nib.affines.apply_affine(affine, case.centre_voxel), case.centre_mm)
        if case.kind in list(Kind):
            voxels = np.argwhere(label)
            distance = np.linalg.norm((voxels - case.centre_voxel) * (3, 3, 4), axis=1)
            assert distance.max() < case.radius_mm
            assert label[case.centre_voxel]
            lows, highs = voxels.min(0), voxels.max(0)
            reach = np.ceil(case.radius_mm / np.array([3, 3, 4])) - 1
            if np.array_equal(highs - lows, 2 * reach):  # not cut by the body's edge
                whole += 1
                assert np.array_equal((lows + highs) / 2, case.centre_voxel)
    assert whole > 5


def test_counts_families_and_table(made: tuple[Path, Index]) -> None:
    folder, index = made
    assert Counter(case.kind for case in index.cases) == _recipe().counts
    seen = {case.kind for case in index.cases if case.family == "seen"}
    unseen = {case.kind for case in index.cases if case.family == "unseen"}
    assert seen == {kind.value for kind in Kind}
    assert unseen == {kind.value for kind in unseen_kinds(Region.BRAIN)}
    with (folder / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [case.name for case in index.cases]
    assert [row["kind"] for row in rows] == [case.kind for case in index.cases]
    assert read_index(folder / "index.json") == index
    # the names give nothing away: they do not follow the types
    assert [case.kind for case in index.cases] != sorted(case.kind for case in index.cases)


def test_a_scan_serves_at_different_places(made: tuple[Path, Index]) -> None:
    _, index = made
    places = [(case.source, case.centre_voxel) for case in index.cases if case.centre_voxel]
    assert len(set(places)) == len(places)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes(scans: Path, tmp_path: Path) -> None:
    counts = {HEALTHY: 1, "noise": 2, "ghost": 1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_set(find_scans(scans), tmp_path / name, _recipe(seed=seed, counts=counts))
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert _digests(tmp_path / "a") != _digests(tmp_path / "c")


def test_healthy_scans_do_not_repeat_unless_asked(scans: Path) -> None:
    paths = find_scans(scans)
    with pytest.raises(UserError, match="4 healthy cases from 3 scans"):
        plan_cases(paths, _recipe(counts={HEALTHY: 4}))
    plan = plan_cases(paths, _recipe(counts={HEALTHY: 3, "noise": 7}))
    healthy = [path for path, case in plan if case.kind == HEALTHY]
    assert len(set(healthy)) == 3
    noisy = Counter(path for path, case in plan if case.kind == "noise")
    assert sorted(noisy.values()) == [2, 2, 3]  # round all scans before one serves again
    assert len(plan_cases(paths, _recipe(counts={HEALTHY: 4}, repeat_healthy=True))) == 4


def test_a_set_is_never_written_over(made: tuple[Path, Index], scans: Path) -> None:
    folder, _ = made
    with pytest.raises(UserError, match="holds a validation set already"):
        make_set(find_scans(scans), folder.parent, _recipe())


def test_another_grid(scans: Path, tmp_path: Path) -> None:
    index = make_set(find_scans(scans), tmp_path, _recipe(counts={"shift": 2}, spacing=5.0))
    for case in index.cases:
        image = nib.load(tmp_path / "brain" / "toy" / case.name)
        assert np.allclose(image.header.get_zooms(), 5)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        source = nib.load(scans / case.source)
        middles = [
            nib.affines.apply_affine(one.affine, (np.array(one.shape) - 1) / 2) for one in (image, source)
        ]
        assert np.allclose(*middles, atol=1e-3)


def _split(path: Path, set_aside: list[str], folds: list[list[str]]) -> Path:
    path.write_text(json.dumps({"brain": {"set_aside": set_aside, "folds": folds}, "samples": []}))
    return path


def test_a_leaked_subject_is_caught_under_another_file_name(tmp_path: Path) -> None:
    names = ["sub-01_T1w.nii.gz", "ses-2_sub-02_run-7.nii.gz", "ct0518_liver.nii", "other.nii.gz"]
    scans = [tmp_path / name for name in names]
    folds = [["brain/sub-02_T1w.nii.gz"], ["brain/ct0518_abdomen.nii.gz"]]
    split = read_split(_split(tmp_path / "split.json", ["brain/sub-01_T1w.nii.gz"], folds), Region.BRAIN)
    with pytest.raises(UserError) as refused:
        judge_scans(scans, split, None)
    assert str(refused.value).startswith(
        "ses-2_sub-02_run-7.nii.gz, ct0518_liver.nii: of a subject in a fold"
    )
    assert judge_scans([scans[0], scans[3]], split, None) == [scans[0], scans[3]]
    assert judge_scans(scans, split, "set_aside") == scans[:1]
    # what one training leaves out may judge that training, and no other
    assert judge_scans([scans[1]], split, None, left_out=0) == [scans[1]]
    with pytest.raises(UserError, match="in a fold"):
        judge_scans([scans[1]], split, None, left_out=1)


def test_the_fold_left_out_judges_what_the_others_trained(tmp_path: Path) -> None:
    names = [f"sub-{n:02d}.nii.gz" for n in range(6)]
    scans = [tmp_path / name for name in names]
    split = read_split(_split(tmp_path / "split.json", names[:1], [names[1:3], names[3:]]), Region.BRAIN)
    assert judge_scans(scans, split, "held_out", left_out=1) == scans[3:]
    assert training_scans(scans, split, left_out=1) == scans[1:3]
    assert training_scans(scans, split) == scans[1:]
    with pytest.raises(UserError, match="fold 2: the split has folds 0 to 1"):
        judge_scans(scans, split, "held_out", left_out=2)
    with pytest.raises(UserError, match="no scan there is in a fold"):
        training_scans(scans[:1], split)


def test_a_split_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = _split(tmp_path / "split.json", ["brain/sub-01.nii.gz"], [["brain/sub-01.nii.gz"]])
    with pytest.raises(UserError, match=r"the subject of sub-01\.nii\.gz stands in two parts"):
        read_split(path, Region.BRAIN)
    with pytest.raises(UserError, match="holds no split for abdom"):
        read_split(path, Region.ABDOM)
    with pytest.raises(UserError, match="holds no split for brain"):
        read_split(tmp_path / "absent.json", Region.BRAIN)


def test_nothing_set_aside_in_the_folder(scans: Path, tmp_path: Path) -> None:
    split = read_split(_split(tmp_path / "split.json", ["brain/sub-77.nii.gz"], []), Region.BRAIN)
    with pytest.raises(UserError, match="no scan there is set aside"):
        judge_scans(find_scans(scans), split, "set_aside")


@pytest.mark.parametrize("region", list(Region))
def test_the_real_split_keeps_judging_and_training_apart(data: Path, region: Region) -> None:
    split = read_split(data / "split.json", region)
    scans = find_scans(data / region)
    chosen = judge_scans(scans, split, "set_aside")
    trained = training_scans(scans, split)
    assert {path.name for path in chosen} == set(split.set_aside)
    assert not {subject_of(path.name) for path in chosen} & {subject_of(path.name) for path in trained}
    assert sorted(chosen + trained) == scans
    with pytest.raises(UserError, match="in a fold"):
        judge_scans(scans, split, None)


def test_body_of_a_patient_leaves_the_table_out_and_takes_gas_in() -> None:
    array = np.zeros((80, 80, 6), np.float32)
    x, y = np.ogrid[:80, :80]
    body = np.broadcast_to((((x - 40) / 30) ** 2 + ((y - 35) / 20) ** 2 < 1)[..., None], array.shape)
    array[body] = 0.6
    array[30:36, 30:40] = 0.02  # a lung
    array[10:70, 60:63] = 0.5  # the table
    array[40:42, 50:62] = 0.5  # a thin contact with it
    found = body_mask(array, Region.ABDOM, (1.0, 1.0, 2.5))
    assert not found[:, 60:].any()
    assert found[30:36, 30:40].all()
    assert np.mean(found[body]) > 0.99 and found.sum() < 1.02 * body.sum()


def test_brain_body_is_the_filled_largest_piece() -> None:
    array = np.zeros((30, 30, 30), np.float32)
    array[5:25, 5:25, 5:25] = 0.4
    array[12:15, 12:15, 12:15] = 0
    array[0, 0, 0] = 0.4
    expected = np.zeros(array.shape, bool)
    expected[5:25, 5:25, 5:25] = True
    assert np.array_equal(body_mask(array, Region.BRAIN, (1, 1, 1)), expected)
    assert not body_mask(np.zeros((4, 4, 4), np.float32), Region.BRAIN, (1, 1, 1)).any()


@pytest.mark.slow
@pytest.mark.parametrize("region", list(Region))
def test_real_scans_make_a_set_in_time(data: Path, region: Region, tmp_path: Path) -> None:
    split = read_split(data / "split.json", region)
    scans = judge_scans(find_scans(data / region), split, "set_aside")[:3]
    counts = default_counts(region, "both", len(scans), len(scans))
    begin = time.process_time()
    index = make_set(scans, tmp_path, Recipe(region, 0, counts))
    seconds = (time.process_time() - begin) / len(index.cases)
    assert seconds < 2 * 600 / 260  # the paper's 260 cases in ten minutes on two cores
    rule = QuartileRule() if region is Region.BRAIN else CurveRule()
    for case in index.cases[::5]:
        image, label = _arrays(tmp_path / region, case)
        source = to_unit(read_volume(data / region / case.source).array, rule)
        assert np.array_equal(image[label == 0], source[label == 0])
        assert case.kind == HEALTHY or np.abs(image - source).max() > 0.02
