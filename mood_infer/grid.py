"""To the working grid and back: separable linear interpolation as three matrix products.

The working grid runs along the scan's own axes, permuted and flipped to the nearest RAS order, at a
given isotropic spacing (paper, section 3.1: 1 mm), or, where that is wanted, at the scan's own spacing along
the axes where it is coarser; along axes that have that spacing, but for a hair, nothing is interpolated.
It is centred on the scan and just covers its outermost voxel centres, so that the way back never has to
guess. On the way there the last sample may lie up to one working voxel outside the scan's outermost centres;
there the line is continued.
"""

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from mood_infer.volume import Affine, Array3D

Spacing = tuple[float, float, float]  # mm along each axis
# 1.00001 mm is 1 mm: a plane more would put every sample between two voxels, and blur them all
NEAR = 0.005  # share of the spacing
MOST_LONG = 2**31  # voxels along an axis: beyond any use, and a larger number would not fit an integer
EDGE_TOLERANCE = 1e-4  # of a working voxel: float noise in an affine must not add a plane


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie.

    Attributes:
        shape: voxels along each axis.
        affine: (4, 4) float64, voxel index to world mm (RAS+).
    """

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> Spacing:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def working_spacing(own: Spacing, spacing: float, upsample: bool = True) -> Spacing:
    """Spacing of the working grid of a scan along each axis, in mm.

    Args:
        own: of the scan's voxels, in mm.
        spacing: of the working grid, in mm.
        upsample: whether axes along which the scan is coarser are brought to ``spacing`` as well; otherwise
            they stay as they are.

    Returns:
        ``spacing`` along each axis, but the scan's own where that is within :data:`NEAR` of it, or kept.
    """

    def one(step: float) -> float:
        kept = abs(step - spacing) <= NEAR * spacing or (step > spacing and not upsample)
        return step if kept else spacing

    x, y, z = map(one, own)
    return x, y, z


def working_grid(scan: Grid, spacing: float, upsample: bool = True) -> Grid:
    """The RAS-ordered grid over all voxel centres of a scan, spaced as :func:`working_spacing` says."""
    order, signs = _nearest_ras(scan.affine)
    x, y, z = (scan.spacing[axis] for axis in order)
    lengths = np.array([x, y, z])
    steps = np.array(working_spacing((x, y, z), spacing, upsample))
    extent = (np.asarray(scan.shape)[order] - 1) * lengths
    shape = np.ceil(np.minimum(extent / steps, MOST_LONG) - EDGE_TOLERANCE).astype(int) + 1
    directions = scan.affine[:3, :3][:, order] / lengths * signs
    centre = scan.affine @ [*((np.asarray(scan.shape) - 1) / 2), 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * steps
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((shape - 1) / 2)
    x, y, z = (int(n) for n in shape)
    return Grid((x, y, z), affine)


def resample(array: Array3D, source: Grid, target: Grid) -> Array3D:
    """Linear interpolation from one grid to another whose axes are parallel to it.

    Args:
        array: (X, Y, Z) float32 on ``source``.
        source: the grid of ``array``.
        target: a grid of the same centre lines: :func:`working_grid` of ``source``, or the other way round.

    Returns:
        float32 on ``target``; voxel centres agree in world mm. Samples up to a step outside the source's
        outermost centres continue the line, so they may leave the range of ``array``: the caller clips.

    Raises:
        ValueError: the grids' axes are not parallel.
    """
    to_source = np.linalg.inv(source.affine) @ target.affine
    order = np.abs(to_source[:3, :3]).argmax(axis=0)  # the source axis along which each target axis runs
    steps = to_source[order, np.arange(3)]
    residue = to_source[:3, :3].copy()
    residue[order, np.arange(3)] = 0
    if sorted(order) != [0, 1, 2] or np.abs(residue).max() > 1e-5:
        raise ValueError("the axes of the two grids are not parallel")
    turned = array.transpose(order)
    # as scans lie in memory no copy is made: one of a large CT takes longer than all the rest
    slowest_first = np.argsort([-abs(stride) for stride in turned.strides], kind="stable").tolist()
    tensor = torch.from_numpy(np.ascontiguousarray(turned.transpose(slowest_first)))
    for axis in range(3):  # however it lies: the order of the sums is part of the result
        start, count = to_source[order[axis], 3], array.shape[order[axis]]
        weights = _line_weights(count, start + steps[axis] * np.arange(target.shape[axis]))
        if weights is not None:
            tensor = _apply_along(tensor, weights, slowest_first.index(axis))
    return tensor.permute(*np.argsort(slowest_first).tolist()).contiguous().numpy()


def _apply_along(tensor: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Multiply every line along one of three axes by (new, old) weights; nothing is transposed in memory."""
    if axis == 2:
        return tensor @ weights.T
    shape = list(tensor.shape)
    lines = tensor.reshape(math.prod(shape[:axis]), shape[axis], -1)
    shape[axis] = len(weights)
    return (weights @ lines).reshape(shape)


def axes_in_ras(array: Array3D, affine: Affine) -> tuple[Array3D, Spacing]:
    """The same voxels with their axes permuted and flipped to the nearest RAS order, nothing interpolated.

    Args:
        array: (X, Y, Z) on the grid of ``affine``.
        affine: (4, 4) voxel index to world mm.

    Returns:
        A view of ``array``, and the spacing along its axes in mm.
    """
    order, signs = _nearest_ras(affine)
    turned = array.transpose(order)[tuple(slice(None, None, int(sign)) for sign in signs)]
    x, y, z = (Grid(array.shape, affine).spacing[axis] for axis in order)
    return turned, (x, y, z)


def _nearest_ras(affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    orientation = nib.io_orientation(affine)  # per scan axis: the world axis it follows, and its sign
    order = np.argsort(orientation[:, 0])
    return order, orientation[order, 1]


def _line_weights(count: int, positions: np.ndarray) -> torch.Tensor | None:
    """(len(positions), count) matrix that reads a line of ``count`` samples at fractional positions.

    None where it would be the identity.
    """
    positions = np.where(np.abs(positions - np.round(positions)) < 1e-6, np.round(positions), positions)
    if len(positions) == count and np.array_equal(positions, np.arange(count)):
        return None
    weights = np.zeros((len(positions), count))
    rows = np.arange(len(positions))
    if count == 1:
        weights[:, 0] = 1
    else:
        left = np.clip(np.floor(positions), 0, count - 2).astype(int)
        fraction = positions - left
        weights[rows, left] = 1 - fraction
        weights[rows, left + 1] = fraction
    return torch.from_numpy(weights.astype(np.float32))
