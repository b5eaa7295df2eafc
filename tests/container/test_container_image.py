"""What the image is, before any scan is given to it."""

import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from containers import HARD, ROOT, Image

pytestmark = pytest.mark.container

MOST_BYTES = 1.5e9  # of the CPU build with its weights
SCRIPTS = [f"run_{mode}_{region}.sh" for mode in ("pixel", "sample") for region in ("brain", "abdom")]


@pytest.fixture(scope="module")
def inspected(image: Image) -> dict:
    text = subprocess.run(["docker", "image", "inspect", image.name], check=True, capture_output=True).stdout
    return json.loads(text)[0]


def test_size(inspected: dict) -> None:
    assert inspected["Size"] < MOST_BYTES


def test_labels(inspected: dict) -> None:
    labels = inspected["Config"]["Labels"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels.keys() >= {f"org.opencontainers.image.{name}" for name in ("source", "revision")}


def test_no_fixed_user_and_no_entry_point(inspected: dict) -> None:
    assert not inspected["Config"]["User"] and not inspected["Config"]["Entrypoint"]


def test_alone_prints_a_short_help(image: Image) -> None:
    ended = image.run(options=HARD, check=True)
    assert "run_pixel_brain.sh" in ended.out and len(ended.out.splitlines()) < 25


def test_training_image_alone_prints_a_short_help(train_image: Image) -> None:
    ended = train_image.run(options=HARD, check=True)
    assert "mood-train fit" in ended.out and len(ended.out.splitlines()) < 25


def test_files_are_readable_by_anyone_and_byte_compiled(image: Image) -> None:
    script = r"""
        find /workspace /usr/local /usage.txt ! -type l \( ! -perm -o=r -o -type d ! -perm -o=x \)
        for script in /workspace/run_*.sh; do test -x $script || echo $script; done
        find /workspace -name "*.py" | while read -r path; do
            ls ${path%/*}/__pycache__/$(basename $path .py).*.pyc > /dev/null || echo $path
        done"""
    assert image.run("sh", "-c", script, options=HARD, check=True).out == ""


def test_no_second_torch_and_no_training_code(image: Image) -> None:
    ended = image.run("sh", "-c", "ls /workspace; python3 -m pip check", options=HARD)
    assert ended.out.split("\n")[:-1] == [
        *sorted(["mood_infer", "weights", *SCRIPTS]),
        "No broken requirements found.",
    ]


def test_whole_interface_answers(image: Image, train_image: Image) -> None:
    assert "predict" in image.run("mood-infer", "--help", options=HARD, check=True).out
    for command in ("mood-infer", "mood-train", "mood-eval"):
        assert "Usage" in train_image.run(command, "--help", options=HARD, check=True).out


def test_shipped_weights_are_whole(image: Image) -> None:
    ended = image.run("mood-infer", "weights", options=HARD, check=True)
    assert "brain" in ended.out and "abdom" in ended.out


@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_of_each_script(image: Image, script: str) -> None:
    ended = image.run(f"/workspace/{script}", options=HARD)
    assert ended.code == 2 and ended.err.strip().endswith(
        f"usage: /workspace/{script} INPUT OUTPUT [OPTION ...]"
    )


def test_folder_that_is_not_there(image: Image, make_folder: Callable[[], Path]) -> None:
    mounts = [f"{make_folder()}:/mnt/pred"]
    script = "/workspace/run_pixel_brain.sh"
    ended = image.run("sh", script, "/mnt/missing", "/mnt/pred", mounts=mounts, options=HARD)
    assert ended.code == 2 and "/mnt/missing: there is no such file or folder; check the path." in ended.err
