"""Joins shape, texture, edge and blending to a training sample (paper, section 2.1, Figure 1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mood_infer.errors import UserError
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
from mood_train.data import CachedScan, cut, draw_centre
from mood_train.seeds import generator

CROP_DRAWS = 8  # crops looked at for one with enough body
PLACE_DRAWS = 10  # places looked at for one where enough of the shape lies in the body
MIN_SHAPE_IN_BODY = 0.5


@dataclass(frozen=True)
class Sample:
    """A training sample; all arrays are (W, W, W) float32 in [0,1].

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
        self._window = patches.window
        self._side = round(anomalies.max_size * self._window)
        self._above = config.place.body_above
        self._bank = MemoryBank(scans, anomalies.bank_size, self._side, config.seed, self._above)
        self._augmentation = Augmentation(patches.window, config.place)

    def sample(self, number: int) -> Sample:
        """Sample ``number`` (from 0): a normal patch with none, one or several anomalies."""
        anomalies = self._config.preset.anomalies
        rng = generator(self._config.seed, "sample", number)
        index = int(rng.integers(len(self._scans)))
        centre, normal, body = self._crop(self._scans[index], rng)
        image, label, foreign = normal, np.zeros_like(normal), np.zeros_like(normal)
        if rng.random() < anomalies.rate:
            for _ in range(int(rng.integers(1, anomalies.max_count + 1))):
                alpha, spot = self._place(normal, body, rng)
                placed = np.zeros_like(normal)
                placed[spot] = self._texture(number, index, centre, normal[spot], rng)
                poisson = rng.random() < anomalies.poisson_share
                if poisson:
                    alpha = without_border(alpha)
                image = (blend_poisson if poisson else blend_linear)(image, placed, alpha)
                label = np.maximum(label, alpha)
                foreign = np.where(alpha > 0, placed, foreign)
        return Sample(image, label, normal, foreign)

    def _crop(
        self, scan: CachedScan, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Array3D, NDArray[np.bool_]]:
        patches = self._config.preset.patches
        side = round(self._window * patches.margin)
        best_share, best = -1.0, (draw_centre(scan, rng), np.zeros((side,) * 3, dtype=bool))
        for _ in range(CROP_DRAWS):
            centre = draw_centre(scan, rng)
            centre = centre + rng.integers(-self._window // 4, self._window // 4 + 1, size=3)
            body = cut(scan.body, centre, side) > 0
            share = float(body.mean())
            if share > best_share:
                best_share, best = share, (centre, body)
            if share >= patches.min_body:
                break
        centre, body = best
        normal, body = self._augmentation(cut(scan.image, centre, side), body, rng)
        return centre, normal, body

    def _texture(
        self, number: int, index: int, centre: NDArray[np.int64], own: Array3D, rng: np.random.Generator
    ) -> Array3D:
        """A foreign patch of the size of ``own``, which is the image itself at the place."""
        scan, anomalies = self._scans[index], self._config.preset.anomalies
        source = rng.random()
        if source >= 1 - anomalies.own_share:
            return change_own(own, self._config.edges, rng)
        if source < anomalies.other_share:
            patch = self._bank.draw(number, scan.subject, rng)
        else:
            patch = same_scan_patch(scan, index, centre, self._side, rng, self._above)
        texture = augment_texture(patch.array, rng)
        offset = (self._side - np.array(own.shape)) // 2
        return texture[tuple(slice(o, o + n) for o, n in zip(offset, own.shape, strict=True))]

    def _place(
        self, normal: Array3D, body: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[Array3D, tuple[slice, ...]]:
        """The blending factor on the window, and its box: a random place where the shape fits."""
        anomalies = self._config.preset.anomalies
        kernel = int(rng.choice(anomalies.smooth_kernels)) if self._config.edges == "smooth" else 1
        largest = self._side - (kernel - 1)  # the soft rim must fit as well
        mask = draw_shape(rng, anomalies.shapes, anomalies.min_size * self._window, largest)
        soft = soften(mask, kernel) * np.float32(rng.uniform(anomalies.alpha_min, 1))
        allowed = self._allowed(normal, body)
        area, box = soft > 0, np.array(soft.shape)
        for _ in range(PLACE_DRAWS):
            start = rng.integers(0, self._window - box + 1)
            spot = tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))
            if (allowed[spot] & area).sum() >= MIN_SHAPE_IN_BODY * area.sum():
                break
        alpha = np.zeros_like(normal)
        alpha[spot] = np.where(allowed[spot], soft, 0)
        return alpha, spot

    def _allowed(self, normal: Array3D, body: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if not self._config.place.anomalies_in_body:
            return np.ones_like(body)
        # Augmentation keeps zeros, so in skull-stripped MR the image itself is the sharper mask. In CT the
        # air in lung and bowel is left out: few scans are too few to learn what is normal there.
        tissue = normal > self._above
        return tissue & body if self._config.place.body_is_filled else tissue
