"""From the mean of the networks' maps to the map that counts and the score of the scan.

Neither step is the paper's; a manifest says how far each goes, and 0 leaves it out.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from mood_infer.scores import sample_score
from mood_infer.volume import Array3D

LONG_SIGMA = 5.0  # voxels from which boxes are quicker than a Gaussian, and near enough to one
REACH = 4  # sigmas beyond which SciPy's Gaussian is nothing


@dataclass(frozen=True, eq=False)
class MeanMap:
    """The mean of the networks' maps of one scan, as it comes out of the windows.

    Attributes:
        inside: (X, Y, Z) float32 scores in [0,1] of the body and a margin.
        outside: the score of everything around.
        box: where in the working grid ``inside`` lies.
        shape: of the working grid.
        spacing: of the working grid along each axis, in mm.
    """

    inside: Array3D
    outside: float
    box: tuple[slice, slice, slice]
    shape: tuple[int, ...]
    spacing: Sequence[float]

    def refined(self, smoothing: float, context: float) -> tuple[Array3D, float]:
        """The map on the whole working grid, and the scan's score.

        Args:
            smoothing: sigma of the Gaussian that smooths the map, in mm.
            context: sigma of :func:`weigh_by_context`, in mm. The scan's score is that of the map before,
                because an anomaly need not be large to count for the scan.
        """
        working = np.full(self.shape, self.outside, np.float32)
        working[self.box] = self.inside
        near = self._box_and(REACH * (smoothing + context))
        working[near] = scores = smooth(working[near], self.spacing, smoothing)
        score = sample_score(working)
        working[near] = weigh_by_context(scores, self.spacing, context)
        return working, score

    def _box_and(self, reach: float) -> tuple[slice, ...]:
        """The box and what lies within so many mm of it in the grid."""
        more = [math.ceil(reach / length) for length in self.spacing]
        return tuple(
            slice(max(side.start - n, 0), min(side.stop + n, end))
            for side, n, end in zip(self.box, more, self.shape, strict=True)
        )


def smooth(scores: Array3D, spacing: Sequence[float], sigma: float) -> Array3D:
    """A map smoothed by a Gaussian, and mirrored where it ends: nothing is known beyond a scan's end.

    Args:
        scores: (X, Y, Z) float32 in [0,1].
        spacing: of its voxels along each axis, in mm.
        sigma: of the Gaussian, in mm.

    Returns:
        The same shape, float32 in [0,1]; ``scores`` itself where ``sigma`` is 0.
    """
    if sigma == 0:
        return scores
    smoothed = scores.copy()
    for axis, length in enumerate(spacing):
        _blur(smoothed, axis, sigma / length)
    return smoothed.clip(0, 1, out=smoothed)  # the running sums of boxes may end a little below 0


def weigh_by_context(scores: Array3D, spacing: Sequence[float], sigma: float) -> Array3D:
    """The geometric mean of each score and the scores around it.

    A lone false alarm falls and what lies in the middle of many others rises, while borders stay where they
    are.

    Args:
        scores: (X, Y, Z) float32 in [0,1].
        spacing: of its voxels along each axis, in mm.
        sigma: of the Gaussian that says how much each of the scores around counts, in mm.

    Returns:
        The same shape, float32 in [0,1]; ``scores`` itself where ``sigma`` is 0.
    """
    if sigma == 0:
        return scores
    around = smooth(scores, spacing, sigma)
    return np.sqrt(np.multiply(scores, around, out=around), out=around)


def _blur(scores: Array3D, axis: int, sigma: float) -> None:
    """Smooth along one axis in place, a part of its lines a thread; ``sigma`` in voxels."""
    other = (axis + 1) % scores.ndim
    threads = min(torch.get_num_threads(), scores.shape[other])
    parts = np.array_split(scores, threads, axis=other)  # views
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _blur_part(part, axis, sigma), parts))


def _blur_part(scores: Array3D, axis: int, sigma: float) -> None:
    """The same in this thread."""
    if sigma < LONG_SIGMA:
        ndimage.gaussian_filter1d(scores, sigma, axis, output=scores, mode="reflect")
        return
    for width in _box_widths(sigma):  # what is mirrored at its ends still is after each
        ndimage.uniform_filter1d(scores, width, axis, output=scores, mode="reflect")


def _box_widths(sigma: float) -> list[int]:
    """Odd widths of three boxes that together are nearest to a Gaussian (Kovesi, DICTA 2010)."""
    # a box of w voxels has the variance (w * w - 1) / 12
    low = 2 * math.floor((math.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1
    narrow = round((3 * (low + 2) ** 2 - 12 * sigma**2 - 3) / (4 * low + 4))
    return [low] * narrow + [low + 2] * (3 - narrow)
