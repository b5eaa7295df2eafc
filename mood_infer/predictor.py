"""Load an ensemble once, score many scans: the Python interface of the package.

Cost is bounded: windows stand over the body only, memory does not grow with the number of members, a scan may
have a time limit, and a GPU that is too small costs time, not the result.

>>> predictor = Predictor.load(Region.BRAIN)
>>> anomalies = predictor.predict(read_volume(Path("case.nii.gz")))
>>> anomalies.scores.shape, anomalies.sample_score
"""

import math
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from mood_infer.averaging import average_members
from mood_infer.challenge import Region
from mood_infer.errors import UserError, WeightsError
from mood_infer.grid import Grid, resample
from mood_infer.memory import Memory, Room, cpu_batch
from mood_infer.network import fold_norms, window_logits
from mood_infer.preparation import body_box, prepare, scan_grid
from mood_infer.refinement import MeanMap
from mood_infer.volume import Array3D, Volume
from mood_infer.weights import Manifest, find_weights, load_member, read_manifest
from mood_infer.windows import NO_SHIFT, Progress, Score, count_windows, cube_weights, slide

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32"]
Speed = Literal["exact", "fast"]
Clock = Callable[[], float]

MARGIN = 0.125  # of the window, kept around the body
# By how much each member's windows move on against the one before, along x, y and z: the
# fractions of the golden ratio, of root 2 and of root 3, whose multiples spread evenly, few or many.
STAGGER = (0.6180340, 0.4142136, 0.7320508)
WIDENED = (1, 0.75, 0.5, 0.25, 0)  # shares of the overlap: the first is taken for which there is time
CUDA_BATCH_VOXELS = 2**22  # 16 windows of 64^3 at once, one of 160^3
THICK = 2.0  # voxels longer than this many working voxels deserve a warning
LONGEST_KEPT = 6.0  # mm; longer ones deserve it where voxels are kept as long as they are
SMALL_MM = 20.0  # no head or abdomen is this short: the spacing is probably wrong


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """How anomalous each voxel of one scan is.

    Attributes:
        working: (X, Y, Z) float32 scores in [0,1] on the working grid, finite.
        sample_score: one score in [0,1] for the whole scan (paper, section 2.4), from the working grid and
            before the scores were weighed by their context: a small anomaly may score higher than its voxels.
        image: (X, Y, Z) float32 in [0,1], the scan as the networks saw it, on the working grid.
        grid: the working grid, axes in RAS order.
        scan: the scan's own grid.
        members: files of the networks whose scores were averaged; for a network that is a mean of some, their
            names.
        seconds: wall time of preparation and prediction.
        warnings: one sentence for each reason to doubt the scores.
        complete: whether time was enough for every member, with the windows as close as they should be.
        normal_scores: sample scores that this very ensemble gave normal scans, rising; none if unknown.
    """

    working: Array3D
    sample_score: float
    image: Array3D
    grid: Grid
    scan: Grid
    members: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    complete: bool = True
    normal_scores: tuple[float, ...] = ()

    @cached_property
    def scores(self) -> Array3D:
        """(X, Y, Z) float32 scores in [0,1] on the scan's own grid; made when first asked for."""
        return np.clip(resample(self.working, self.grid, self.scan), 0, 1)

    @property
    def normal_below(self) -> tuple[int, int] | None:
        """How many of the known normal scans have a lower sample score, and of how many; None without any."""
        if not self.normal_scores:
            return None
        return bisect_left(self.normal_scores, self.sample_score), len(self.normal_scores)


class Predictor:
    """An ensemble of networks for one region, ready to score scans."""

    def __init__(
        self,
        manifest: Manifest,
        networks: Sequence[nn.Module],
        device: torch.device,
        precision: Precision = "auto",
        speed: Speed = "exact",
        time_limit: float | None = None,
        clock: Clock = time.monotonic,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Take one network in evaluation for each member of ``manifest``; the rest is as in :meth:`load`.

        ``weights`` says how much the map of each counts in the mean; without it the manifest does.
        """
        if not networks or len(networks) != len(manifest.members):
            raise ValueError(f"{len(networks)} networks for {len(manifest.members)} members")
        self._manifest = manifest
        self._weights = weights or [manifest.weight_of(member) for member in manifest.members]
        self._speed = speed
        self.place_windows(manifest.overlap, staggered=speed == "fast")
        self._time_limit = time_limit
        self._clock = clock
        self._device = device
        self._reduced = reduced_precision(device) if precision == "auto" else None
        self._room = Room(device, device, self._batch(), cpu_batch(manifest.window))
        # channels last is the layout in which the convolutions are fast, on both kinds of device;
        # a network goes to its device when it is first needed, where a lack of memory is dealt with
        layout = torch.channels_last_3d
        self._networks = [network.to(memory_format=layout) for network in networks]  # type: ignore[call-overload]

    @classmethod
    def load(
        cls,
        region: Region,
        weights: Path | None = None,
        device: Device = "auto",
        members: Sequence[str] | None = None,
        precision: Precision = "auto",
        speed: Speed = "exact",
        time_limit: float | None = None,
        clock: Clock = time.monotonic,
    ) -> Self:
        """Read a region's networks; every checksum is verified before this returns.

        Args:
            region: brain or abdom.
            weights: see :func:`mood_infer.weights.find_weights`.
            device: ``auto`` is CUDA where there is any.
            members: files of the members to use; all by default.
            precision: ``auto`` computes in 16 bits where the device is fast at that.
            speed: ``exact`` is the paper's: every member looks at the same windows, with the manifest's
                overlap. ``fast`` runs one network for all members with the same edges and like weights (see
                :mod:`mood_infer.averaging`), each on windows of its own.
            time_limit: for each scan, in seconds from the call of :meth:`predict`; see there.
            clock: seconds from any start; it never goes back.

        Raises:
            WeightsError: the weights are missing, damaged, for another region, or have no such members.
            UserError: there is no such device here.
        """
        region = Region(region)
        where = _device(device)
        folder = find_weights(region, weights)
        manifest = read_manifest(folder, region)
        if members is not None:
            chosen = tuple(member for member in manifest.members if member.file in members)
            if unknown := set(members) - {member.file for member in chosen}:
                raise WeightsError(f"{folder}: no member {min(unknown)}; choose among those in the manifest.")
            if chosen != manifest.members:
                manifest = manifest.with_members(chosen)
        if not manifest.members:
            raise WeightsError(f"{folder}: the ensemble has no members; train and export at least one.")
        networks = [load_member(folder, manifest, member) for member in manifest.members]
        shares = None
        if speed == "fast":
            manifest, networks, shares = average_members(manifest, networks)
        folded = [fold_norms(network) for network in networks]
        return cls(manifest, folded, where, precision, speed, time_limit, clock, shares)

    def place_windows(self, overlap: float, staggered: bool = False, margin: float = MARGIN) -> None:
        """Let windows stand otherwise than the weights ask for, from the next scan on: to compare ways.

        Args:
            overlap: of neighbouring windows, share of their side in [0,1).
            staggered: whether each member has windows of its own.
            margin: around the body, in windows.
        """
        self._overlap, self._staggered, self._margin = overlap, staggered, margin

    @property
    def manifest(self) -> Manifest:
        """What the weights are; its members are the ones in use."""
        return self._manifest

    @property
    def digest(self) -> str:
        """12 hex digits for the weights and members in use, and ``-fast`` where they run so."""
        return self._manifest.digest() + ("-fast" if self._speed == "fast" else "")

    @property
    def time_limit(self) -> float | None:
        """For each scan, in seconds."""
        return self._time_limit

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._device.type

    @property
    def precision(self) -> str:
        """The number format of the convolutions: float32, bfloat16 or float16."""
        return format_name(self._reduced)

    def predict(self, volume: Volume, progress: Progress | None = None) -> AnomalyMap:
        """Score one scan (paper, sections 3.1.1 and 3.2).

        Windows stand only over the body and a margin; everything beyond has the score of empty background.
        The members run one after another, each over all its windows, so memory does not grow with their
        number. With a time limit the next one runs only if the last one's time is still left. Where not
        even the first would fit, its windows overlap less. There always is a map, even if it comes late.

        Args:
            volume: the scan as stored, in any orientation and spacing.
            progress: called with the number of windows done and of all windows of all members.

        Raises:
            UserError: the scan is too large for the working grid.
        """
        begin = self._clock()
        manifest = self._manifest
        image, grid = prepare(volume, manifest.intensity, manifest.spacing, manifest.upsample)
        box = body_box(image, manifest.region, round(self._margin * manifest.window))
        body = torch.from_numpy(image[box])
        air = float(image.min()) if body.shape != image.shape else None
        memory = Memory(self._room)
        end = math.inf if self._time_limit is None else begin + self._time_limit
        with torch.inference_mode():
            inside, outside, overlap, used = self._mean(body, air, memory, end, progress)
        mean = MeanMap(inside.numpy(), outside, box, image.shape, grid.spacing)
        working, score = self._refine(mean)
        late = self._shortened(overlap, used)
        doubts = volume.warnings + self._doubts(volume, grid) + tuple(memory.warnings) + late
        files = tuple(member.file for member in manifest.members[:used])
        seconds = self._clock() - begin
        # the normal scans were scored exactly and by all members
        comparable = self._speed == "exact" and not late
        normal = manifest.normal_scores if comparable else ()
        own = scan_grid(volume)
        return AnomalyMap(working, score, image, grid, own, files, seconds, doubts, not late, normal)

    def _refine(self, mean: MeanMap) -> tuple[Array3D, float]:
        return mean.refined(self._manifest.smoothing, self._manifest.context)

    def _mean(
        self,
        body: Tensor,
        air: float | None,
        memory: Memory,
        end: float,
        progress: Progress | None,
    ) -> tuple[Tensor, float, float, int]:
        """The weighted mean map of as many members as time allows.

        Args:
            body: (X, Y, Z) intensities in [0,1].
            air: intensity of all that lies around it; None where nothing does.
            memory: what there is of it.
            end: when to be done, by the clock.
            progress: see :meth:`predict`.

        Returns:
            The map of ``body``, the score of ``air``, the overlap of the windows, and how many members ran.
        """
        total, outside, weights, used = torch.zeros(body.shape), 0.0, 0.0, 0
        overlap = self._overlap

        def score(number: int, room: Room) -> tuple[Tensor, float, float]:
            nonlocal overlap
            if number == 0:  # chosen again where memory lacks: a smaller room is slower
                overlap = self._affordable_overlap(body.shape, air is not None, room, end)
            return self._member(number, body, air, overlap, progress, room)

        for number, weight in enumerate(self._weights):
            scores, empty, seconds = memory.attempt(partial(score, number))
            total.add_(scores, alpha=weight)
            del scores  # before the next member makes its own
            outside += weight * empty
            weights += weight
            used += 1
            if self._clock() + seconds > end:
                break
        return total.div_(weights).clamp_(0, 1), min(outside / weights, 1.0), overlap, used

    def _member(
        self,
        number: int,
        body: Tensor,
        air: float | None,
        overlap: float,
        progress: Progress | None,
        room: Room,
    ) -> tuple[Tensor, float, float]:
        """One member's map of the body, on the CPU, its score for ``air``, and how long it took."""
        started = self._clock()
        window, sigma = self._manifest.window, self._manifest.sigma
        score, shift = self._scorer(number, room), self._shift(number)
        tell = partial(_tell, progress, number, len(self._networks)) if progress else None
        blended = slide(body.to(room.keep), window, overlap, sigma, score, room.batch, tell, shift)
        outside = 0.0
        if air is not None:
            empty = score(torch.full((1, 1, window, window, window), air, device=room.keep))[0, 0]
            weights = cube_weights(window, sigma).to(room.keep)
            outside = float((empty * weights).sum() / weights.sum())
        return blended.cpu(), outside, self._clock() - started

    def _shift(self, number: int) -> tuple[float, float, float]:
        if not self._staggered:
            return NO_SHIFT
        x, y, z = (number * share % 1 for share in STAGGER)
        return x, y, z

    def _affordable_overlap(self, shape: Sequence[int], with_air: bool, room: Room, end: float) -> float:
        """The largest overlap with which the first member is done in time; 0 where none is."""
        if end == math.inf:
            return self._overlap
        window, score = self._manifest.window, self._scorer(0, room)
        for _ in range(2):  # the first time that anything is computed is slow
            started = self._clock()
            score(torch.zeros(room.batch, 1, window, window, window))
            seconds = (self._clock() - started) / room.batch
        for share in WIDENED:
            overlap = share * self._overlap
            count = count_windows(shape, window, overlap) + with_air
            if self._clock() + count * seconds <= end:
                break
        return overlap

    def _batch(self) -> int:
        if self._device.type == "cuda":
            return max(1, CUDA_BATCH_VOXELS // self._manifest.window**3)
        return 2 if self._needs_pairs(self._device) else 1

    def _needs_pairs(self, device: torch.device) -> bool:
        """Whether torch would compute a lone window without oneDNN, which takes thrice as long."""
        in_float32 = device.type == "cpu" and self._half(device) is None
        return in_float32 and cpu_batch(self._manifest.window) == 2

    def _scorer(self, number: int, room: Room) -> Score:
        network = self._networks[number].to(room.compute)
        return lambda windows: self._score(network, windows.to(room.compute)).to(windows.device)

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        """(B, 1, w, w, w) intensities to one member's scores, float32."""
        count = len(windows)
        if count == 1 and self._needs_pairs(windows.device):
            windows = windows.repeat(2, 1, 1, 1, 1)
        windows = windows.to(memory_format=torch.channels_last_3d)
        with self._autocast(windows.device):
            logits = window_logits(network, windows)
        may_overflow = self._half(windows.device) is torch.float16
        if may_overflow and not bool(torch.isfinite(logits).all()):
            logits = window_logits(network, windows)
        return torch.sigmoid(logits[:count]).nan_to_num_(nan=0.0)

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        half = self._half(device)
        if half is None:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(device.type, dtype=half)
        return context

    def _half(self, device: torch.device) -> torch.dtype | None:
        """The 16-bit format on a device: that of the first choice has none on another."""
        return self._reduced if device.type == self._device.type else None

    def _shortened(self, overlap: float, used: int) -> tuple[str, ...]:
        """What the time limit took away, in sentences."""
        limit, count = f"of the time limit of {self._time_limit or 0:g} s", len(self._networks)
        lost = []
        if overlap < self._overlap:
            lost.append(f"because {limit} windows overlap by {overlap:g}, not {self._overlap:g}")
        if used < count:
            lost.append(f"because {limit} only {used} of {count} members were used")
        return tuple(lost)

    def _doubts(self, volume: Volume, grid: Grid) -> tuple[str, ...]:
        doubts = []
        if (value := volume.array.min()) == volume.array.max():
            doubts.append(f"all voxels have the value {value:g}")
        doubts.extend(self._manifest.intensity.doubts(volume.array))
        longest, spacing = max(scan_grid(volume).spacing), self._manifest.spacing
        if self._manifest.upsample and longest > THICK * spacing:
            doubts.append(f"voxels are up to {longest:g} mm long, the networks know {spacing:g} mm")
        if not self._manifest.upsample and longest > LONGEST_KEPT:
            doubts.append(
                f"voxels are up to {longest:g} mm long, the networks know up to {LONGEST_KEPT:g} mm"
            )
        if (extent := min(np.multiply(grid.shape, grid.spacing))) < SMALL_MM:
            doubts.append(f"only {extent:g} mm along one axis: the spacing may be wrong")
        return tuple(doubts)


def _tell(progress: Progress, member: int, members: int, done: int, count: int) -> None:
    progress(member * count + done, members * count)


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("cuda: there is no usable GPU here; choose --device cpu or auto.")
    if name == "auto":
        return torch.device("cuda" if _has_working_gpu() else "cpu")
    return torch.device(name)


def _has_working_gpu() -> bool:
    """Whether a GPU computes: one that is there may be full, or of a kind that this torch has no code for."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool(torch.ones(8, device="cuda").sum() == 8)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"the GPU cannot be used ({reason}); the CPU is, which is slower", stacklevel=2)
        return False


def reduced_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit format in which a device computes convolutions faster than in float32, if there is one."""
    if device.type == "cuda":
        return torch.float16
    # there is no public question for this; without an answer float32 is always right
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, question, bool)():
            return torch.bfloat16
    return None


def format_name(reduced: torch.dtype | None) -> str:
    """The number format of convolutions in words: float32 where there is no 16-bit one."""
    return str(reduced or torch.float32).removeprefix("torch.")
