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
from mood_infer.grid import Grid, Spacing, resample, working_spacing
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
from mood_train.data import CachedScan, binned, cut, cut_to_edge, draw_centre
from mood_train.seeds import generator

CROP_DRAWS = 8  # crops looked at for one with enough body
PLACE_DRAWS = 10  # places looked at for one where enough of the shape lies in the body
MIN_SHAPE_IN_BODY = 0.5
FAINTEST = 0.01  # mean change of intensity over an anomaly's voxels
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
        self._config = config
        anomalies, patches = config.preset.anomalies, config.preset.patches
        if anomalies.other_share > 0 and len({scan.subject for scan in scans}) < 2:
            raise UserError(SINGLE_SUBJECT)
        self._window = patches.window
        self._crop_side = round(self._window * patches.margin)
        self._side = round(anomalies.max_size * self._window)
        # what was averaged and what was not differ in noise, which would tell foreign patches: a bank each
        self._scans: list[CachedScan] = []
        self._banks: list[MemoryBank] = []  # of each of the scans
        for n in config.place.bins:
            shown = [binned(scan, n, config.place.body_above) for scan in scans]
            self._scans += shown
            self._banks += [MemoryBank(shown, anomalies.bank_size, config.seed)] * len(shown)
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
                blended = (blend_poisson if poisson else blend_linear)(image[spot], patch, alpha)
                if _mean_change(image[spot], blended, alpha) < FAINTEST:
                    continue  # air in place of air is nothing to be found
                image[spot] = blended
                label[spot] = np.maximum(label[spot], alpha)
                foreign[spot] = np.where(alpha > 0, patch, foreign[spot])
        crops = self._to_working_grid([image, label, crop.normal, foreign][:parts], crop, rng)
        return self._augmentation.place(crops, rng)

    def _crop(self, index: int, rng: np.random.Generator) -> _Crop:
        scan, patches = self._scans[index], self._config.preset.patches
        steps = self._steps(scan)
        shape = [self._own_count(*pair) for pair in zip(scan.spacing, steps, strict=True)]
        reach = np.array(self._own_window(scan)) // 4
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

    def _steps(self, scan: CachedScan) -> Spacing:
        """Spacing of the working grid of a scan, in mm."""
        return working_spacing(scan.spacing, self._config.place.spacing, self._config.place.upsample)

    def _unit(self, scan: CachedScan) -> float:
        """Side of the cubes that shapes are drawn in, in mm: a voxel of the working grid at its shortest."""
        return min(self._steps(scan))

    def _own_window(self, scan: CachedScan) -> list[int]:
        """How many of a scan's own voxels the window takes along each axis, at least one."""
        steps = zip(scan.spacing, self._steps(scan), strict=True)
        return [max(1, round(self._window * step / own)) for own, step in steps]

    def _own_count(self, own: float, step: float) -> int:
        """How many of a scan's own voxels the crop needs along an axis."""
        length = (self._crop_side - 1) * step / own
        return math.ceil(length - SAME_SPACING) + 1 + (not _is_same(own, step))

    def _to_working_grid(
        self, arrays: list[Array3D], crop: _Crop, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Interpolate at a random part of a voxel; beyond the scan's outermost centres there is only 0."""
        spacing, side, (x, y, z) = crop.scan.spacing, self._crop_side, crop.normal.shape
        steps = self._steps(crop.scan)
        parts = [
            0.0 if _is_same(own, step) else rng.uniform(0, own)
            for own, step in zip(spacing, steps, strict=True)
        ]
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = parts
        own, target = Grid((x, y, z), np.diag([*spacing, 1.0])), Grid((side, side, side), affine)
        crops = np.stack([resample(array, own, target) for array in arrays])
        first = crop.centre - np.array(crop.normal.shape) // 2
        for axis, (own_step, step, part) in enumerate(zip(spacing, steps, parts, strict=True)):
            length = crop.scan.image.shape[axis]
            lines = first[axis] + (part + step * np.arange(side)) / own_step
            beyond = (lines < -SAME_SPACING) | (lines > length - 1 + SAME_SPACING)
            np.moveaxis(crops, axis + 1, 0)[beyond] = 0
        return crops

    def _texture(self, number: int, crop: _Crop, own: Array3D, rng: np.random.Generator) -> Array3D:
        """A foreign patch of the size of ``own``, which is the image itself at the place."""
        scan, anomalies = crop.scan, self._config.preset.anomalies
        source, side = rng.random(), self._side * self._unit(scan)
        if source >= 1 - anomalies.own_share:
            return change_own(own, self._config.edges, rng, scan.spacing)
        if source < anomalies.other_share:
            patch = self._banks[crop.index].draw(number, scan.subject, side, rng)
        else:
            patch = same_scan_patch(scan, crop.index, crop.centre, side, rng)
        # of another scanner: on this one's voxels
        array = stretch(patch.array, patch.spacing, scan.spacing)
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
        soft = stretch(np.pad(soften(mask, kernel), 1), (self._unit(crop.scan),) * 3, spacing)
        if kernel == 1:
            soft = (soft > 0.5).astype(np.float32)
        if poisson:  # a voxel around the shape, for its gradients to meet the image
            soft = np.pad(soft, 1)
        fitting = np.minimum(soft.shape, crop.normal.shape)
        soft = cut(soft, np.array(soft.shape) // 2, fitting.tolist())
        soft = soft * np.float32(rng.uniform(anomalies.alpha_min, 1))
        area, box = soft > 0, np.array(soft.shape)
        window = np.maximum(self._own_window(crop.scan), box)
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
        # augmentation keeps zeros, so in skull-stripped MR the image itself is the sharper mask
        return body if self._config.place.body_is_filled else normal > self._config.place.body_above


def _mean_change(before: Array3D, after: Array3D, alpha: Array3D) -> float:
    return float(np.abs(after - before).sum() / max(1, int((alpha > 0).sum())))


def _is_same(own: float, step: float) -> bool:
    return abs(own - step) < SAME_SPACING * step


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
