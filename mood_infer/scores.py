"""From the mean of the networks' maps to the map that counts, and from that to one number a scan."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from mood_infer.volume import Array3D

TOP_VOXELS = 100
LONG_SIGMA = 5.0  # voxels from which boxes are quicker than a Gaussian, and near enough to one
BLOCK = 1024  # voxels of which the maximum is taken first


def smooth(scores: Array3D, outside: float, spacing: Sequence[float], sigma: float) -> Array3D:
    """Smooth a map in place by a Gaussian.

    Args:
        scores: (X, Y, Z) float32.
        outside: the score of everything around the map.
        spacing: of its voxels along each axis, in mm.
        sigma: of the Gaussian, in mm; 0 leaves the map as it is.
    """
    if sigma:
        ndimage.gaussian_filter(
            scores, np.divide(sigma, spacing), output=scores, mode="constant", cval=outside
        )
    return scores


def weigh_by_context(scores: Array3D, outside: float, spacing: Sequence[float], sigma: float) -> Array3D:
    """Make each score, in place, the geometric mean of itself and of the scores around it.

    A lone false alarm falls and what lies in the middle of many others rises, while borders stay where they
    are. That is not the paper's.

    Args:
        scores: (X, Y, Z) float32 in [0,1].
        outside: the score of everything around the map.
        spacing: of its voxels along each axis, in mm.
        sigma: of the Gaussian that says how much each of the scores around counts, in mm; 0 leaves the map as
            it is.
    """
    if sigma:
        around = scores.copy()
        for axis, length in enumerate(spacing):
            _blur(around, axis, sigma / length, outside)
        np.multiply(scores, around.clip(0, 1, out=around), out=around)
        np.sqrt(around, out=scores)
    return scores


def _blur(scores: Array3D, axis: int, sigma: float, outside: float) -> None:
    """Smooth along one axis in place; ``sigma`` in voxels."""
    if sigma < LONG_SIGMA:
        ndimage.gaussian_filter1d(scores, sigma, axis, output=scores, mode="constant", cval=outside)
        return
    for width in _box_widths(sigma):
        ndimage.uniform_filter1d(scores, width, axis, output=scores, mode="constant", cval=outside)


def _box_widths(sigma: float) -> list[int]:
    """Odd widths of three boxes that together are nearest to a Gaussian (Kovesi, DICTA 2010)."""
    # a box of w voxels has the variance (w * w - 1) / 12
    low = 2 * math.floor((math.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1
    narrow = round((3 * (low + 2) ** 2 - 12 * sigma**2 - 3) / (4 * low + 4))
    return [low] * narrow + [low + 2] * (3 - narrow)


def sample_score(scores: Array3D) -> float:
    """Mean of the 100 highest pixel scores (paper, section 2.4).

    Args:
        scores: (X, Y, Z) in [0,1], on the working grid.

    Returns:
        One score in [0,1]; the mean of all voxels where there are fewer than 100.
    """
    return mean_of_top(scores, TOP_VOXELS)


def mean_of_top(scores: Array3D, count: int) -> float:
    """Mean of the ``count`` highest of (X, Y, Z) scores in [0,1]; of all where there are fewer."""
    flat = scores.ravel()
    count = min(count, flat.size)
    if flat.size > count * BLOCK:
        # the highest lie in the blocks with the highest maxima, and those are found ten times faster
        whole = flat.size // BLOCK * BLOCK
        blocks = flat[:whole].reshape(-1, BLOCK)
        chosen = torch.topk(torch.from_numpy(blocks.max(axis=1)), count, sorted=False).indices.numpy()
        flat = np.concatenate([blocks[chosen].ravel(), flat[whole:]])
    # topk, because numpy's partition takes seconds where most voxels are tied at 0
    top = torch.topk(torch.from_numpy(flat), count, sorted=False).values.numpy()
    return float(np.clip(top.mean(dtype=np.float64), 0, 1))
