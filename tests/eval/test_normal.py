"""Scores of normal scans, stored with the weights and told of new ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mood_eval.cli import main
from mood_infer.challenge import Mode, Region, find_scans
from mood_infer.job import Job
from mood_infer.predictor import Predictor
from mood_infer.progress import describe
from mood_infer.volume import read_volume
from mood_infer.weights import read_manifest


@pytest.fixture
def own_weights(make_weights: Callable[..., Path], tmp_path: Path) -> Path:
    """Three networks whose manifest knows scores of normal scans once the command has run."""
    return make_weights(tmp_path / "weights", count=3, spacing=3.0)


def test_the_command_stores_what_the_ensemble_says(
    scans: Path, own_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "split.json"
    folds = {"set_aside": ["sub-01.nii.gz", "sub-02.nii.gz"], "folds": [["brain/sub-03.nii.gz"]]}
    split.write_text(json.dumps({"brain": folds}))
    words = ["normal-scores", scans, "--region", "brain", "--split", split, "--part", "set_aside"]
    monkeypatch.setattr(sys, "argv", ["mood-eval", *map(str, words), "--weights", str(own_weights)])
    before = read_manifest(own_weights / "brain")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    after = read_manifest(own_weights / "brain")
    chosen = [path for path in find_scans(scans) if path.name in folds["set_aside"]]
    predictor = Predictor.load(Region.BRAIN, own_weights, "cpu")
    expected = sorted(predictor.predict(read_volume(path)).sample_score for path in chosen)
    assert len(chosen) == 2 and list(after.normal_scores) == expected
    assert after == before.model_copy(update={"normal_scores": tuple(expected)})


def test_a_normal_scan_of_doubtful_units_or_size_is_told(
    own_weights: Path,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = make_scan(tmp_path / "scans" / "a.nii.gz", (70, 40, 12), spacing=(1, 1, 20))
    found = Predictor.load(Region.BRAIN, own_weights, "cpu").predict(read_volume(scan))
    words = ["normal-scores", str(scan.parent), "--region", "brain", "--weights", str(own_weights)]
    monkeypatch.setattr(sys, "argv", ["mood-eval", *words])
    with pytest.raises(SystemExit):
        main()
    (doubt,) = found.warnings
    assert f"a.nii.gz: {found.sample_score:.4f}; {doubt}\n" in capsys.readouterr().out


def test_a_prediction_is_told_among_the_normal_scans(
    own_weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = make_scan(tmp_path / "a.nii.gz", (70, 40, 40))
    plain = Predictor.load(Region.BRAIN, own_weights, "cpu")
    unknown = plain.predict(read_volume(scan))
    assert unknown.normal_below is None
    score = unknown.sample_score
    path = own_weights / "brain" / "manifest.json"
    fields = json.loads(path.read_text())
    # one that scores the same is not lower
    path.write_text(json.dumps(fields | {"normal_scores": [0, score / 2, score, 1]}))
    load = Predictor.load
    job = Job(load(Region.BRAIN, own_weights, "cpu"), Mode.SAMPLE, tmp_path)
    (outcome,) = job.run([scan])
    assert outcome.normal_below == (2, 4)
    assert float((tmp_path / "a.nii.gz.txt").read_text().splitlines()[0]) == score
    assert describe(outcome).endswith(
        f"sample score {score:.4f}, higher than 2 of 4 normal scans stored with the weights"
    )
    files = [member.file for member in plain.manifest.members]
    assert load(Region.BRAIN, own_weights, "cpu", files).predict(read_volume(scan)).normal_scores
    others = (
        load(Region.BRAIN, own_weights, "cpu", files[:2]),
        load(Region.BRAIN, own_weights, "cpu", speed="fast"),
        load(Region.BRAIN, own_weights, "cpu", time_limit=0),
    )
    for predictor in others:
        assert predictor.predict(read_volume(scan)).normal_below is None
