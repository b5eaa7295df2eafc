"""Three baselines that learn nothing but averages: what any network must beat.

Each is fitted on the normal scans of the training folds, and scores a case by a fixed rule: nothing is ever
normalised by the case at hand. They work on an isotropic grid of 2 mm and score body voxels; the rest is 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mood_eval.body import Mask3D, body_mask
from mood_eval.table import Scored
from mood_eval.validation_set import Made, default_rule
from mood_infer.challenge import Region
from mood_infer.errors import ScanError
from mood_infer.grid import Grid
from mood_infer.preparation import prepare
from mood_infer.scores import sample_score
from mood_infer.volume import Array3D, Volume, read_volume

SPACING = 2.0  # mm
INTENSITIES = 256  # bins over [0,1]
TEMPLATE = 96  # voxels a side of the mean scan
REACH = 1.5  # of the mean scan from its centre, in half body lengths
LEVELS = 16  # intensities that the local entropy tells apart
NEIGHBOURHOOD = 5  # voxels a side of the cube it is taken in


@dataclass(frozen=True, eq=False)
class BodyScan:
    """A scan on the baselines' grid.

    Attributes:
        array: (X, Y, Z) float32 in [0,1], RAS.
        body: (X, Y, Z) bool, the patient's voxels.
        grid: of both.
    """

    array: Array3D
    body: Mask3D
    grid: Grid

    @classmethod
    def of(cls, volume: Volume, region: Region) -> "BodyScan":
        """Put a scan on the grid, by the region's default rules."""
        array, grid = prepare(volume, default_rule(region), SPACING)
        return cls(array, body_mask(array, region, grid.spacing), grid)


class Baseline(Protocol):
    """What is fitted by adding normal scans, and then scores any scan."""

    def add(self, scan: BodyScan) -> None:
        """Learn from a normal scan with some body."""

    def score(self, scan: BodyScan) -> tuple[Array3D, float]:
        """The map, (X, Y, Z) float32 in [0,1], and the sample score in [0,1]."""


class IntensityHistogram:
    """How rare an intensity is in the body, and how far a scan's histogram is from the nearest normal one.

    The map is -log p over its largest possible value, with p the share of the intensity's bin among all
    training voxels, one more counted in each bin. The sample score is the smallest Wasserstein distance
    between the scan's histogram and a training scan's.
    """

    def __init__(self) -> None:
        self._counts: list[NDArray[np.int64]] = []

    def add(self, scan: BodyScan) -> None:
        """See :class:`Baseline`."""
        self._counts.append(self._histogram(scan))

    def score(self, scan: BodyScan) -> tuple[Array3D, float]:
        """See :class:`Baseline`."""
        pooled = np.sum(self._counts, axis=0) + 1
        rarity = 1 - np.log(pooled) / np.log(pooled.sum())
        scores = np.where(scan.body, rarity[_levels(scan.array, INTENSITIES)], 0).astype(np.float32)
        if not scan.body.any():
            return scores, 1.0  # no body at all is as far as can be
        own = _cumulated(self._histogram(scan))
        return scores, min(float(np.abs(own - _cumulated(one)).mean()) for one in self._counts)

    @staticmethod
    def _histogram(scan: BodyScan) -> NDArray[np.int64]:
        return np.bincount(_levels(scan.array[scan.body], INTENSITIES), minlength=INTENSITIES)


class MeanScan:
    """|scan - mean of the training scans|, on a rough affine alignment.

    Scans are laid over each other by the centre of mass of their bodies, and stretched along each axis to the
    same body length.
    """

    def __init__(self) -> None:
        self._sum, self._count = np.zeros((TEMPLATE,) * 3), 0

    def add(self, scan: BodyScan) -> None:
        """See :class:`Baseline`."""
        centre, step = _frame(scan.body)
        start = centre - step * (TEMPLATE - 1) / 2
        self._sum += ndimage.affine_transform(scan.array, step, start, self._sum.shape, order=1)
        self._count += 1

    def score(self, scan: BodyScan) -> tuple[Array3D, float]:
        """See :class:`Baseline`."""
        if not scan.body.any():
            return np.zeros_like(scan.array), 0.0
        centre, step = _frame(scan.body)
        start = (TEMPLATE - 1) / 2 - centre / step
        mean = (self._sum / self._count).astype(np.float32)
        aligned = ndimage.affine_transform(mean, 1 / step, start, scan.array.shape, order=1)
        scores = np.where(scan.body, np.abs(scan.array - aligned), np.float32(0))
        return scores, sample_score(scores)


class LocalEntropy:
    """|local entropy - its mean over the training scans|, over the largest entropy there is."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, scan: BodyScan) -> None:
        """See :class:`Baseline`."""
        self._sum += float(local_entropy(scan)[scan.body].sum(dtype=np.float64))
        self._count += int(scan.body.sum())

    def score(self, scan: BodyScan) -> tuple[Array3D, float]:
        """See :class:`Baseline`."""
        deviation = np.abs(local_entropy(scan) - np.float32(self._sum / self._count)) / np.float32(
            np.log(LEVELS)
        )
        scores = np.where(scan.body, deviation, np.float32(0))
        return scores, sample_score(scores)


def local_entropy(scan: BodyScan) -> Array3D:
    """Entropy, in nats, of 16 levels of intensity among the body voxels in the 10 mm cube around each voxel.

    Returns:
        (X, Y, Z) float32 in [0, log 16]; 0 where no body is near.
    """
    levels = np.where(scan.body, _levels(scan.array, LEVELS), LEVELS)
    near = _mean_around(scan.body)
    entropy = np.zeros_like(scan.array)
    for level in range(LEVELS):
        share = _mean_around(levels == level) / np.maximum(near, 0.5 / NEIGHBOURHOOD**3)
        entropy -= share * np.log(np.maximum(share, 1e-9))
    return np.clip(entropy, 0, np.float32(np.log(LEVELS)))


def _mean_around(mask: Mask3D) -> Array3D:
    mean: Array3D = ndimage.uniform_filter(mask.astype(np.float32), NEIGHBOURHOOD, mode="constant")
    return np.maximum(mean, 0)  # the running sums may end a rounding below 0


def _levels(array: Array3D, count: int) -> NDArray[np.intp]:
    return np.minimum(array * count, count - 1).astype(np.intp)


def _cumulated(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.cumsum(counts) / counts.sum()


def _frame(body: Mask3D) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) centre of mass in voxels, and (3,) voxels a step of the mean scan, by the body's lengths."""
    lengths = [part.stop - part.start for part in ndimage.find_objects(body.view(np.uint8))[0]]
    return np.array(ndimage.center_of_mass(body)), REACH * np.array(lengths) / (TEMPLATE - 1)


BASELINES: dict[str, Callable[[], Baseline]] = {
    "intensity-histogram": IntensityHistogram,
    "mean-scan": MeanScan,
    "local-entropy": LocalEntropy,
}


@dataclass(frozen=True)
class Baselines:
    """Baselines of a region, fitted.

    Attributes:
        region: brain or abdom.
        parts: by name.
    """

    region: Region
    parts: Mapping[str, Baseline]

    @classmethod
    def fit(cls, scans: Sequence[Path], region: Region, names: Iterable[str] = BASELINES) -> "Baselines":
        """Fit on normal scans, none of which will be judged on.

        Args:
            scans: to fit on.
            region: brain or abdom.
            names: which of :data:`BASELINES`.

        Raises:
            UserError: a scan cannot be read, or has no body.
        """
        parts = {name: BASELINES[name]() for name in names}
        for path in scans:
            scan = BodyScan.of(read_volume(path), region)
            if not scan.body.any():
                raise ScanError(path, "no voxel of it is body", "leave it out of the split file's folds")
            for part in parts.values():
                part.add(scan)
        return cls(region, parts)

    def score(self, made: Made) -> dict[str, Scored]:
        """What each baseline says of a case."""
        scan = BodyScan.of(made.image, self.region)
        scored = {name: part.score(scan) for name, part in self.parts.items()}
        return {name: Scored(map_, scan.grid, sample) for name, (map_, sample) in scored.items()}
