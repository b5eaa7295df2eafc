"""Load an ensemble once, score many scans: the Python interface of the package.

>>> predictor = Predictor.load(Region.BRAIN)
>>> anomalies = predictor.predict(read_volume(Path("case.nii.gz")))
>>> anomalies.scores.shape, anomalies.sample_score
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from mood_infer.challenge import Region
from mood_infer.errors import UserError, WeightsError
from mood_infer.grid import Grid, resample
from mood_infer.intensity import UnitRule
from mood_infer.network import window_logits
from mood_infer.preparation import prepare, scan_grid
from mood_infer.scores import sample_score
from mood_infer.volume import Array3D, Volume
from mood_infer.weights import Manifest, find_weights, load_member, read_manifest
from mood_infer.windows import Progress, slide

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32"]

CUDA_BATCH_VOXELS = 2**22  # 16 windows of 64^3 at once, one of 160^3
THICK = 3.0  # voxels longer than this many working voxels deserve a warning
SMALL_MM = 20.0  # no head or abdomen is this short: the spacing is probably wrong


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """How anomalous each voxel of one scan is.

    Attributes:
        working: (X, Y, Z) float32 scores in [0,1] on the working grid, finite.
        image: (X, Y, Z) float32 in [0,1], the scan as the networks saw it, on the working grid.
        grid: the working grid, axes in RAS order.
        scan: the scan's own grid.
        members: files of the networks whose scores were averaged.
        seconds: wall time of preparation and prediction.
        warnings: one sentence for each reason to doubt the scores.
    """

    working: Array3D
    image: Array3D
    grid: Grid
    scan: Grid
    members: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @cached_property
    def scores(self) -> Array3D:
        """(X, Y, Z) float32 scores in [0,1] on the scan's own grid; made when first asked for."""
        return np.clip(resample(self.working, self.grid, self.scan), 0, 1)

    @property
    def sample_score(self) -> float:
        """One score in [0,1] for the whole scan (paper, section 2.4), from the working grid."""
        return sample_score(self.working)


class Predictor:
    """An ensemble of networks for one region, ready to score scans."""

    def __init__(
        self,
        manifest: Manifest,
        networks: Sequence[nn.Module],
        device: torch.device,
        precision: Precision = "auto",
    ) -> None:
        """Take networks as :func:`load_member` makes them, one for each member of ``manifest``."""
        if not networks or len(networks) != len(manifest.members):
            raise ValueError(f"{len(networks)} networks for {len(manifest.members)} members")
        self._manifest = manifest
        self._device = device
        self._reduced = _reduced_precision(device) if precision == "auto" else None
        # channels last is the layout in which the convolutions are fast, on both kinds of device
        layout = torch.channels_last_3d
        self._networks = [network.to(device).to(memory_format=layout) for network in networks]  # type: ignore[call-overload]

    @classmethod
    def load(
        cls,
        region: Region,
        weights: Path | None = None,
        device: Device = "auto",
        members: Sequence[str] | None = None,
        precision: Precision = "auto",
    ) -> Self:
        """Read a region's networks; every checksum is verified before this returns.

        Args:
            region: brain or abdom.
            weights: see :func:`mood_infer.weights.find_weights`.
            device: ``auto`` is CUDA where there is any.
            members: files of the members to use; all by default.
            precision: ``auto`` computes in 16 bits where the device is fast at that.

        Raises:
            WeightsError: the weights are missing, damaged, for another region, or have no such members.
            UserError: there is no such device here.
        """
        region = Region(region)
        where = _device(device)
        folder = find_weights(region, weights)
        manifest = read_manifest(folder)
        if manifest.region is not region:
            raise WeightsError(f"{folder}: weights for {manifest.region}; give those for {region}.")
        if members is not None:
            chosen = tuple(member for member in manifest.members if member.file in members)
            if unknown := set(members) - {member.file for member in chosen}:
                raise WeightsError(f"{folder}: no member {min(unknown)}; choose among those in the manifest.")
            manifest = manifest.model_copy(update={"members": chosen})
        if not manifest.members:
            raise WeightsError(f"{folder}: the ensemble has no members; train and export at least one.")
        networks = [load_member(folder, manifest, member) for member in manifest.members]
        return cls(manifest, networks, where, precision)

    @property
    def manifest(self) -> Manifest:
        """What the weights are; its members are the ones in use."""
        return self._manifest

    @property
    def digest(self) -> str:
        """12 hex digits for the weights and members in use."""
        return self._manifest.digest()

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._device.type

    @property
    def precision(self) -> str:
        """The number format of the convolutions: float32, bfloat16 or float16."""
        return str(self._reduced or torch.float32).removeprefix("torch.")

    def predict(self, volume: Volume, progress: Progress | None = None) -> AnomalyMap:
        """Score one scan (paper, sections 3.1.1 and 3.2).

        Args:
            volume: the scan as stored, in any orientation and spacing.
            progress: called with the number of windows done and of all windows.

        Raises:
            UserError: the scan is too large for the working grid.
        """
        begin = time.perf_counter()
        manifest = self._manifest
        image, grid = prepare(volume, manifest.intensity, manifest.spacing)
        batch = max(1, CUDA_BATCH_VOXELS // manifest.window**3) if self._device.type == "cuda" else 1
        with torch.inference_mode():
            blended = slide(
                torch.from_numpy(image).to(self._device),
                manifest.window,
                manifest.overlap,
                manifest.sigma,
                self._score,
                batch,
                progress,
            )
            working = blended.clamp_(0, 1).cpu().numpy()
        warnings = volume.warnings + self._doubts(volume, grid)
        files = tuple(member.file for member in manifest.members)
        seconds = time.perf_counter() - begin
        return AnomalyMap(working, image, grid, scan_grid(volume), files, seconds, warnings)

    def _score(self, windows: Tensor) -> Tensor:
        """(B, 1, w, w, w) intensities to the members' mean score, float32."""
        windows = windows.to(memory_format=torch.channels_last_3d)
        total = torch.zeros_like(windows, dtype=torch.float32)
        for network in self._networks:
            with self._autocast():
                logits = window_logits(network, windows)
            if not bool(torch.isfinite(logits).all()):  # float16 may overflow; float32 does not
                logits = window_logits(network, windows)
            total += torch.sigmoid(logits)
        return total.div_(len(self._networks)).nan_to_num_(nan=0.0)

    def _autocast(self) -> AbstractContextManager[None]:
        if self._reduced is None:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(self._device.type, dtype=self._reduced)
        return context

    def _doubts(self, volume: Volume, grid: Grid) -> tuple[str, ...]:
        doubts = []
        low, high = float(volume.array.min()), float(volume.array.max())
        if low == high:
            doubts.append(f"all voxels have the value {low:g}")
        if isinstance(self._manifest.intensity, UnitRule) and not 0 <= low <= high <= 1:
            doubts.append(
                f"values from {low:g} to {high:g} were cut to [0,1], the only range these weights know"
            )
        spacing = self._manifest.spacing
        longest = max(scan_grid(volume).spacing)
        if longest > THICK * spacing:
            doubts.append(f"voxels are up to {longest:g} mm long, the networks know {spacing:g} mm")
        if (extent := min(n * spacing for n in grid.shape)) < SMALL_MM:
            doubts.append(f"only {extent:g} mm along one axis: the spacing may be wrong")
        return tuple(doubts)


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("cuda: there is no usable GPU here; choose --device cpu or auto.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _reduced_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit format in which a device computes convolutions faster than in float32, if there is one."""
    if device.type == "cuda":
        return torch.float16
    # there is no public question for this; without an answer float32 is always right
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, question, bool)():
            return torch.bfloat16
    return None
