"""What the commands of training say when they cannot be run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mood_infer.challenge import Region
from mood_train.cli import main
from mood_train.run import Material


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mood-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mood_train.preview", None)  # as its import fails without matplotlib
    assert _run(monkeypatch, "preview", "--data", tmp_path, "--out", tmp_path / "sheet.png") == 2
    error = capsys.readouterr().err
    assert error == "mood-train: mood_train.preview is missing; install it: scripts/setup.sh train.\n"


def test_folds_says_how_many_subjects_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever names scans otherwise sees at once that they are not taken for one subject's."""
    for name in (*(f"sub-{n}_T1w" for n in range(6)), "sub-0_run-2", "P01_v1", "P01_v2"):
        (tmp_path / f"{name}.nii.gz").touch()
    out = tmp_path / "split.json"
    assert _run(monkeypatch, "folds", "--data", tmp_path, "--out", out) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 9 scans of 8 subjects, ")


def test_a_folder_without_scans_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "folds", "--data", tmp_path, "--out", tmp_path / "split.json") == 2
    error = capsys.readouterr().err
    assert error.startswith("mood-train: ") and str(tmp_path) in error and error.count("\n") == 1


def _name_subjects(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"sub-{number}.nii.gz").touch()
    return folder


def test_weights_that_the_members_do_not_fit_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scans, which are empty files, are not even read."""
    data, out = _name_subjects(tmp_path / "data", 6), tmp_path / "runs"
    weights = Path(__file__).parents[2] / "weights"  # the abdomen's are compact-wide's
    common = ("--data", data, "--out", out, "--region", "abdom", "--preset", "compact", "--weights", weights)
    before = sorted(path.stat().st_mtime_ns for path in weights.rglob("*"))
    for command in ("ensemble", "fit"):
        assert _run(monkeypatch, command, *common) == 2
        assert "another network, grid or rule; export elsewhere" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["split.json"]
    assert sorted(path.stat().st_mtime_ns for path in weights.rglob("*")) == before


def test_scans_and_split_that_differ_are_told(tmp_path: Path) -> None:
    data, split = _name_subjects(tmp_path / "data", 6), tmp_path / "split.json"
    names = [path.name for path in sorted(data.iterdir())]
    parts = {"set_aside": [names[0], "sub-8.nii.gz"], "folds": [[names[1]], [names[2], "sub-7.nii.gz"]]}
    split.write_text(json.dumps({"brain": parts}))

    def told() -> str | None:
        return Material.find(data, split, Region.BRAIN, 0, tmp_path / "cache").mismatch()

    missing, unnamed = "1 in the split but not among the scans (sub-7.nii.gz first)", "3 among the scans but"
    assert told() == (f"{split}: left out are {missing} and {unnamed} not in the split (sub-3.nii.gz first).")
    (data / "sub-7.nii.gz").touch()
    for name in names[3:]:
        (data / name).unlink()
    assert told() is None


@pytest.mark.parametrize("option", ["--max-minutes", "--max-lr"])
def test_no_time_and_no_learning_rate_are_usage_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    data = _name_subjects(tmp_path / "data", 6)
    assert _run(monkeypatch, "fit", "--data", data, "--out", tmp_path / "run", option, "0") == 2
    assert option in capsys.readouterr().err


def test_a_rank_ends_with_its_exit_code_whatever_threads_it_has(tmp_path: Path) -> None:
    """A thread that talks to other ranks must neither hold it up nor abort it."""
    code = (
        "import sys, threading, time; from mood_train.cli import main;"
        "threading.Thread(target=time.sleep, args=(300,)).start(); main()"
    )
    words = [sys.executable, "-c", code, "folds", "--data", str(_name_subjects(tmp_path / "data", 6))]
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "x"}
    for more, expected in ((["--out", str(tmp_path / "split.json")], 0), ([], 2)):
        done = subprocess.run(
            [*words, *more], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == expected
        assert ("6 scans of 6 subjects" in done.stdout) == (expected == 0)
