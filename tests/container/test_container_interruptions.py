"""A run that is stopped or killed in the middle, and the run after it."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from containers import Image, names, wait_for

from mood_infer.volume import PARTIAL_PREFIX

pytestmark = pytest.mark.container

SIDE = 112  # seconds of work each for two tiny networks
NAMES = [f"{letter}.nii.gz" for letter in "abcd"]


@pytest.fixture(scope="module")
def scans(make_folder: Callable[[], Path]) -> Path:
    folder = make_folder()
    noise = np.random.default_rng(0).uniform(0, 1, (SIDE, SIDE, SIDE)).astype(np.float32)
    for name in NAMES:
        nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / name)
    return folder


def _whole(path: Path) -> bool:
    scores = nib.load(path).get_fdata()  # a file cut short raises here
    return scores.shape == (SIDE, SIDE, SIDE) and bool(np.isfinite(scores).all())


@pytest.mark.parametrize(("signal", "code"), [("stop", 143), ("kill", 137)])
def test_interrupted_and_run_again(
    image: Image, weights: Path, scans: Path, make_folder: Callable[[], Path], signal: str, code: int
) -> None:
    output = make_folder()
    running = image.predict(scans, output, weights=weights)
    wait_for((output / NAMES[0]).exists, running)
    seconds = running.signal(signal)
    assert running.wait().code == code
    left = names(output)
    if signal == "stop":
        assert seconds < 5
        assert not [name for name in left if name.startswith(PARTIAL_PREFIX)]
    results = [name for name in left if not name.startswith(PARTIAL_PREFIX)]
    assert 1 <= len(results) < len(NAMES) and results == NAMES[: len(results)]
    assert all(_whole(output / name) for name in results)
    before = {name: (output / name).stat().st_mtime_ns for name in results}

    ended = image.predict(scans, output, weights=weights).wait()
    assert ended.code == 0
    assert ended.err.splitlines()[-1] == f"{4 - len(results)} done, {len(results)} skipped, 0 failed"
    assert names(output) == NAMES
    assert all(_whole(output / name) for name in NAMES)
    assert before == {name: (output / name).stat().st_mtime_ns for name in results}
    skipped = re.findall(r"^(\S+): skipped, its result is there already$", ended.err, re.M)
    assert skipped == results


@pytest.mark.parametrize("seconds", [4, 9])
def test_stopped_within_5_s_with_the_shipped_networks(
    image: Image, make_folder: Callable[[], Path], seconds: int
) -> None:
    """They take the longest steps; the noise fills a grid of 60 cm, and must be resampled first."""
    data, output = make_folder(), make_folder()
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 256)).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, np.diag([2.4, 2.4, 2.4, 1.0])), data / "a.nii")
    running = image.predict(data, output)
    time.sleep(seconds)
    assert running.signal("stop") < 5
    assert running.wait().code == 143
    assert not names(output)
