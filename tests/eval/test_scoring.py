"""A folder of predictions against the organisers' scorer, written out here with scikit-learn."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score

from mood_eval.page import Sources, render_page, worst_cases
from mood_eval.scoring import find_predictions, score
from mood_eval.summary import Judged, Summary, summarise
from mood_eval.validation_set import HEALTHY, Index, Recipe, make_set
from mood_infer.challenge import Region, find_scans
from mood_infer.errors import UserError
from mood_infer.scores import sample_score
from mood_infer.volume import read_volume, write_map

COUNTS = {HEALTHY: 2, "uniform": 3, "shift": 2, "missing": 2}
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def made(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    out = tmp_path_factory.mktemp("scored")
    return out / "brain", make_set(find_scans(scans), out, Recipe(Region.BRAIN, 3, COUNTS))


@pytest.fixture(scope="module")
def predictions(made: tuple[Path, Index], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps that see each anomaly more or less well; sample scores to go with them."""
    folder, _ = made
    out = tmp_path_factory.mktemp("predictions")
    rng = np.random.default_rng(0)
    for path in sorted((folder / "toy").iterdir()):
        label = _read(folder / "toy_label" / "pixel" / path.name)
        blurred = ndimage.gaussian_filter(label.astype(np.float32), 1) * rng.uniform(0.2, 1)
        scores = np.clip(blurred + 0.1 * rng.random(label.shape), 0, 1).astype(np.float32)
        write_map(out / path.name, scores, read_volume(path).header)
        (out / f"{path.name}.txt").write_text(f"{sample_score(scores)}\nmade by a test\n")
    return out


def _read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def _copy(predictions: Path, to: Path) -> Path:
    to.mkdir()
    for path in predictions.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def _reference(folder: Path, predictions: Path, names: list[str], zeros: tuple[str, ...] = ()) -> float:
    """One average precision over all voxels of the cases, in float16."""
    scores, labels = [], []
    for name in names:
        labels.append(_read(folder / "toy_label" / "pixel" / name).ravel() == 1)
        if name in zeros:
            scores.append(np.zeros(labels[-1].size, np.float16))
        else:
            scores.append(nib.load(predictions / name).get_fdata(dtype=np.float16).clip(0, 1).ravel())
    return float(average_precision_score(np.concatenate(labels), np.concatenate(scores)))


def _names(index: Index, *kinds: str) -> list[str]:
    return [case.name for case in index.cases if case.kind in kinds]


def test_numbers_are_the_organisers(made: tuple[Path, Index], predictions: Path) -> None:
    folder, index = made
    summary, _ = score(predictions, folder / "toy_label", index, runs=50)
    seen = _names(index, HEALTHY, "uniform", "shift")
    assert summary.pixel_ap == pytest.approx(_reference(folder, predictions, seen), abs=1e-12)
    for kind in ("uniform", "shift"):
        names = _names(index, HEALTHY, kind)
        assert summary.per_type[kind] == pytest.approx(_reference(folder, predictions, names), abs=1e-12)
    samples = [float((predictions / f"{name}.txt").read_text().split()[0]) for name in seen]
    truths = [name not in _names(index, HEALTHY) for name in seen]
    expected = average_precision_score(truths, samples)
    assert summary.sample_ap == pytest.approx(expected, abs=1e-12)
    assert summary.cases == 7 and summary.warnings == ()
    assert summary.pixel_interval is not None and summary.pixel_ap is not None
    assert summary.pixel_interval.low <= summary.pixel_ap <= summary.pixel_interval.high


def test_the_unseen_family_is_kept_apart(made: tuple[Path, Index], predictions: Path) -> None:
    folder, index = made
    summary, _ = score(predictions, folder / "toy_label", index, runs=10)
    assert set(summary.per_type) == {"uniform", "shift"}
    assert summary.unseen is not None and set(summary.unseen.per_type) == {"missing"}
    names = _names(index, HEALTHY, "missing")
    assert summary.unseen.pixel_ap == pytest.approx(_reference(folder, predictions, names), abs=1e-12)
    assert summary.unseen.cases == 4
    # without the index nothing tells them apart
    whole, _ = score(predictions, folder / "toy_label", runs=10)
    everything = _names(index, *COUNTS)
    assert whole.pixel_ap == pytest.approx(_reference(folder, predictions, everything), abs=1e-12)
    assert whole.per_type == {} and whole.unseen is None


def test_sizes_split_the_anomalies_in_three(made: tuple[Path, Index], predictions: Path) -> None:
    folder, index = made
    summary, _ = score(predictions, folder / "toy_label", index, runs=10)
    volumes = sorted(case.volume_ml for case in index.cases if case.family == "seen")
    groups = summary.by_size
    assert list(groups) == ["small", "middle", "large"]
    assert groups["small"].from_ml == volumes[0] and groups["large"].to_ml == volumes[-1]
    small = [case.name for case in index.cases if case.family == "seen" and case.volume_ml <= volumes[1]]
    expected = _reference(folder, predictions, sorted(small + _names(index, HEALTHY)))
    assert groups["small"].pixel_ap == pytest.approx(expected, abs=1e-12)


def _spoil(path: Path, change: Change) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)).astype(np.float32), image.affine), path)


def _nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[3, 3, 3] = np.nan
    return array


def test_what_cannot_be_judged_is_zeros_and_said(
    made: tuple[Path, Index], predictions: Path, tmp_path: Path
) -> None:
    folder, index = made
    spoiled = _copy(predictions, tmp_path / "spoiled")
    missing, misshapen, nan, broken = names = _names(index, "uniform", "shift")[:4]
    (spoiled / missing).unlink()
    (spoiled / f"{missing}.txt").unlink()
    _spoil(spoiled / misshapen, lambda array: array[:-1])
    _spoil(spoiled / nan, _nan)
    (spoiled / broken).write_bytes((spoiled / broken).read_bytes()[:500])
    (spoiled / f"{nan}.txt").write_text("nan\n")
    (spoiled / f"{broken}.txt").write_text("high\n")
    summary, _ = score(spoiled, folder / "toy_label", index, runs=10)
    seen = _names(index, HEALTHY, "uniform", "shift")
    expected = _reference(folder, spoiled, seen, zeros=tuple(names))
    assert summary.pixel_ap == pytest.approx(expected, abs=1e-12)
    text = "\n".join(summary.warnings)
    assert f"{missing}: the map is missing" in text
    assert f"{misshapen}: the map has shape (43, 40, 36), its label (44, 40, 36)" in text
    assert f"{nan}: the map holds NaN" in text
    assert f"{broken}: the map cannot be read" in text
    assert f"{missing}.txt: the sample score is missing" in text
    assert f"{nan}.txt: the sample score is NaN" in text
    assert f"{broken}.txt: no number in the first line" in text
    assert len(summary.warnings) == 7


def test_sample_scores_come_from_the_maps_where_there_are_none(
    made: tuple[Path, Index], predictions: Path, tmp_path: Path
) -> None:
    folder, index = made
    bare = _copy(predictions, tmp_path / "bare")
    for path in bare.glob("*.txt"):
        path.unlink()
    with_files, _ = score(predictions, folder / "toy_label", index, runs=10)
    without, _ = score(bare, folder / "toy_label", index, runs=10)
    assert without.sample_ap == with_files.sample_ap
    assert any("no sample scores" in warning for warning in without.warnings)


def test_samples_alone(made: tuple[Path, Index], predictions: Path, tmp_path: Path) -> None:
    folder, index = made
    (tmp_path / "sample").mkdir()
    for path in predictions.glob("*.txt"):
        (tmp_path / "sample" / path.name).write_bytes(path.read_bytes())
    summary, _ = score(tmp_path, folder / "toy_label", index, runs=10)
    assert summary.pixel_ap is None and summary.sample_ap is not None


def test_perfect_maps_score_one(made: tuple[Path, Index], tmp_path: Path) -> None:
    folder, index = made
    labels = folder / "toy_label"
    (tmp_path / "pixel").mkdir()
    for path in (labels / "pixel").iterdir():
        (tmp_path / "pixel" / path.name).write_bytes(path.read_bytes())
    summary, _ = score(tmp_path, labels, index, runs=10)
    assert summary.pixel_ap == summary.auroc == summary.dice == summary.sample_ap == 1
    assert set(summary.per_type.values()) == {1.0} and summary.dice_threshold == 1
    assert set(summary.recall.values()) == {1.0}


def test_wrong_folders_are_named(made: tuple[Path, Index], predictions: Path, tmp_path: Path) -> None:
    folder, index = made
    with pytest.raises(UserError, match="neither maps"):
        find_predictions(tmp_path)
    with pytest.raises(UserError, match="no labels there"):
        score(predictions, tmp_path, index)
    other = index.model_copy(update={"cases": index.cases[1:]})
    with pytest.raises(UserError, match=r"case_001\.nii\.gz: not in the index"):
        score(predictions, folder / "toy_label", other, objects=False, runs=10)


def test_the_page_shows_the_worst(made: tuple[Path, Index], predictions: Path) -> None:
    folder, index = made
    summary, judged = score(predictions, folder / "toy_label", index, runs=10)
    worst = worst_cases(judged)
    means = {}
    for case in index.cases:
        label = _read(folder / "toy_label" / "pixel" / case.name) == 1
        if label.any():
            means[case.name] = _read(predictions / case.name)[label].mean()
    assert [one.name for heading, one in worst if heading == "Missed"] == sorted(means, key=means.get)[:4]
    sources = Sources(find_predictions(predictions), folder / "toy_label", folder / "toy")
    page = render_page("Method & set", summary, judged, sources, index)
    assert page.count("data:image/png;base64,") == 2 + len(worst)
    assert "<h1>Method &amp; set</h1>" in page
    assert f"{summary.pixel_ap:.3f} (95 % interval" in page
    assert all(f"{heading}: {one.name}" in page for heading, one in worst)


def test_numbers_survive_json(made: tuple[Path, Index], predictions: Path) -> None:
    folder, index = made
    summary, _ = score(predictions, folder / "toy_label", index, runs=10)
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_sample_scores_are_ranked_at_full_precision() -> None:
    """0.6959 and 0.69593 are one number in float16."""
    scores = {"a": (0.69590, False), "b": (0.69593, True), "c": (0.2, False), "d": (0.2, True)}
    judged = [Judged(name, anomalous, None, score) for name, (score, anomalous) in scores.items()]
    expected = average_precision_score([one.anomalous for one in judged], [one.sample for one in judged])
    assert np.float16(0.69590) == np.float16(0.69593)
    assert summarise(judged, None, runs=10).sample_ap == pytest.approx(expected, abs=1e-12)
