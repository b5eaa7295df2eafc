"""Augmentation of normal patches, by MONAI, as the paper's published code has it."""

import numpy as np
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandFlip,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
    RandRotate,
    RandRotate90,
    RandScaleIntensity,
    RandZoom,
)
from numpy.typing import NDArray
from scipy import ndimage

from mood_infer.volume import Array3D
from mood_train.config import RegionConfig
from mood_train.seeds import seed_transform

GAIN_RATE = 0.3
CURVE_POINTS = 10
ORGANS = 2  # at most so many of a patch are shaded
ORGAN_DRAWS = 5  # places looked at for one of a fitting size
ORGAN_TOLERANCE = (0.03, 0.1)  # how far an organ's smoothed intensities lie from that of one of its voxels
ORGAN_VOXELS = 100  # of the smallest
ORGAN_SHARE = 0.4  # of the crop, of the largest
ORGAN_REACH, ORGAN_GROWTH = 1.4, 1.3  # with so many times the tolerance, it grows less than so many times
ORGAN_CHANGE = (0.05, 0.35)


class Augmentation:
    """Changes of intensity and of place that a normal scan may show."""

    def __init__(self, window: int, place: RegionConfig) -> None:
        """Set up the transforms for windows of ``window`` voxels; each call seeds them anew."""
        self._organ_rate = place.organ_rate
        moved, rate = place.place_rate, place.intensity_rate
        # between slices that lie apart as they do in the scan, a turn by voxels would be a shear
        tilt = 0.1 if place.upsample else 0.0
        self._place = Compose(
            [
                *(RandFlip(prob=moved, spatial_axis=axis) for axis in range(3)),
                RandRotate90(prob=moved, max_k=3, spatial_axes=(0, 1)),
                RandZoom(
                    prob=moved,
                    min_zoom=1 - place.zoom,
                    max_zoom=1 + place.zoom,
                    mode="trilinear",
                    align_corners=True,
                    padding_mode="constant",
                ),
                RandRotate(prob=moved, range_x=tilt, range_y=tilt, range_z=0.1, padding_mode="zeros"),
                CenterSpatialCrop(roi_size=window),
            ]
        )
        self._intensity = Compose(
            [
                RandGaussianNoise(prob=rate, std=place.noise),
                RandBiasField(prob=rate, coeff_range=(-0.3, 0.3)),
                RandGaussianSmooth(prob=rate),
                RandAdjustContrast(prob=rate, gamma=(0.5, 1.5)),
                RandHistogramShift(num_control_points=CURVE_POINTS, prob=place.curve_rate),
                RandScaleIntensity(factors=place.gain, prob=GAIN_RATE),
            ]
        )

    def intensity(self, image: Array3D, rng: np.random.Generator) -> Array3D:
        """Change the intensities of a crop on the scan's own voxels.

        Args:
            image: (X, Y, Z) float32 in [0,1].
            rng: source of the draws.

        Returns:
            The same shape, float32 in [0,1]; voxels that were exactly 0 stay 0.
        """
        seed_transform(self._intensity, rng)
        if not image.any():
            return image  # zeros stay, and MONAI would warn
        air = image == 0
        patch = np.where(air, 0, np.asarray(self._intensity(image[None]), dtype=np.float32)[0])
        if self._organ_rate and rng.random() < self._organ_rate:
            for _ in range(int(rng.integers(1, ORGANS + 1))):
                patch = shade_organ(patch, rng)
        return np.clip(np.where(air, 0, patch), 0, 1)

    def place(self, crops: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Flip, turn and zoom crops on the working grid alike, and cut the window out of their middle.

        Args:
            crops: (N, C, C, C) in [0,1], C the window times the margin.
            rng: source of the draws.

        Returns:
            (N, W, W, W) float32 in [0,1].
        """
        seed_transform(self._place, rng)
        return np.clip(np.asarray(self._place(crops), dtype=np.float32), 0, 1)


def shade_organ(image: Array3D, rng: np.random.Generator) -> Array3D:
    """Make a connected region of like intensity brighter or darker, within the borders that it has.

    So differ organs, vessels and the contents of stomach and bowels from one scan to the next, by contrast
    agents above all; few scans do not show it. An anomaly has borders of its own.

    Args:
        image: (X, Y, Z) float32 in [0,1], some voxel of it above 0.
        rng: source of the draws.

    Returns:
        The same shape, float32, not clipped; ``image`` itself where no such region was found.
    """
    smooth = ndimage.gaussian_filter(image, 1.0, truncate=2.0)
    tissue = np.flatnonzero(image)
    for _ in range(ORGAN_DRAWS):
        place = np.unravel_index(tissue[rng.integers(len(tissue))], image.shape)
        difference, tolerance = np.abs(smooth - smooth[place]), rng.uniform(*ORGAN_TOLERANCE)
        region = _around(place, difference < tolerance)
        count = np.count_nonzero(region)
        if not ORGAN_VOXELS <= count <= ORGAN_SHARE * image.size:
            continue
        larger = _around(place, difference < ORGAN_REACH * tolerance)
        if np.count_nonzero(larger) < ORGAN_GROWTH * count:  # it has borders
            change = rng.uniform(*ORGAN_CHANGE) * rng.choice([-1, 1])
            whole = ndimage.binary_erosion(ndimage.binary_dilation(region), border_value=1)
            return image + np.float32(change) * ndimage.gaussian_filter(whole.astype(np.float32), 0.7)
    return image


def _around(place: tuple[np.intp, ...], area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected part of ``area`` that ``place`` lies in."""
    parts, _ = ndimage.label(area)
    return np.asarray(parts == parts[place])
