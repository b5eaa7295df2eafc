"""Real networks with random weights, small enough to run in milliseconds, and scans for them."""

from collections.abc import Callable, Collection
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mood_infer.challenge import Region
from mood_infer.intensity import QuartileRule
from mood_infer.network import NetworkConfig, build_network
from mood_infer.weights import Manifest, Member, save_member, write_manifest

WIDTHS = (4, 4, 6, 6, 8)
WINDOW = 32

WeightsMaker = Callable[..., Path]
ScanMaker = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_weights() -> WeightsMaker:
    """A function that writes ``<root>/<region>`` for both regions: members from a seed, two unless told.

    Those whose numbers are in ``smooth`` are said to have been taught smoothed edges.
    """

    def make(
        root: Path, seed: int = 0, count: int = 2, smooth: Collection[int] = (), **settings: object
    ) -> Path:
        for region in Region:
            folder = root / region
            folder.mkdir(parents=True)
            members = tuple(
                _make_member(folder, seed + number, number, number in smooth) for number in range(count)
            )
            fields = {
                "region": region,
                "network": NetworkConfig(widths=WIDTHS),
                "intensity": QuartileRule(),
                "spacing": 1.0,
                "window": WINDOW,
                "members": members,
            }
            write_manifest(folder, Manifest.model_validate(fields | settings))
        return root

    return make


@pytest.fixture(scope="session")
def weights(make_weights: WeightsMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny weights for both regions; not to be changed."""
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def make_scan() -> ScanMaker:
    """A function that writes a scan: a bright ellipsoid with texture in black air, in [0,1]."""

    def make(
        path: Path,
        shape: tuple[int, int, int] = (40, 36, 30),
        seed: int = 0,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> Path:
        random = np.random.default_rng(seed)
        place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        array = np.where((place**2).sum(axis=0) < 0.8, random.uniform(0.3, 0.7, shape), 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([*spacing, 1.0])), path)
        return path

    return make


def _make_member(folder: Path, seed: int, number: int, smooth: bool) -> Member:
    torch.manual_seed(seed)
    network = build_network(NetworkConfig(widths=WIDTHS))
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if "norm" in name:  # as training leaves them: neither all ones nor all zeros
                tensor.add_(0.3 * torch.randn_like(tensor))
    file = f"member{number}.safetensors"
    sha256 = save_member(folder / file, network)
    return Member(
        file=file,
        sha256=sha256,
        preset="tiny",
        fold=number,
        edges="smooth" if smooth else "hard",
        steps=0,
        seed=seed,
        data="none",
        data_sha256="none",
        licence="none",
        code_version="0",
        hardware="cpu",
        minutes=0.0,
    )
