"""Joins shape, texture, edge and blending to a training sample (paper, section 2.1, Figure 1).

Anomalies are made on the scan's own voxels and brought to the working grid together with it, as those of a
scan to be judged are. Made on the working grid, they would have edges sharper than any that interpolation
leaves, and textures out of step with its rhythm: networks learn these marks, and then miss what has none.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mood_infer.errors import UserError
from mood_infer.grid import Grid, Spacing, resample
from mood_infer.volume import Array3D
from mood_train.anomalies.blending import blend_linear, blend_poisson, without_border
from mood_train.anomalies.edges import soften
from mood_train.anomalies.shapes import draw_shape
from mood_train.anomalies.textures import (
    SINGLE_SUBJECT,
    MemoryBank,
    augment_texture,
    change_own,
    same_scan_patch,
)
from mood_train.augment import Augmentation
from mood_train.config import RunConfig
from mood_train.data import CachedScan, cut, cut_to_edge, draw_centre, voxels
from mood_train.seeds import generator

CROP_DRAWS = 8  # crops looked at for one with enough body
PLACE_DRAWS = 10  # places looked at for one where enough of the shape lies in the body
MIN_SHAPE_IN_BODY = 0.5
SAME_SPACING = 1e-3  # of a voxel; closer grids are taken for one


@dataclass(frozen=True)
class Sample:
    """A training sample; all arrays are (W, W, W) float32 in [0,1], on the working grid.

    Attributes:
        image: with the anomalies.
        label: the blending factor alpha, smoothed where the edges are; 0 where nothing was changed.
        normal: the image before.
        foreign: the foreign patches where they were blended in, for the eye only.
    """

    image: Array3D
    label: Array3D
    normal: Array3D
    foreign: Array3D


@dataclass(frozen=True)
class _Crop:
    """Part of a scan on its own voxels, of the window times the margin.

    Attributes:
        index: of the scan.
        scan: it was cut from.
        centre: (3,) voxel of the scan it lies around.
        normal: (X, Y, Z) float32 in [0,1].
        allowed: (X, Y, Z) boolean, where anomalies may be.
    """

    index: int
    scan: CachedScan
    centre: NDArray[np.int64]
    normal: Array3D
    allowed: NDArray[np.bool_]


class AnomalyGenerator:
    """Makes sample i of a run as a pure function of the run's seed and i."""

    def __init__(self, scans: list[CachedScan], config: RunConfig) -> None:
        """Draw from ``scans``, which must all be of the training folds.

        Raises:
            UserError: patches of other subjects are wanted and there is only one subject.
        """
        self._scans, self._config = scans, config
        anomalies, patches = config.preset.anomalies, config.preset.patches
        if anomalies.other_share > 0 and len({scan.subject for scan in scans}) < 2:
            raise UserError(SINGLE_SUBJECT)
        self._window, self._step = patches.window, config.place.spacing
        self._crop_side = round(self._window * patches.margin)
        self._side = round(anomalies.max_size * self._window)
        self._bank = MemoryBank(scans, anomalies.bank_size, self._side * self._step, config.seed)
        self._augmentation = Augmentation(patches.window, config.place)

    def sample(self, number: int) -> Sample:
        """Sample ``number`` (from 0): a normal patch with none, one or several anomalies."""
        image, label, normal, foreign = self._sample(number, 4)
        return Sample(image, label, normal, foreign)

    def pair(self, number: int) -> tuple[Array3D, Array3D]:
        """Image and label of sample ``number`` alone, in less time."""
        image, label = self._sample(number, 2)
        return image, label

    def _sample(self, number: int, parts: int) -> NDArray[np.float32]:
        """(parts, W, W, W): the first so many of image, label, normal and foreign patches."""
        anomalies = self._config.preset.anomalies
        rng = generator(self._config.seed, "sample", number)
        crop = self._crop(int(rng.integers(len(self._scans))), rng)
        image, label, foreign = crop.normal.copy(), np.zeros_like(crop.normal), np.zeros_like(crop.normal)
        if rng.random() < anomalies.rate:
            for _ in range(int(rng.integers(1, anomalies.max_count + 1))):
                poisson = rng.random() < anomalies.poisson_share
                alpha, spot = self._place(crop, poisson, rng)
                patch = self._texture(number, crop, crop.normal[spot], rng)
                image[spot] = (blend_poisson if poisson else blend_linear)(image[spot], patch, alpha)
                label[spot] = np.maximum(label[spot], alpha)
                foreign[spot] = np.where(alpha > 0, patch, foreign[spot])
        crops = self._to_working_grid([image, label, crop.normal, foreign][:parts], crop, rng)
        return self._augmentation.place(crops, rng)

    def _crop(self, index: int, rng: np.random.Generator) -> _Crop:
        scan, patches = self._scans[index], self._config.preset.patches
        shape = [self._own_count(step) for step in scan.spacing]
        reach = np.array(voxels(self._window * self._step, scan.spacing)) // 4
        best_share, best = -1.0, (draw_centre(scan, rng), np.zeros(shape, dtype=bool))
        for _ in range(CROP_DRAWS):
            centre = draw_centre(scan, rng) + rng.integers(-reach, reach + 1)
            body = cut(scan.body, centre, shape) > 0
            share = float(body.mean())
            if share > best_share:
                best_share, best = share, (centre, body)
            if share >= patches.min_body:
                break
        centre, body = best
        normal = self._augmentation.intensity(cut_to_edge(scan.image, centre, shape), rng)
        return _Crop(index, scan, centre, normal, self._allowed(normal, body))

    def _own_count(self, spacing: float) -> int:
        """How many of a scan's own voxels the crop needs along an axis."""
        length = (self._crop_side - 1) * self._step / spacing
        return math.ceil(length - SAME_SPACING) + 1 + (not self._is_working(spacing))

    def _is_working(self, spacing: float) -> bool:
        return abs(spacing - self._step) < SAME_SPACING * self._step

    def _to_working_grid(
        self, arrays: list[Array3D], crop: _Crop, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Interpolate at a random part of a voxel; beyond the scan's outermost centres there is only 0."""
        spacing, side, (x, y, z) = crop.scan.spacing, self._crop_side, crop.normal.shape
        parts = [0.0 if self._is_working(step) else rng.uniform(0, step) for step in spacing]
        affine = np.diag([self._step] * 3 + [1.0])
        affine[:3, 3] = parts
        own, target = Grid((x, y, z), np.diag([*spacing, 1.0])), Grid((side, side, side), affine)
        crops = np.stack([resample(array, own, target) for array in arrays])
        first = crop.centre - np.array(crop.normal.shape) // 2
        for axis, (step, part, length) in enumerate(zip(spacing, parts, crop.scan.image.shape, strict=True)):
            lines = first[axis] + (part + self._step * np.arange(side)) / step
            beyond = (lines < -SAME_SPACING) | (lines > length - 1 + SAME_SPACING)
            np.moveaxis(crops, axis + 1, 0)[beyond] = 0
        return crops

    def _texture(self, number: int, crop: _Crop, own: Array3D, rng: np.random.Generator) -> Array3D:
        """A foreign patch of the size of ``own``, which is the image itself at the place."""
        scan, anomalies = crop.scan, self._config.preset.anomalies
        source = rng.random()
        if source >= 1 - anomalies.own_share:
            return change_own(own, self._config.edges, rng, scan.spacing)
        if source < anomalies.other_share:
            patch = self._bank.draw(number, scan.subject, rng)
        else:
            patch = same_scan_patch(scan, crop.index, crop.centre, self._side * self._step, rng)
        # of another scanner: on this one's voxels
        array = stretch(patch.array, self._scans[patch.scan].spacing, scan.spacing)
        middle = np.array(array.shape) // 2
        return cut_to_edge(augment_texture(array, rng, scan.spacing), middle, own.shape)

    def _place(
        self, crop: _Crop, poisson: bool, rng: np.random.Generator
    ) -> tuple[Array3D, tuple[slice, ...]]:
        """A blending factor and its box in the crop: a random place of the window where the shape fits."""
        anomalies, spacing = self._config.preset.anomalies, crop.scan.spacing
        kernel = int(rng.choice(anomalies.smooth_kernels)) if self._config.edges == "smooth" else 1
        largest = self._side - (kernel - 1)  # the soft rim must fit as well
        mask = draw_shape(rng, anomalies.shapes, anomalies.min_size * self._window, largest)
        soft = stretch(np.pad(soften(mask, kernel), 1), (self._step,) * 3, spacing)
        if kernel == 1:
            soft = (soft > 0.5).astype(np.float32)
        if poisson:  # a voxel around the shape, for its gradients to meet the image
            soft = np.pad(soft, 1)
        fitting = np.minimum(soft.shape, crop.normal.shape)
        soft = cut(soft, np.array(soft.shape) // 2, fitting.tolist())
        soft = soft * np.float32(rng.uniform(anomalies.alpha_min, 1))
        area, box = soft > 0, np.array(soft.shape)
        window = np.maximum(voxels(self._window * self._step, spacing), box)
        first = (np.array(crop.normal.shape) - window) // 2
        for _ in range(PLACE_DRAWS):
            start = first + rng.integers(0, window - box + 1)
            spot = tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))
            if (crop.allowed[spot] & area).sum() >= MIN_SHAPE_IN_BODY * area.sum():
                break
        alpha = np.where(crop.allowed[spot], soft, np.float32(0))
        return (without_border(alpha) if poisson else alpha), spot

    def _allowed(self, normal: Array3D, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not self._config.place.anomalies_in_body:
            return np.ones_like(body)
        # Augmentation keeps zeros, so in skull-stripped MR the image itself is the sharper mask. In CT the
        # air in lung and bowel is left out: few scans are too few to learn what is normal there.
        tissue = normal > self._config.place.body_above
        return tissue & body if self._config.place.body_is_filled else tissue


def stretch(array: Array3D, source: Spacing, target: Spacing) -> Array3D:
    """The same part of space on voxels of another spacing (mm), linearly interpolated about its middle.

    Returns:
        float32 in [0,1] with as many voxels as take up most nearly the same room; ``array`` itself where
        the spacing is the same.
    """
    if np.allclose(source, target, rtol=SAME_SPACING):
        return array
    x, y, z = (max(1, round(n * a / b)) for n, a, b in zip(array.shape, source, target, strict=True))
    a, b, c = array.shape
    there = Grid((x, y, z), _about_zero((x, y, z), target))
    return np.clip(resample(array, Grid((a, b, c), _about_zero(array.shape, source)), there), 0, 1)


def _about_zero(shape: tuple[int, ...], spacing: Spacing) -> NDArray[np.float64]:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine
