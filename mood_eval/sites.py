"""Where a validation anomaly goes: a scan made ready, and a sphere or slab in it, on its bounding box."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mood_eval.body import Mask3D
from mood_infer.errors import UserError
from mood_infer.volume import Array3D

LEAST_BODY = 0.5  # share of a sphere that must be body
DRAWS = 2000
Spacing = tuple[float, float, float]
Voxel = tuple[int, int, int]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Scan:
    """A normal scan that is to be changed.

    Attributes:
        array: (X, Y, Z) float32 in [0,1]; never written to.
        body: (X, Y, Z) bool, the patient's voxels.
        spacing: of the voxels along each axis, in mm.
        left_right: the axis that runs from left to right.
        axial: the axis across axial slices.
    """

    array: Array3D
    body: Mask3D
    spacing: Spacing = (1.0, 1.0, 1.0)
    left_right: int = 0
    axial: int = 2

    @property
    def length(self) -> float:
        """d of the anomalies' sizes: length of the left-right axis of the array as it is, in mm.

        The original takes d from the first axis, which is left-right there, and one radius in voxels for
        all axes; on its cubic isotropic scans that is this length. In mm, a sphere is one on any grid.
        """
        return self.array.shape[self.left_right] * self.spacing[self.left_right]

    @property
    def value_range(self) -> float:
        """I of the anomalies' strengths: largest minus smallest value of the scan."""
        return float(self.array.max() - self.array.min())


@dataclass(frozen=True)
class Site:
    """A place in a scan, as arrays over its bounding box.

    Attributes:
        box: slices of the scan.
        centre: voxel of the scan.
        radius: in mm; of a slab, half its thickness.
        offsets: per axis, distance from the centre in mm, broadcastable over the box.
        inside: (x, y, z) bool, the sphere or slab, cut to the body.
    """

    box: Box
    centre: Voxel
    radius: float
    offsets: tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]
    inside: Mask3D

    @property
    def distance(self) -> NDArray[np.floating]:
        """(x, y, z) distance from the centre, in mm."""
        x, y, z = self.offsets
        return np.sqrt(x * x + y * y + z * z)


def draw_sphere(scan: Scan, shares: tuple[float, float], rng: np.random.Generator) -> Site:
    """A sphere with its centre in the central half of each axis, at least half of it body.

    Args:
        scan: the scan.
        shares: smallest and largest radius, as shares of the scan's length.
        rng: source of randomness.

    Raises:
        UserError: no such place was found in 2,000 draws.
    """
    for _ in range(DRAWS):
        site = sphere(scan, draw_centre(scan, rng), float(rng.uniform(*shares)) * scan.length)
        if site.inside.sum() >= LEAST_BODY * np.count_nonzero(site.distance < site.radius):
            return site
    raise UserError("no sphere fits the middle of the body; check that the scan is of the region asked for.")


def draw_centre(scan: Scan, rng: np.random.Generator) -> Voxel:
    """A voxel of the body, uniform in the central half of each axis.

    Raises:
        UserError: none was found in 2,000 draws.
    """
    for _ in range(DRAWS):
        # the half open range [n/4, 3n/4), as the original has it
        x, y, z = (int(rng.integers(n // 4, max(n // 4 + 1, n // 4 + n // 2))) for n in scan.array.shape)
        if scan.body[x, y, z]:
            return x, y, z
    raise UserError("no body in the middle of the scan; check that it is of the region asked for.")


def sphere(scan: Scan, centre: Voxel, radius: float) -> Site:
    """All body voxels strictly nearer than ``radius`` mm to a centre."""
    return _site(scan, centre, radius, [radius] * 3)


def slab(scan: Scan, centre: Voxel, half_thickness: float, axis: int) -> Site:
    """All body voxels whose distance from the centre along one axis is below ``half_thickness`` mm."""
    reach = [np.inf] * 3
    reach[axis] = half_thickness
    return _site(scan, centre, half_thickness, reach)


def _site(scan: Scan, centre: Voxel, radius: float, reach: list[float]) -> Site:
    starts, offsets = [], []
    for axis, length in enumerate(scan.spacing):
        along = (np.arange(scan.array.shape[axis]) - centre[axis]) * length
        near = np.flatnonzero(np.abs(along) < reach[axis])
        starts.append(slice(int(near[0]), int(near[-1]) + 1))
        offsets.append(along[starts[axis]].reshape([-1 if n == axis else 1 for n in range(3)]))
    x, y, z = offsets
    box = (starts[0], starts[1], starts[2])
    inside = scan.body[box]
    if np.isfinite(reach).all():
        inside = inside & (x * x + y * y + z * z < radius * radius)
    return Site(box, centre, radius, (x, y, z), inside)
