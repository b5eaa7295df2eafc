"""Training in the container, to weights that the submission image uses."""

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
from containers import ROOT, Image, wait_for

from mood_infer.challenge import Region
from mood_infer.weights import read_manifest
from mood_train.checkpoint import read_checkpoint

pytestmark = pytest.mark.container

FIT = ("mood-train", "fit", "--data", "/mnt/data", "--out", "/mnt/out", "--region", "brain")
OPTIONS = ("--read-only", "--network=none", "--user=12345:12345")


@pytest.fixture(scope="module")
def data(make_folder: Callable[[], Path], make_scan: Callable[..., Path]) -> Path:
    folder = make_folder()
    for seed in range(8):
        make_scan(folder / f"subject-{seed}.nii.gz", (88, 84, 80), seed)
    return folder


def test_killed_training_goes_on(
    train_image: Image, data: Path, make_folder: Callable[[], Path], tmp_path: Path
) -> None:
    """With a tiny preset, so that it logs often."""
    text = (ROOT / "mood_train" / "presets" / "compact.toml").read_text()
    for name, value in (("widths", "[4, 4, 6, 6, 8]"), ("window", "32"), ("steps", "100000"), ("batch", "1")):
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
        assert count == 1
    preset = tmp_path / "tiny.toml"
    preset.write_text(text)
    out = make_folder()
    mounts = [f"{data}:/mnt/data:ro", f"{out}:/mnt/out", f"{preset}:/tiny.toml:ro"]
    command = (*FIT, "--preset", "/tiny.toml", "--max-minutes", "0.6")

    running = train_image.start(*command, mounts=mounts, options=OPTIONS)
    wait_for(lambda: (out / "checkpoint.pt").exists() and _logged(out) != [], running)
    running.signal("kill")
    assert running.wait().code == 137
    reached = read_checkpoint(out / "checkpoint.pt").step
    before = _logged(out)

    ended = train_image.run(*command, mounts=mounts, options=OPTIONS, check=True)
    last = int(re.search(r"^/mnt/out: step (\d+)$", ended.out, re.M)[1])  # type: ignore[index]
    after = _logged(out)[len(before) :]
    assert after and all(reached < step <= last for step in after)  # nothing before the checkpoint was redone
    finished = read_checkpoint(out / "checkpoint.pt")
    assert finished.step == last and finished.seconds >= 36


def test_weights_of_the_compact_preset_are_used_without_a_new_image(
    image: Image, train_image: Image, data: Path, make_folder: Callable[[], Path]
) -> None:
    out = make_folder()
    mounts = [f"{data}:/mnt/data:ro", f"{out}:/mnt/out"]
    limits = ("--max-minutes", "0.1", "--batch", "1")
    train_image.run(*FIT, "--preset", "compact", *limits, mounts=mounts, options=OPTIONS, check=True)
    export = ("mood-train", "export", "/mnt/out", "--weights", "/mnt/out/weights")
    about = ("--data-name", "made by a test", "--licence", "CC0")
    train_image.run(*export, *about, mounts=mounts, options=OPTIONS, check=True)
    manifest = read_manifest(out / "weights" / Region.BRAIN)
    assert manifest.members[0].licence == "CC0" and manifest.members[0].steps > 0

    scans, maps = make_folder(), make_folder()
    (scans / "a.nii.gz").write_bytes((data / "subject-0.nii.gz").read_bytes())
    ended = image.predict(scans, maps, weights=out / "weights").wait()
    assert ended.code == 0, ended.err
    made_by = bytes(nib.load(maps / "a.nii.gz").header["descrip"]).rstrip(b"\0").decode()
    assert made_by.endswith(manifest.digest())


def _logged(out: Path) -> list[int]:
    log = out / "log.txt"
    return [int(step) for step in re.findall(r"^step (\d+) ", log.read_text(), re.M)] if log.exists() else []
