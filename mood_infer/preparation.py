"""From a scan as stored to what the networks see at inference."""

import math

import numpy as np
import torch
from torch.nn import functional

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.grid import Grid, resample, working_grid
from mood_infer.intensity import IntensityRule, to_unit
from mood_infer.volume import Array3D, Volume

MOST_VOXELS = 10**9  # of a working grid: a whole body at 1 mm has half of that
Box = tuple[slice, slice, slice]

BLOCK = 4  # voxels; the body is looked for in means over cubes of this side, so a stray voxel counts little
NOT_ZERO = 1e-6  # more than rounding; a skull-stripped brain lies in exact 0, so whatever is more is tissue
# Air of a CT is noisy. By the default curve this is -730 HU; fat and skin are at 0.2 and more.
CT_AIR = 0.05


def scan_grid(volume: Volume) -> Grid:
    """The scan's own grid."""
    x, y, z = volume.array.shape
    return Grid((x, y, z), volume.affine)


def prepare(
    volume: Volume, rule: IntensityRule, spacing: float, upsample: bool = True
) -> tuple[Array3D, Grid]:
    """Scale a scan to [0,1] and put it on the working grid (paper, section 3.1).

    Args:
        volume: the scan as stored.
        rule: the intensity rule of the weights.
        spacing: of the working grid, in mm.
        upsample: whether axes along which the scan is coarser than that are brought to it.

    Returns:
        The (X, Y, Z) float32 array in [0,1], axes in RAS order, and its grid.

    Raises:
        UserError: the scan is so long in mm that its working grid would not fit any memory.
    """
    own = scan_grid(volume)
    working = working_grid(own, spacing, upsample)
    if math.prod(working.shape) > MOST_VOXELS:
        text = " x ".join(f"{length:.0f}" for length in np.multiply(working.shape, working.spacing))
        raise UserError(f"it measures {text} mm by its header; correct the spacing or crop it.")
    array = resample(to_unit(volume.array, rule), own, working)
    return np.clip(array, 0, 1), working


def body_box(image: Array3D, region: Region, margin: int) -> Box:
    """The part of a scan that is worth a look: the bounding box of all that is not background, and a margin.

    Whatever is in doubt, like a table or noise above the threshold, makes the box larger, never smaller.

    Args:
        image: (X, Y, Z) float32 in [0,1] on the working grid.
        region: what the scan shows.
        margin: kept on every side of the box, in voxels, as far as the scan goes.

    Returns:
        The box; the whole scan where all of it is background.
    """
    block = [min(BLOCK, n) for n in image.shape]
    means = functional.avg_pool3d(torch.from_numpy(image)[None], block, ceil_mode=True)[0].numpy()
    means -= image.min()
    level = NOT_ZERO
    if region is Region.ABDOM:
        # tissue may be darker than it should, where metal was scaled to 1: then a share of it is the limit
        level = min(CT_AIR, max(NOT_ZERO, float(np.quantile(means, 0.95)) / 4))
    body = means > level
    if not body.any():
        return slice(0, image.shape[0]), slice(0, image.shape[1]), slice(0, image.shape[2])
    sides = []
    for axis, length in enumerate(image.shape):
        filled = np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = block[axis] * int(filled[0]), block[axis] * (int(filled[-1]) + 1)
        sides.append(slice(max(0, low - margin), min(length, high + margin)))
    return sides[0], sides[1], sides[2]
