"""The sliding window (paper, section 3.1.1): overlapping windows, blended with Gaussian weights.

The Gaussian is an outer product of three vectors, one an axis, and the windows stand on a product of three
lists of starts; so the sum of all weights at a voxel is an outer product too, and is never accumulated.
"""

import math
from collections.abc import Callable, Sequence
from itertools import islice, product

import torch
from torch import Tensor
from torch.nn import functional

Score = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

WEIGHT_FLOOR = 1e-3  # of a line of weights whose peak is 1, so that no voxel goes without weight
NO_SHIFT = (0.0, 0.0, 0.0)


def window_starts(length: int, window: int, overlap: float, shift: float = 0) -> list[int]:
    """First voxel of each window along an axis of ``length`` voxels; [0] where that is less than a window.

    Neighbours are at most ``round(window * (1 - overlap))`` voxels apart, at least one. The first window
    begins and the last one ends with the axis; those between come earlier by ``shift`` (in [0,1)) of what
    is left free, and there are as many of them whatever the shift.
    """
    step = max(1, round(window * (1 - overlap)))
    last = max(0, length - window)
    steps = math.ceil(last / step)
    free = steps * step - last
    return sorted({0, *(n * step - math.floor(shift * free) for n in range(1, steps)), last})


def count_windows(shape: Sequence[int], window: int, overlap: float) -> int:
    """How many windows :func:`slide` scores in a volume of ``shape``, whatever the shift."""
    return math.prod(len(window_starts(n, window, overlap)) for n in shape)


def line_weights(window: int, sigma: float) -> Tensor:
    """(window,) float32 Gaussian about the window's middle, peak 1; ``sigma`` is a share of the window."""
    offset = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    exponent = -0.5 * (offset / (sigma * window)) ** 2
    return torch.exp(exponent - exponent.max()).clamp(min=WEIGHT_FLOOR).float()


def cube_weights(window: int, sigma: float) -> Tensor:
    """(window, window, window) outer product of :func:`line_weights`."""
    line = line_weights(window, sigma)
    return line[:, None, None] * line[:, None] * line


def slide(
    volume: Tensor,
    window: int,
    overlap: float,
    sigma: float,
    score: Score,
    batch: int = 1,
    progress: Progress | None = None,
    shift: Sequence[float] = NO_SHIFT,
) -> Tensor:
    """Blend the scores of all windows of a volume.

    A volume shorter than the window along an axis is padded with zeros on both sides, and its scores are
    cropped. Windows whose voxels all have one value, like air around a head, are scored once for each such
    value: a network gives the same answer to the same window, so nothing is lost.

    Args:
        volume: (X, Y, Z) float32.
        window: side of the cubic windows, in voxels.
        overlap: of neighbouring windows, share of the side in [0,1).
        sigma: of the Gaussian weights, share of the side.
        score: from (B, 1, w, w, w) to the same shape; its answer for a window must depend on nothing else.
        batch: windows given to ``score`` at once.
        progress: called with the number of windows done and of all windows.
        shift: of the inner windows along each axis; see :func:`window_starts`.

    Returns:
        (X, Y, Z) float32 on the device of ``volume``: at each voxel the weighted mean of the scores of the
        windows that cover it.
    """
    padding = [(max(0, window - n) // 2, max(0, window - n) - max(0, window - n) // 2) for n in volume.shape]
    short = any(n < window for n in volume.shape)
    padded = functional.pad(volume, [n for pair in reversed(padding) for n in pair]) if short else volume
    starts = [window_starts(n, window, overlap, s) for n, s in zip(volume.shape, shift, strict=True)]
    line = line_weights(window, sigma).to(padded.device)
    weights = cube_weights(window, sigma).to(padded.device)
    total = torch.zeros_like(padded, dtype=torch.float32)
    memo: dict[float, Tensor] = {}
    corners = product(*starts)
    done, count = 0, math.prod(map(len, starts))
    while places := [tuple(slice(n, n + window) for n in corner) for corner in islice(corners, batch)]:
        scores = _score_windows(torch.stack([padded[place] for place in places]), score, memo)
        for place, scored in zip(places, scores, strict=True):
            total[place].addcmul_(scored, weights)
        done += len(places)
        if progress is not None:
            progress(done, count)
    for axis, firsts in enumerate(starts):
        sums = torch.zeros(padded.shape[axis], device=padded.device)
        for first in firsts:
            sums[first : first + window] += line
        total /= sums.reshape([-1 if other == axis else 1 for other in range(3)])
    inner = tuple(slice(before, before + n) for (before, _), n in zip(padding, volume.shape, strict=True))
    return total[inner]


def _score_windows(windows: Tensor, score: Score, memo: dict[float, Tensor]) -> Tensor:
    """(B, w, w, w) scores of as many windows; those of constant ones are kept in ``memo`` and found there."""
    # on a GPU one question for all windows: each answer is waited for; aminmax of rows is 20 times as slow
    rows = windows.flatten(1)
    values, highest = torch.stack([rows.amin(dim=1), rows.amax(dim=1)]).tolist()
    varied = [low != high for low, high in zip(values, highest, strict=True)]
    if all(varied):
        return score(windows[:, None])[:, 0].float()
    scores = torch.empty_like(windows)
    for number, value in enumerate(values):
        if not varied[number]:
            if value not in memo:
                memo[value] = score(windows[number][None, None])[0, 0].float()
            scores[number] = memo[value]
    if any(varied):
        scores[varied] = score(windows[varied][:, None])[:, 0].float()
    return scores
