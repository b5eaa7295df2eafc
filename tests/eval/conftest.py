"""Scans made by code, as a scanner stores them, and small real networks."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings
from scipy import ndimage

from mood_infer.challenge import Region
from mood_infer.intensity import QuartileRule
from mood_infer.network import NetworkConfig, build_network
from mood_infer.weights import Manifest, Member, save_member, write_manifest

# a busy machine is no failure
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

DATA = Path(__file__).parents[3] / "shared" / "data"  # beside the repository; not on a user's machine
SHAPE = (44, 40, 36)
# axes L-A-S with 3 x 3 x 4 mm, the origin off the middle
AFFINE = np.array([[-3.0, 0, 0, 60], [0, 3, 0, -50], [0, 0, 4, -30], [0, 0, 0, 1]])


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three raw MR scans: ellipsoids of texture in black air, int16."""
    return _write_heads(tmp_path_factory.mktemp("scans"), 3)


@pytest.fixture(scope="session")
def five_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five scans like ``scans``."""
    return _write_heads(tmp_path_factory.mktemp("five-scans"), 5)


def _write_heads(folder: Path, count: int) -> Path:
    for number in range(count):
        _write_head(folder / f"sub-0{number + 1}.nii.gz", number)
    return folder


def _write_head(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij", sparse=True)
    inside = sum(g * g for g in grid) < 0.8
    array = np.where(inside, 70 + 40 * texture / np.abs(texture).max(), 0)
    image = nib.Nifti1Image(array.astype(np.int16), AFFINE)
    image.header.set_sform(AFFINE, code=1)
    nib.save(image, path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Brain weights of two small members with random parameters."""
    folder = tmp_path_factory.mktemp("weights") / Region.BRAIN
    folder.mkdir()
    config = NetworkConfig(widths=(4, 4, 6, 6, 8))
    members = []
    for number in range(2):
        torch.manual_seed(number)
        file = f"fold{number}-hard.safetensors"
        members.append(
            Member(
                file=file,
                sha256=save_member(folder / file, build_network(config)),
                preset="test",
                fold=number,
                edges="hard",
                steps=0,
                seed=number,
                data="none",
                data_sha256="0" * 64,
                licence="none",
                code_version="test",
                hardware="cpu",
                minutes=0,
            )
        )
    manifest = Manifest(
        region=Region.BRAIN,
        network=config,
        intensity=QuartileRule(),
        spacing=4.0,
        window=32,
        members=tuple(members),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans; tests that need it are skipped where it is absent."""
    if not (DATA / "split.json").is_file():
        pytest.skip("needs the real scans (shared/data beside the repository)")
    return DATA


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are slower on many threads."""
    torch.set_num_threads(1)
