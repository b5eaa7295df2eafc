"""Textures of synthetic anomalies: foreign patches from a memory bank, augmented (paper, section 2.1)."""

from dataclasses import dataclass

import numpy as np
from monai.transforms import Compose, RandGaussianNoise, RandShiftIntensity
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mood_infer.errors import UserError
from mood_infer.grid import Spacing
from mood_infer.volume import Array3D
from mood_train.data import CachedScan, cut, draw_tissue, voxels
from mood_train.seeds import generator, seed_transform

DRAWS = 10
CUBES = (1.0, 1.0, 1.0)
SINGLE_SUBJECT = "every scan is of the same subject; foreign patches of others need a second one."


@dataclass(frozen=True)
class ForeignPatch:
    """A cube of a scan on that scan's own voxels, to be blended into another place or another scan.

    Attributes:
        array: (X, Y, Z) float32 in [0,1].
        scan: index of the scan it was cut from.
        spacing: of that scan's voxels, in mm.
    """

    array: Array3D
    scan: int
    spacing: Spacing


class MemoryBank:
    """K patches of the training set, one of them replaced for every image processed.

    Patch j is a pure function of the seed and j, and image i sees patches i - K to i - 1: the bank needs no
    memory of its own, is the same in every worker, and a resumed run finds it as it was.
    """

    def __init__(self, scans: list[CachedScan], size: int, seed: int) -> None:
        """Take ``size`` cubes from ``scans``."""
        self._scans, self._size, self._seed = scans, size, seed

    def patch(self, number: int, side: float) -> ForeignPatch:
        """The patch with this number, any integer: ``side`` mm around a random tissue voxel of a scan."""
        rng = self._generator(number)
        index = int(rng.integers(len(self._scans)))
        scan = self._scans[index]
        array = cut(scan.image, draw_tissue(scan, rng), voxels(side, scan.spacing))
        return ForeignPatch(array, index, scan.spacing)

    def draw(self, image_number: int, subject: str, side: float, rng: np.random.Generator) -> ForeignPatch:
        """A random patch of ``side`` mm as image ``image_number`` finds it, never of the given subject.

        Raises:
            UserError: all scans are of that subject.
        """
        if all(scan.subject == subject for scan in self._scans):
            raise UserError(SINGLE_SUBJECT)
        slots = image_number - 1 - rng.permutation(self._size)
        for slot in slots:
            index = int(self._generator(int(slot)).integers(len(self._scans)))
            if self._scans[index].subject != subject:
                return self.patch(int(slot), side)
        # a small bank may hold this subject alone: the next patch of another one, further back
        slot = image_number - 1 - self._size
        while self._scans[int(self._generator(slot).integers(len(self._scans)))].subject == subject:
            slot -= 1
        return self.patch(slot, side)

    def _generator(self, number: int) -> np.random.Generator:
        return generator(self._seed, "bank", number)


def same_scan_patch(
    scan: CachedScan, index: int, away_from: NDArray[np.int64], side: float, rng: np.random.Generator
) -> ForeignPatch:
    """A patch from another place of the same scan, flipped at random.

    Args:
        scan: the scan.
        index: its index, for the record.
        away_from: (3,) voxel the image's own crop is centred on; the first of ten draws is taken that
            lies at least half a side away along some axis, or the farthest of them.
        side: of the patch, in mm.
        rng: source of the draws.
    """
    far, best = -1.0, away_from
    for _ in range(DRAWS):
        centre = draw_tissue(scan, rng)
        distance = float((np.abs(centre - away_from) * scan.spacing).max())
        if distance > far:
            far, best = distance, centre
        if far >= side / 2:
            break
    array = cut(scan.image, best, voxels(side, scan.spacing))
    axes = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))
    return ForeignPatch(np.flip(array, axes).copy(), index, scan.spacing)


_AUGMENT = Compose(
    [
        RandShiftIntensity(offsets=0.2, prob=0.2),
        RandGaussianNoise(std=0.2, prob=0.2, sample_std=False),
    ]
)
TURN_RATE = 0.2
LARGEST_TURN = 1.0  # rad an axis


def augment_texture(patch: Array3D, rng: np.random.Generator, spacing: Spacing = CUBES) -> Array3D:
    """Random shift (to 0.2), noise (0.2) and rotation (to 1 rad an axis), each at odds of 0.2.

    Args:
        patch: (X, Y, Z) float32 in [0,1]; the result is clipped to that.
        rng: source of the draws.
        spacing: of the voxels, in mm.
    """
    seed_transform(_AUGMENT, rng)
    augmented = np.asarray(_AUGMENT(patch[None]), dtype=np.float32)[0]
    if rng.random() < TURN_RATE:
        turn = Rotation.from_euler("xyz", rng.uniform(-LARGEST_TURN, LARGEST_TURN, 3)).as_matrix()
        augmented = _about_middle(augmented, turn, spacing)
    return np.clip(augmented, 0, 1)


OWN_CHANGES = ("shift", "noise", "turn", "zoom")
# behind a soft edge a change of brightness has no rim to be seen by: it is what networks learn last
OWN_ODDS = {"hard": (0.3, 0.1, 0.2, 0.4), "smooth": (0.6, 0.1, 0.1, 0.2)}
OWN_SHIFT = (0.15, 0.45)
OWN_NOISE = (0.05, 0.3)
OWN_TURN = (0.25, 1.0)  # rad
OWN_ZOOM = (1.3, 3.0)  # or its inverse


def change_own(patch: Array3D, edges: str, rng: np.random.Generator, spacing: Spacing = CUBES) -> Array3D:
    """Shifted, noisy, turned or zoomed: one of them, always, for a patch that stays in its place.

    A fainter change would be an anomaly in the label only.

    Args:
        patch: (X, Y, Z) float32 in [0,1]; the result is clipped to that.
        edges: hard or smooth, which decides the odds of each change.
        rng: source of the draws.
        spacing: of the voxels, in mm.
    """
    change = rng.choice(OWN_CHANGES, p=OWN_ODDS[edges])
    if change == "shift":
        changed = patch + rng.choice((-1, 1)) * rng.uniform(*OWN_SHIFT)
    elif change == "noise":
        changed = patch + rng.normal(0, rng.uniform(*OWN_NOISE), patch.shape)
    elif change == "turn":
        axis = rng.normal(size=3)
        turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(*OWN_TURN)).as_matrix()
        changed = _about_middle(patch, turn, spacing)
    else:
        zoom = rng.uniform(*OWN_ZOOM) ** rng.choice((-1, 1))
        changed = _about_middle(patch, np.eye(3) * zoom, spacing)
    return np.clip(changed, 0, 1).astype(np.float32)


def _about_middle(patch: Array3D, in_mm: NDArray[np.float64], spacing: Spacing) -> Array3D:
    matrix = np.diag(1 / np.array(spacing)) @ in_mm @ np.diag(spacing)
    middle = (np.array(patch.shape) - 1) / 2
    return np.asarray(
        ndimage.affine_transform(patch, matrix, offset=middle - matrix @ middle, order=1, mode="mirror")
    )
