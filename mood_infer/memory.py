"""Where a scan is computed, how much memory it takes, and how to go on with less when a GPU's runs out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from mood_infer.errors import ScanError
from mood_infer.grid import Grid, working_grid
from mood_infer.network import count_parameters
from mood_infer.volume import read_geometry
from mood_infer.weights import Manifest

# Measured peaks lie a little below: see tests/infer/test_memory.py.
BASE_BYTES = 450e6  # Python and torch
PARAMETER_BYTES = 6  # for each parameter of each member
CPU_PAIR_VOXELS = 2**21  # windows are computed two at once where these have no more voxels, as of 96^3
FEATURE_BYTES = 32  # for each voxel computed at once and feature at full resolution, in float32
SCAN_BYTES = 20  # for each voxel of the scan
WORKING_BYTES = 24  # for each voxel of the working grid
GB = 1e9

NO_ROOM = (  # what torch and its libraries say otherwise where memory is short
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # none has room for its workspace
)

Result = TypeVar("Result")


def cpu_batch(window: int) -> int:
    """How many windows with a side of ``window`` voxels a CPU computes at once in float32, at most."""
    return 2 if 2 * window**3 <= CPU_PAIR_VOXELS else 1


def needed_bytes(scan: Grid, manifest: Manifest) -> float:
    """Resident memory that a process which scores one scan takes at most, on a CPU, from file to map.

    Args:
        scan: the scan's own grid.
        manifest: of the ensemble that scores it.
    """
    voxels = math.prod(scan.shape)
    working = math.prod(working_grid(scan, manifest.spacing, manifest.upsample).shape)
    parameters = len(manifest.members) * count_parameters(manifest.network)
    features = cpu_batch(manifest.window) * manifest.window**3 * manifest.network.widths[0]
    ensemble = PARAMETER_BYTES * parameters + FEATURE_BYTES * features
    return BASE_BYTES + ensemble + SCAN_BYTES * voxels + WORKING_BYTES * working


def check_fits(path: Path, manifest: Manifest, limit: float) -> None:
    """Refuse a scan that would take more than ``limit`` bytes, by its header alone.

    Raises:
        ScanError: it would, or its header cannot be read.
    """
    needed = needed_bytes(Grid(*read_geometry(path)), manifest)
    if needed > limit:
        text = f"it takes up to {needed / GB:.1f} GB of memory, and {limit / GB:g} GB are allowed"
        raise ScanError(path, text, "crop it or allow more")


def limit_gpu(limit: float) -> None:
    """Let this process allocate no more than ``limit`` bytes of the current GPU; that costs time only."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))


def lacks_gpu_memory(error: Exception) -> bool:
    """Whether a GPU's memory is the reason; torch has a kind of its own for it, its libraries have words."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_ROOM)


@dataclass(frozen=True)
class Room:
    """Where things are while a scan is scored.

    Attributes:
        compute: the device of the networks.
        keep: the device of the scan and of the map that its windows are added to.
        batch: windows at once.
        cpu_batch: windows at once where a GPU is given up for the CPU.
    """

    compute: torch.device
    keep: torch.device
    batch: int
    cpu_batch: int = 1

    def less(self) -> tuple["Room", str] | None:
        """The next smaller way and a word for it; None where there is none."""
        cpu = torch.device("cpu")
        if self.batch > 1 and self.compute != cpu:
            batch = self.batch // 2
            return replace(self, batch=batch), f"batches of {batch} were used"
        if self.keep != cpu:
            return replace(self, keep=cpu), "the map was kept in the computer's own memory"
        if self.compute != cpu:
            return replace(self, compute=cpu, batch=self.cpu_batch), "the CPU was used"
        return None


class Memory:
    """Does work in a room, and again in a smaller one whenever a GPU's memory does not suffice.

    Attributes:
        room: the one in use; it never grows again.
        warnings: one sentence for each step down.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.warnings: list[str] = []

    def attempt(self, work: Callable[[Room], Result]) -> Result:
        """What ``work`` returns for the largest room that suffices; it may be called many times.

        Raises:
            RuntimeError: not even the smallest one does, or the error is not of memory.
        """
        while True:
            try:
                return work(self.room)
            except RuntimeError as error:
                smaller = self.room.less() if lacks_gpu_memory(error) else None
                if smaller is None:
                    raise
            # only here, after the error and all that its traceback holds are gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.room, way = smaller
            self.warnings.append(f"the GPU's memory was too small, so {way}")
