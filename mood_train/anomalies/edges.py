"""Hard and smoothed edges of anomalies (paper, section 2.1, Figure 3)."""

import numpy as np
from scipy import ndimage

from mood_infer.volume import Array3D
from mood_train.anomalies.shapes import Mask

SIGMA_PER_KERNEL = 0.25  # the published code keeps sigma fixed; here a wider kernel is a softer edge


def soften(mask: Mask, kernel: int) -> Array3D:
    """A Gaussian filter over a shape, so that the blend rises from 0 to 1 across its edge.

    Args:
        mask: (X, Y, Z) boolean.
        kernel: size of the filter in voxels, odd; 1 keeps the edge hard.

    Returns:
        (X, Y, Z) float32 in [0,1], wider than the mask by (kernel - 1) / 2 voxels on every side, so that
        nothing of the soft rim is cut off.
    """
    reach = (kernel - 1) // 2
    padded = np.pad(mask.astype(np.float32), reach)
    if kernel == 1:
        return padded
    soft = ndimage.gaussian_filter(padded, sigma=SIGMA_PER_KERNEL * kernel, radius=reach, mode="constant")
    return np.clip(soft, 0, 1)
