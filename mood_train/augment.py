"""Augmentation of normal patches, by MONAI, as the paper's published code has it."""

import numpy as np
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandFlipd,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRotate90d,
    RandRotated,
    RandScaleIntensity,
    RandZoomd,
)
from numpy.typing import NDArray

from mood_infer.volume import Array3D
from mood_train.config import RegionConfig
from mood_train.seeds import seed_transform

GAIN_RATE = 0.3
BOTH = ("image", "body")


class Augmentation:
    """Turns a crop and its body mask into a training patch of the window's size."""

    def __init__(self, window: int, place: RegionConfig) -> None:
        """Set up the transforms for patches of ``window`` voxels; each call seeds them anew."""
        moved, rate = place.place_rate, place.intensity_rate
        modes = ("bilinear", "nearest")
        self._place = Compose(
            [
                *(RandFlipd(BOTH, prob=moved, spatial_axis=axis) for axis in range(3)),
                RandRotate90d(BOTH, prob=moved, max_k=3, spatial_axes=(0, 1)),
                RandZoomd(
                    BOTH,
                    prob=moved,
                    min_zoom=1 - place.zoom,
                    max_zoom=1 + place.zoom,
                    mode=("trilinear", "nearest"),
                    align_corners=(True, None),
                    padding_mode="constant",
                ),
                RandRotated(
                    BOTH, prob=moved, range_x=0.1, range_y=0.1, range_z=0.1, mode=modes, padding_mode="zeros"
                ),
                CenterSpatialCropd(BOTH, roi_size=window),
            ]
        )
        self._intensity = Compose(
            [
                RandGaussianNoise(prob=rate, std=place.noise),
                RandBiasField(prob=rate, coeff_range=(-0.3, 0.3)),
                RandGaussianSmooth(prob=rate),
                RandAdjustContrast(prob=rate, gamma=(0.5, 1.5)),
                RandScaleIntensity(factors=place.gain, prob=GAIN_RATE),
            ]
        )

    def __call__(
        self, image: Array3D, body: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[Array3D, NDArray[np.bool_]]:
        """Augment one crop.

        Args:
            image: (C, C, C) in [0,1], C the window times the margin.
            body: (C, C, C) boolean.
            rng: source of the draws.

        Returns:
            Image in [0,1], float32, and body, boolean, both (W, W, W); voxels that were exactly 0 stay 0.
        """
        seed_transform(self._place, rng)
        seed_transform(self._intensity, rng)
        placed = self._place({"image": image[None], "body": body[None].astype(np.float32)})
        empty = np.asarray(placed["image"]) == 0
        patch = np.asarray(self._intensity(placed["image"]), dtype=np.float32)
        patch = np.clip(np.where(empty, 0, patch), 0, 1)
        return patch[0], np.asarray(placed["body"])[0] > 0.5
