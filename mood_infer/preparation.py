"""From a scan as stored to what the networks see; training and inference share this one way."""

import math

import numpy as np

from mood_infer.errors import UserError
from mood_infer.grid import Grid, resample, working_grid
from mood_infer.intensity import CurveRule, MedianRule, UnitRule, to_unit
from mood_infer.volume import Array3D, Volume

MOST_VOXELS = 10**9  # of a working grid: a whole body at 1 mm has half of that


def scan_grid(volume: Volume) -> Grid:
    """The scan's own grid."""
    x, y, z = volume.array.shape
    return Grid((x, y, z), volume.affine)


def prepare(volume: Volume, rule: MedianRule | CurveRule | UnitRule, spacing: float) -> tuple[Array3D, Grid]:
    """Scale a scan to [0,1] and put it on the working grid (paper, section 3.1).

    Args:
        volume: the scan as stored.
        rule: the intensity rule of the weights.
        spacing: of the working grid, in mm.

    Returns:
        The (X, Y, Z) float32 array in [0,1], axes in RAS order, and its grid.

    Raises:
        UserError: the scan is so long in mm that its working grid would not fit any memory.
    """
    own = scan_grid(volume)
    working = working_grid(own, spacing)
    if math.prod(working.shape) > MOST_VOXELS:
        text = " x ".join(f"{length:.0f}" for length in np.multiply(working.shape, spacing))
        raise UserError(f"it measures {text} mm by its header; correct the spacing or crop it.")
    array = resample(to_unit(volume.array, rule), own, working)
    return np.clip(array, 0, 1), working
