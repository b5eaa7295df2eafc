"""Small normal scans made by code, and a recipe that trains on them in seconds."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mood_infer.network import NetworkConfig
from mood_infer.volume import Array3D
from mood_train.config import (
    AnomalyConfig,
    OptimiserConfig,
    PatchConfig,
    Preset,
    RunConfig,
    load_preset,
)
from mood_train.data import CachedScan

LEVELS = {"sub-01": 0.2, "sub-02": 0.5, "sub-03": 0.8}


def make_scan(
    name: str, level: float, side: int = 48, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> CachedScan:
    """A ball of one intensity, ``side`` mm wide, and a ripple far smaller than the levels' distance."""
    lines = [(np.arange(round(side / step)) * step) - side / 2 for step in spacing]
    x, y, z = np.meshgrid(*lines, indexing="ij")
    body = x**2 + y**2 + z**2 < (0.45 * side) ** 2
    image: Array3D = np.where(body, level + 0.02 * np.sin(x), 0).astype(np.float32)
    return cached(name, image, body, spacing)


def cached(
    name: str, image: Array3D, body: NDArray[np.bool_], spacing: tuple[float, float, float], air: float = 0.0
) -> CachedScan:
    """A scan as the cache would hold it; whatever is no brighter than ``air`` is no tissue."""
    places = np.argwhere(body).astype(np.int16)
    tissue = places[image[tuple(places.T)] > air]
    halved = image.astype(np.float16)
    return CachedScan(f"{name}.nii.gz", name, spacing, halved, body, places, tissue, "0" * 64)


@pytest.fixture(scope="session")
def scans() -> list[CachedScan]:
    """Three subjects, told apart by their intensity."""
    return [make_scan(name, level) for name, level in LEVELS.items()]


@pytest.fixture(scope="session")
def tiny_preset() -> Preset:
    """The compact recipe, smaller still."""
    compact = load_preset("compact")
    return compact.model_copy(
        update={
            "name": "tiny",
            "network": NetworkConfig(widths=(4, 4, 4, 4, 4)),
            "patches": PatchConfig(window=32, min_body=0.3),
            "anomalies": AnomalyConfig(rate=1.0, max_count=2, other_share=1.0, bank_size=8),
            "optimiser": OptimiserConfig(steps=6, batch=2, max_lr=1e-3),
        }
    )


@pytest.fixture()
def tiny_run(tiny_preset: Preset) -> RunConfig:
    """A run of the small recipe on brains."""
    return RunConfig(preset=tiny_preset, region="brain", edges="smooth", fold=None, seed=3)


@pytest.fixture()
def out(tmp_path: Path) -> Path:
    """A folder for a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder
