"""Exact average precision in constant memory.

The challenge reads maps as float16 in [0,1], and there are only 15,361 of those. Counting the anomalous and
the normal voxels of each is enough for every metric that depends on the order of the scores alone, and counts
of many cases or processes add up. Nothing is sorted, and no more than one chunk is ever copied.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mood_infer.volume import to_half

CODES = 0x3C00 + 1  # float16 bit patterns of 0.0 to 1.0, in the order of their values
_LABEL_BIT = 14  # codes fit below it, so one count over code and label together does for both
_CHUNK = 1 << 18  # voxels; small enough for the processor's cache

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class DicePoint:
    """The best Dice coefficient of all thresholds, and its threshold: scores at or above it are anomalous."""

    dice: float
    threshold: float


@dataclass
class ScoreCounts:
    """How many voxels (or samples) have each score.

    Attributes:
        positives: (15361,) anomalous ones, by code from score 0 to score 1.
        negatives: (15361,) normal ones.
    """

    positives: Counts = field(default_factory=lambda: np.zeros(CODES, np.int64))
    negatives: Counts = field(default_factory=lambda: np.zeros(CODES, np.int64))

    @classmethod
    def of(
        cls, scores: NDArray[np.floating], labels: NDArray[np.bool_], name: str = "scores"
    ) -> "ScoreCounts":
        """The counts of one case; see :meth:`add`."""
        counts = cls()
        counts.add(scores, labels, name)
        return counts

    def add(self, scores: NDArray[np.floating], labels: NDArray[np.bool_], name: str = "scores") -> None:
        """Count the voxels of one case.

        Args:
            scores: any shape; clipped to [0,1] and rounded to float16, as the challenge does.
            labels: bool, the same shape.
            name: of the case, for the errors.

        Raises:
            ValueError: the shapes differ, or a score is NaN; nothing was counted then.
        """
        if scores.shape != labels.shape:
            raise ValueError(f"{name}: scores of shape {scores.shape} for labels of shape {labels.shape}")
        if scores.flags.f_contiguous and labels.flags.f_contiguous:
            scores, labels = scores.T, labels.T  # as nibabel reads them: in this order nothing is copied
        flat, marks = scores.ravel(), labels.ravel().view(np.uint8)
        both = np.zeros(2 << _LABEL_BIT, np.int64)
        for start in range(0, flat.size, _CHUNK):
            codes = to_codes(flat[start : start + _CHUNK])
            if codes.max() >= CODES:
                raise ValueError(f"{name}: a score is NaN")
            codes |= marks[start : start + _CHUNK].astype(np.uint16) << _LABEL_BIT
            both += np.bincount(codes, minlength=both.size)
        negatives, positives = both.reshape(2, -1)[:, :CODES]
        self.positives += positives
        self.negatives += negatives

    def __add__(self, other: "ScoreCounts") -> "ScoreCounts":
        return ScoreCounts(self.positives + other.positives, self.negatives + other.negatives)


def merge(parts: Iterable[ScoreCounts]) -> ScoreCounts:
    """The counts of several cases together."""
    total = ScoreCounts()
    for part in parts:
        total.positives += part.positives
        total.negatives += part.negatives
    return total


def to_codes(scores: NDArray[np.floating]) -> NDArray[np.uint16]:
    """float16 bit patterns of scores clipped to [0,1]; those of NaN lie above all others."""
    # abs, because clip keeps -0.0, whose pattern is not that of 0
    return to_half(np.abs(np.clip(scores, 0, 1))).view(np.uint16)


def code_values() -> NDArray[np.float64]:
    """(15361,) the score of each code."""
    return np.arange(CODES, dtype=np.uint16).view(np.float16).astype(np.float64)


def average_precision(counts: ScoreCounts) -> float:
    """Sum of precision times gain in recall over falling thresholds; ties share one threshold.

    As scikit-learn has it: 0 where nothing is anomalous, 1 where everything is.
    """
    precision, recall = precision_recall(counts)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def precision_recall(counts: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at each score that occurs, from the highest down."""
    found, false = _cumulated(counts)
    total = max(int(found[-1]), 1) if found.size else 1
    return found / np.maximum(found + false, 1), found / total


def area_under_roc(counts: ScoreCounts) -> float:
    """Chance that an anomalous voxel scores above a normal one, ties counting half; NaN if one is absent."""
    positives, negatives = counts.positives.astype(np.float64), counts.negatives.astype(np.float64)
    if not positives.sum() or not negatives.sum():
        return float("nan")
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / (positives.sum() * negatives.sum()))


def best_dice(counts: ScoreCounts) -> DicePoint:
    """The threshold with the highest Dice coefficient of all voxels together; (0, 1) without anomalies."""
    found, false = _cumulated(counts)
    if not found.size or not found[-1]:
        return DicePoint(0.0, 1.0)
    dice = 2 * found / (found + false + found[-1])
    best = int(dice.argmax())
    occurring = np.flatnonzero((counts.positives + counts.negatives)[::-1])
    return DicePoint(float(dice[best]), float(code_values()[::-1][occurring[best]]))


def _cumulated(counts: ScoreCounts) -> tuple[Counts, Counts]:
    occurring = (counts.positives + counts.negatives)[::-1] > 0
    return np.cumsum(counts.positives[::-1])[occurring], np.cumsum(counts.negatives[::-1])[occurring]
