import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from mood_infer.challenge import Mode, Region
from mood_infer.errors import UserError
from mood_infer.grid import Grid
from mood_infer.job import Job
from mood_infer.predictor import Predictor
from mood_infer.report import Report, draw


def pixels(picture: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def marked(peak: float, place: tuple[int, int, int] = (12, 30, 20)) -> np.ndarray:
    scores = np.zeros((40, 50, 45), np.float32)
    scores[tuple(slice(n - 4, n + 5) for n in place)] = peak
    return pixels(draw(np.zeros_like(scores), scores, Grid(scores.shape, np.eye(4)), "c$a$se_1", peak))


def test_the_colour_is_that_of_the_score() -> None:
    """The overlay of a score s on black is s times the colour of s, on a scale that never stretches."""
    for peak in (0.3, 0.6, 1.0):
        picture = marked(peak)
        expected = np.array(colormaps["inferno"](peak)[:3]) * peak * 255
        assert (np.abs(picture - expected).max(axis=-1) <= 3).sum() > 1000
    assert (marked(0.3) != marked(0.31)).any()


def test_left_is_left_and_the_planes_meet_at_the_peak() -> None:
    heat = np.array(colormaps["inferno"](1.0)[:3]) * 255
    rows, columns = np.nonzero(np.abs(marked(1.0) - heat).max(axis=-1) <= 3)
    panels = [
        columns[(columns > low) & (columns < high)] for low, high in ((0, 400), (400, 800), (800, 1150))
    ]
    black = marked(0.0).sum(axis=-1) == 0
    edges = [
        np.nonzero(black[:, low:high].sum(axis=0) > 100)[0][[0, -1]] + low
        for low, high in ((0, 400), (400, 800), (800, 1150))
    ]
    shares = [
        (panel.mean() - first) / (last - first) for panel, (first, last) in zip(panels, edges, strict=True)
    ]
    expected = [12 / 39, 12 / 39, 30 / 49]  # x, x and y: right and anterior are on the right
    np.testing.assert_allclose(shares, expected, atol=0.03)
    assert rows.size > 0


def test_millimetres_are_as_long_along_every_axis() -> None:
    """A ball in mm is round in every plane, however long the voxels are."""
    steps = (1.0, 1.5, 5.0)
    x, y, z = np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip((60, 40, 12), steps, strict=True)))
    ball = 0.999 * (x**2 + y**2 + z**2 < 18**2).transpose(1, 0, 2).astype(np.float32)
    ball[30, 20, 6] = 1  # planes through its middle
    grid = Grid((60, 40, 12), np.diag([*steps, 1.0]))
    picture = pixels(draw(np.zeros_like(ball), ball, grid, "case", 1.0))
    heat = np.array(colormaps["inferno"](1.0)[:3]) * 255
    hot = np.abs(picture - heat).max(axis=-1) <= 3
    for low, high in ((0, 400), (400, 800), (800, 1150)):
        rows, columns = np.nonzero(hot[:, low:high])
        assert np.ptp(rows) / np.ptp(columns) == pytest.approx(1, abs=0.2)  # a slice is 5 mm, the ball 36


def test_a_report_of_a_run(weights: Path, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    output = tmp_path / "output"
    output.mkdir()
    report = Report(tmp_path / "report", {"mode": "sample"}).open()
    scans = [make_scan(tmp_path / "a.nii.gz", (30, 30, 30)), tmp_path / "missing.nii.gz"]
    outcomes = Job(predictor, Mode.SAMPLE, output, report=report).run(scans)
    report.record(predictor, scans, outcomes)
    assert {path.name for path in report.folder.iterdir()} == {"a.nii.gz.png", "run.json"}
    assert {path.name for path in output.iterdir()} == {"a.nii.gz.txt"}
    pixels((report.folder / "a.nii.gz.png").read_bytes())
    record = json.loads((report.folder / "run.json").read_text())
    assert record["weights"]["digest"] == predictor.digest
    assert record["settings"] == {"mode": "sample"}
    assert record["versions"]["torch"]
    done, failed = record["scans"]
    assert done["state"] == "done" and done["sample_score"] == outcomes[0].sample_score
    assert failed["state"] == "failed" and failed["error"].startswith("missing.nii.gz: ")


def test_a_record_says_of_skipped_scans_what_any_said_of_the_very_outputs(
    weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    output = tmp_path / "output"
    output.mkdir()
    scans = [make_scan(tmp_path / f"{name}.nii.gz", (20, 20, 20), seed) for seed, name in enumerate("ab")]

    def record(
        name: str = "run.json", *, mode: Mode = Mode.SAMPLE, reported: bool = True, overwrite: bool = False
    ) -> list[dict]:
        report = Report(tmp_path / "report", record_name=name, draws=False).open() if reported else None
        outcomes = Job(predictor, mode, output, overwrite, report).run(scans)
        if report is None:
            return []
        report.record(predictor, scans, outcomes)
        return json.loads((report.folder / name).read_text())["scans"]  # type: ignore[no-any-return]

    first = record("run-0.json")
    assert [scan["state"] for scan in first] == ["done", "done"] and all(scan["members"] for scan in first)
    skipped = [scan | {"state": "skipped"} for scan in first]
    assert record("run-1.json") == skipped  # another process of the run before had done them
    record(reported=False, overwrite=True)
    assert [scan["members"] for scan in record("run-1.json")] == [[], []]  # nobody knows of these outputs
    assert record("run-0.json", overwrite=True) != first
    assert [scan["state"] for scan in record("run-1.json")] == ["skipped"] * 2
    assert all(scan["members"] for scan in record("run-1.json"))
    record(mode=Mode.PIXEL, reported=False)
    assert [scan["members"] for scan in record("run-1.json", mode=Mode.PIXEL)] == [[], []]  # of the scores


def test_a_report_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        Report(tmp_path / "file").open()
