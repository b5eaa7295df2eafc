"""What the commands of training say when they cannot be run."""

import sys
from pathlib import Path

import pytest

from mood_train.cli import main


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
