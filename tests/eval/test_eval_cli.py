"""The commands from one to the next, as the README runs them."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from mood_eval.average_precision import average_precision, merge
from mood_eval.baselines import Baselines
from mood_eval.cli import main
from mood_eval.table import ScoreTable, judge_cases
from mood_eval.validation_set import Recipe, default_counts, read_index
from mood_infer.challenge import Region, find_scans


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mood-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    path = tmp_path / "split.json"
    folds = [["brain/sub-03.nii.gz"]]
    path.write_text(json.dumps({"brain": {"set_aside": ["sub-01.nii.gz", "sub-02.nii.gz"], "folds": folds}}))
    return path


def test_from_scans_to_a_page_and_a_ranking(
    scans: Path,
    split: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = ["--split", split, "--part", "set_aside", "--family", "both", "--healthy", 2, "--each", 1]
    counts = ["--counts", "noise=3", "--counts", "ghost=0"]
    assert _run(monkeypatch, "make-set", scans, tmp_path / "set", "--region", "brain", *made, *counts) == 0
    index = read_index(tmp_path / "set/brain/index.json")
    kinds = [case.kind for case in index.cases]
    assert len(kinds) == 2 + 6 + 3 + 7 and kinds.count("noise") == 3 and "ghost" not in kinds
    assert {case.source for case in index.cases} == {"sub-01.nii.gz", "sub-02.nii.gz"}

    labels = tmp_path / "set/brain/toy_label"
    for method in ("good", "poor"):
        (tmp_path / method).mkdir()
        shutil.copytree(labels / "pixel", tmp_path / method / "brain")
    for case in index.cases[::2]:
        (tmp_path / "poor/brain" / case.name).unlink()
    outputs = ["--json", tmp_path / "out.json", "--page", tmp_path / "out.html"]
    options = ["--index", tmp_path / "set/brain/index.json", "--runs", 20]
    assert _run(monkeypatch, "score", tmp_path / "good/brain", labels, *options, *outputs) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["pixel_ap"] == numbers["sample_ap"] == numbers["per_type"]["noise"] == 1
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    assert "pixel AP" in capsys.readouterr().out

    ranked = ["--set", tmp_path / "set", "--runs", 20, "--json", tmp_path / "rank.json"]
    assert _run(monkeypatch, "rank", tmp_path / "poor", tmp_path / "good", *ranked) == 0
    places = json.loads((tmp_path / "rank.json").read_text())
    assert [(one["method"], one["place"]) for one in places] == [("good", 1), ("poor", 2)]
    assert "the map is missing" in capsys.readouterr().err
    assert _run(monkeypatch, "rank", tmp_path / "poor", tmp_path / "other/poor", *ranked) == 2
    assert "two METHOD folders have one name" in capsys.readouterr().err


def test_a_leaked_scan_stops_the_command(
    scans: Path,
    split: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["make-set", scans, tmp_path / "set", "--region", "brain", "--split", split]
    assert _run(monkeypatch, *arguments) == 2
    assert "sub-03.nii.gz: of a subject in a fold of the split file" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--counts", "nois=3"], "give TYPE=N with one of healthy, uniform, noise"),
        (["--counts", "noise=many"], "give TYPE=N"),
        (["--part", "set_aside"], "--part needs --split"),
        ([], "50 healthy cases from 3 scans would repeat some"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    extra: list[str],
    text: str,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(monkeypatch, "make-set", scans, tmp_path / "set", "--region", "brain", *extra) == 2
    assert text in capsys.readouterr().err


def test_members_table(
    scans: Path,
    split: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--region", "brain", "--split", split, "--part", "set_aside", "--weights", weights]
    outputs = ["--json", tmp_path / "members.json", "--markdown", tmp_path / "members.md"]
    assert _run(monkeypatch, "members", scans, *where, *outputs, "--device", "cpu") == 0
    table = json.loads((tmp_path / "members.json").read_text())
    assert list(table["rows"]) == ["fold0-hard.safetensors", "fold1-hard.safetensors", "ensemble"]
    assert len(table["index"]["cases"]) == 2 * 8  # a healthy case and seven types a scan
    assert (tmp_path / "members.md").read_text() in capsys.readouterr().out
    assert table["index"]["spacing"] is None
    assert _run(monkeypatch, "members", scans, *where, *outputs, "--device", "cpu", "--spacing", "2") == 0
    on_grid = json.loads((tmp_path / "members.json").read_text())["index"]
    assert on_grid["spacing"] == 2
    anomalous = [case for case in on_grid["cases"] if case["kind"] != "healthy"]
    assert len(anomalous) == 2 * 7
    for case in anomalous:
        assert case["volume_ml"] == pytest.approx(case["voxels"] * 2**3 / 1000)


def test_baselines_are_fitted_on_the_folds_and_judged_on_what_was_set_aside(
    scans: Path, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = ["--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md"]
    assert (
        _run(monkeypatch, "baselines", scans, "--region", "brain", "--split", split, "--each", 1, *outputs)
        == 0
    )
    paths = find_scans(scans)
    fitted = Baselines.fit(paths[2:], Region.BRAIN)
    recipe = Recipe(Region.BRAIN, 0, default_counts(Region.BRAIN, "seen", 2, 1))  # as members takes it
    index, judged = judge_cases(paths[:2], recipe, fitted.score, objects=False)
    table = ScoreTable.model_validate_json((tmp_path / "out.json").read_text())
    assert table.index == index and list(table.rows) == ["intensity-histogram", "mean-scan", "local-entropy"]
    for name, part in judged.items():
        assert table.rows[name].pixel_ap == average_precision(merge(one.pixels for one in part if one.pixels))
    assert (tmp_path / "out.md").read_text().startswith("|  | pixel AP | deformation |")
