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

from mood_infer.volume import Array3D
from mood_train.config import RegionConfig
from mood_train.seeds import seed_transform

GAIN_RATE = 0.3
CURVE_POINTS = 10


class Augmentation:
    """Changes of intensity and of place that a normal scan may show."""

    def __init__(self, window: int, place: RegionConfig) -> None:
        """Set up the transforms for windows of ``window`` voxels; each call seeds them anew."""
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
        patch = np.asarray(self._intensity(image[None]), dtype=np.float32)[0]
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
