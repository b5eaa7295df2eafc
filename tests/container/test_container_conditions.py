"""One scan under each condition alone, and under all of them: always the same bytes."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from containers import HARD, Ended, Image, names
from odd_inputs import SHAPE, body, save

from mood_infer.challenge import Region
from mood_infer.predictor import Predictor
from mood_infer.volume import read_volume

pytestmark = pytest.mark.container

CONDITIONS = {
    "as the challenge": ["--read-only"],
    "writable container": [],
    "no network": ["--network=none"],
    "user 12345 on a 777 folder": ["--user=12345:12345"],
    "root on a root-owned 755 folder": ["--user=0:0", "--read-only"],
    "no capabilities, no new privileges": ["--cap-drop=ALL", "--security-opt=no-new-privileges"],
    "64 MB of shared memory": ["--shm-size=64m", "--read-only"],
    "256 processes": ["--pids-limit=256"],
    "6 GB of memory": ["--memory=6g"],
    "input mounted read-only": ["--read-only"],
    "all of them": [*HARD, "--shm-size=64m"],
}
NAME = "case.nii.gz"


@dataclass(frozen=True)
class Run:
    """One condition's run: how it ended, and its folders."""

    ended: Ended
    output: Path
    data: Path


@pytest.fixture(scope="module")
def runs(image: Image, weights: Path, make_folder: Callable[[], Path]) -> dict[str, Run]:
    """All conditions, two at a time."""

    def run(condition: str) -> Run:
        data, output = make_folder(), make_folder()
        save(data / NAME, body().astype(np.float32))
        if "755" in condition:
            output.chmod(0o755)
        running = image.predict(
            data,
            output,
            weights=weights,
            options=CONDITIONS[condition],
            read_only_data=condition in ("input mounted read-only", "all of them"),
        )
        return Run(running.wait(), output, data)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CONDITIONS, pool.map(run, CONDITIONS), strict=True))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_condition(runs: dict[str, Run], condition: str) -> None:
    run = runs[condition]
    assert run.ended.code == 0, run.ended.err
    assert run.ended.err.splitlines()[-1] == "1 done, 0 skipped, 0 failed"
    assert names(run.output) == [NAME]
    assert names(run.data) == [NAME]
    assert (run.output / NAME).read_bytes() == (runs["as the challenge"].output / NAME).read_bytes()


def test_map_is_that_of_the_package(runs: dict[str, Run], weights: Path) -> None:
    run = runs["as the challenge"]
    expected = Predictor.load(Region.BRAIN, weights, "cpu").predict(read_volume(run.data / NAME)).scores
    found = nib.load(run.output / NAME).get_fdata(dtype=np.float32)
    assert found.shape == SHAPE and np.ptp(found) > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-2)  # kernels may differ between builds, in bfloat16


def test_results_belong_to_the_user_of_the_container(runs: dict[str, Run]) -> None:
    status = (runs["all of them"].output / NAME).stat()
    assert (status.st_uid, status.st_gid) == (12345, 12345)
    assert status.st_mode & 0o777 == 0o644


def test_script_called_directly(image: Image, weights: Path, make_folder: Callable[[], Path]) -> None:
    data, output = make_folder(), make_folder()
    save(data / NAME, body().astype(np.float32))
    mounts = [f"{data}:/mnt/data:ro", f"{output}:/mnt/pred", f"{weights}:/weights:ro"]
    script = "/workspace/run_sample_brain.sh"
    image.run(script, "/mnt/data", "/mnt/pred", mounts=mounts, options=HARD, check=True)
    assert 0 <= float((output / f"{NAME}.txt").read_text().splitlines()[0]) <= 1


def test_one_folder_under_two_names_keeps_its_scans(
    image: Image, weights: Path, make_folder: Callable[[], Path]
) -> None:
    data = make_folder()
    save(data / NAME, body().astype(np.float32))
    before = (data / NAME).read_bytes()
    mounts = [f"{data}:/mnt/data", f"{data}:/mnt/pred", f"{weights}:/weights:ro"]
    ended = image.run("sh", "/workspace/run_pixel_brain.sh", "/mnt/data", "/mnt/pred", mounts=mounts)
    assert ended.code == 2 and "maps would replace the scans" in ended.err
    assert names(data) == [NAME] and (data / NAME).read_bytes() == before


def test_weights_that_are_none_are_refused(image: Image, make_folder: Callable[[], Path]) -> None:
    data, output, empty = make_folder(), make_folder(), make_folder()
    save(data / NAME, body().astype(np.float32))
    mounts = [f"{data}:/mnt/data:ro", f"{output}:/mnt/pred", f"{empty}:/weights:ro"]
    ended = image.run("sh", "/workspace/run_pixel_brain.sh", "/mnt/data", "/mnt/pred", mounts=mounts)
    assert ended.code == 3 and "/weights: has no brain/manifest.json" in ended.err
    assert names(output) == []


def test_a_report_is_the_record_without_pictures(
    image: Image, weights: Path, make_folder: Callable[[], Path]
) -> None:
    data, output, report = make_folder(), make_folder(), make_folder()
    save(data / NAME, body().astype(np.float32))
    mounts = [
        f"{data}:/mnt/data:ro",
        f"{output}:/mnt/pred",
        f"{report}:/mnt/report",
        f"{weights}:/weights:ro",
    ]
    line = ("sh", "/workspace/run_sample_brain.sh", "/mnt/data", "/mnt/pred", "--report", "/mnt/report")
    ended = image.run(*line, mounts=mounts, options=HARD, check=True)
    assert "warning: no pictures are drawn: pictures need matplotlib" in ended.err
    assert names(report) == ["run.json"]
    (scan,) = json.loads((report / "run.json").read_text())["scans"]
    score = float((output / f"{NAME}.txt").read_text().splitlines()[0])
    assert scan["state"] == "done" and scan["sample_score"] == pytest.approx(score, rel=1e-8)
