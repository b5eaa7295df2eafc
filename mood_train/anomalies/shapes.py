"""Shapes of synthetic anomalies: cuboids, spheres and random walks (paper, section 2.1, Figure 2).

Every shape is a boolean array cut to its own bounding box, at most ``largest`` voxels a side.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

Mask = NDArray[np.bool_]
ShapeKind = Literal["cuboid", "sphere", "walk"]

ROTATED_SHARE = 0.5
WALK_STEPS = (20, 120)
# shares of the canvas, set so that a canvas of 128 gives bounding boxes of 24 to 84 voxels
WALK_RADIUS = (0.04, 0.09)
WALK_STRIDE = (0.01, 0.035)
WALK_RADIUS_STRIDE = 0.006
WALK_ZOOM = (0.8, 1.25)


def cuboid(rng: np.random.Generator, smallest: float, largest: int) -> Mask:
    """A cuboid with sides from ``smallest`` to ``largest`` voxels, in half the cases rotated at random.

    A rotated one that would not fit ``largest`` is scaled down to fit.
    """
    half = rng.uniform(smallest, largest, size=3) / 2
    turn = Rotation.random(rng=rng).as_matrix() if rng.random() < ROTATED_SHARE else np.eye(3)
    reach = (np.abs(turn) @ half).max()
    half *= min(1.0, largest / 2 / reach)
    points = _canvas_points(largest)
    inside = np.abs(np.tensordot(turn.T, points, axes=1)) <= half[:, None, None, None]
    return _cut(np.logical_and.reduce(inside, axis=0))


def sphere(rng: np.random.Generator, smallest: float, largest: int) -> Mask:
    """A ball with a diameter from ``smallest`` to ``largest`` voxels."""
    radius = rng.uniform(smallest, largest) / 2
    distance = np.linalg.norm(_canvas_points(largest), axis=0)
    return _cut(distance <= radius)


def random_walk(rng: np.random.Generator, smallest: float, largest: int) -> Mask:
    """What a ball-shaped brush leaves on a canvas of ``largest`` voxels a side as it wanders and swells.

    The brush starts in the middle; position and radius take Gaussian steps; the result is turned, stretched
    and sheared at random. ``smallest`` bounds the brush's diameter from below.
    """
    radius = max(rng.uniform(*WALK_RADIUS) * largest, smallest / 2)
    stride = rng.uniform(*WALK_STRIDE) * largest
    position = np.full(3, (largest - 1) / 2)
    canvas = np.zeros((largest,) * 3, dtype=bool)
    for _ in range(int(rng.integers(*WALK_STEPS))):
        _dab(canvas, position, radius)
        position = np.clip(position + rng.normal(0, stride, 3), 0, largest - 1)
        radius = max(radius + rng.normal(0, WALK_RADIUS_STRIDE * largest), smallest / 2)
    turn = Rotation.random(rng=rng).as_matrix() @ np.diag(rng.uniform(*WALK_ZOOM, size=3))
    middle = np.full(3, (largest - 1) / 2)
    moved = ndimage.affine_transform(canvas.astype(np.float32), turn, offset=middle - turn @ middle, order=1)
    return _cut(moved > 0.5)


SHAPES: dict[ShapeKind, Callable[[np.random.Generator, float, int], Mask]] = {
    "cuboid": cuboid,
    "sphere": sphere,
    "walk": random_walk,
}


def draw_shape(
    rng: np.random.Generator, odds: Mapping[ShapeKind, float], smallest: float, largest: int
) -> Mask:
    """One shape, its kind drawn by the given odds; cut to its bounding box and never empty."""
    weights = np.array(list(odds.values()))
    kind = list(odds)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return SHAPES[kind](rng, smallest, largest)


def _canvas_points(side: int) -> NDArray[np.float64]:
    """(3, side, side, side) voxel coordinates from the middle of a canvas."""
    line = np.arange(side) - (side - 1) / 2
    return np.stack(np.meshgrid(line, line, line, indexing="ij"))


def _dab(canvas: Mask, position: NDArray[np.float64], radius: float) -> None:
    low = np.maximum(np.floor(position - radius), 0).astype(int)
    high = np.minimum(np.ceil(position + radius) + 1, canvas.shape[0]).astype(int)
    x, y, z = ((np.arange(a, b) - p) ** 2 for a, b, p in zip(low, high, position, strict=True))
    box = canvas[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    box |= x[:, None, None] + y[None, :, None] + z[None, None, :] <= radius**2


def _cut(mask: Mask) -> Mask:
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:  # smaller than the distance of voxel centres, or turned out of the canvas
        return np.ones((1, 1, 1), dtype=bool)
    return mask[boxes[0]]
