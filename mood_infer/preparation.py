"""From a scan as stored to what the networks see; training and inference share this one way."""

import numpy as np

from mood_infer.grid import Grid, resample, working_grid
from mood_infer.intensity import CurveRule, MedianRule, UnitRule, to_unit
from mood_infer.volume import Array3D, Volume


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
    """
    own = scan_grid(volume)
    working = working_grid(own, spacing)
    array = resample(to_unit(volume.array, rule), own, working)
    return np.clip(array, 0, 1), working
