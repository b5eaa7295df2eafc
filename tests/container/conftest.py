"""The images under test; scripts/test-image.sh builds them and calls pytest."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import Image


def _image(variable: str) -> Image:
    name = os.environ.get(variable)
    if not name:
        pytest.fail(f"{variable} names no image; run scripts/test-image.sh")
    return Image(name)


@pytest.fixture(scope="session")
def image() -> Image:
    """The submission image."""
    return _image("MOOD_IMAGE")


@pytest.fixture(scope="session")
def train_image() -> Image:
    """The training image."""
    return _image("MOOD_TRAIN_IMAGE")


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """A function that makes an empty folder anyone can write to; all are removed at the end."""
    base = tmp_path_factory.mktemp("container")

    def make() -> Path:
        folder = base / uuid.uuid4().hex[:8]
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    yield make
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def weights(make_weights: Callable[..., Path], make_folder: Callable[[], Path]) -> Path:
    """A folder of tiny weights for both regions that every user can read; not to be changed."""
    return make_weights(make_folder())
