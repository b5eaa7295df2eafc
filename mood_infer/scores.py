"""From a map to one number a scan."""

import numpy as np
import torch

from mood_infer.volume import Array3D

TOP_VOXELS = 100
BLOCK = 1024  # voxels of which the maximum is taken first


def sample_score(scores: Array3D) -> float:
    """Mean of the 100 highest pixel scores (paper, section 2.4).

    Args:
        scores: (X, Y, Z) in [0,1], on the working grid.

    Returns:
        One score in [0,1]; the mean of all voxels where there are fewer than 100.
    """
    return mean_of_top(scores, TOP_VOXELS)


def mean_of_top(scores: Array3D, count: int) -> float:
    """Mean of the ``count`` highest of (X, Y, Z) scores in [0,1]; of all where there are fewer."""
    flat = scores.ravel()
    count = min(count, flat.size)
    if flat.size > count * BLOCK:
        # the highest lie in the blocks with the highest maxima, and those are found ten times faster
        whole = flat.size // BLOCK * BLOCK
        blocks = flat[:whole].reshape(-1, BLOCK)
        chosen = torch.topk(torch.from_numpy(blocks.max(axis=1)), count, sorted=False).indices.numpy()
        flat = np.concatenate([blocks[chosen].ravel(), flat[whole:]])
    # topk, because numpy's partition takes seconds where most voxels are tied at 0
    top = torch.topk(torch.from_numpy(flat), count, sorted=False).values.numpy()
    return float(np.clip(top.mean(dtype=np.float64), 0, 1))
