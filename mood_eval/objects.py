"""Object level (FROC): which anomalies are found as objects, and how many objects found are none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from mood_eval.body import Mask3D
from mood_infer.volume import Array3D

# even steps of the logit: low maps and saturated ones are both resolved
THRESHOLDS: tuple[float, ...] = tuple(float(t) for t in special.expit(np.arange(-4.0, 8.0)))
RATES = (0.1, 0.5, 1.0, 2.0)  # false objects a scan
LEAST_IOU = 0.1  # a predicted object that overlaps less with an anomaly has not found it
LEAST_ML = 0.1  # predicted objects below this volume are specks and do not count
_TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class CaseObjects:
    """What the thresholds find in one case.

    Attributes:
        volumes: (objects,) of the anomalies, in mL.
        found: (thresholds, objects) bool.
        false: (thresholds,) predicted objects that are no anomaly.
    """

    volumes: NDArray[np.floating]
    found: NDArray[np.bool_]
    false: NDArray[np.int64]


def find_objects(
    scores: Array3D, label: Mask3D, voxel_ml: float, thresholds: Sequence[float] = THRESHOLDS
) -> CaseObjects:
    """Match the connected components of a map, at each threshold, with those of the label.

    Voxels that share a corner belong together. A predicted object finds an anomaly if their intersection
    over union is at least 0.1; one that finds none is a false object, unless it is smaller than 0.1 mL.

    Args:
        scores: (X, Y, Z) in [0,1].
        label: (X, Y, Z) bool.
        voxel_ml: volume of a voxel, in mL.
        thresholds: a voxel belongs to an object if its score is at least this.
    """
    box = _bounding_box((scores >= min(thresholds)) | label)
    scores = scores[box]
    truth, count = ndimage.label(label[box], _TOUCHING)
    sizes = np.bincount(truth.ravel(), minlength=count + 1)[1:]
    found = np.zeros((len(thresholds), count), bool)
    false = np.zeros(len(thresholds), np.int64)
    for row, threshold in enumerate(thresholds):
        predicted, number = ndimage.label(scores >= threshold, _TOUCHING)
        volumes = np.bincount(predicted.ravel(), minlength=number + 1)[1:]
        real = np.zeros(number, bool)
        for index in range(count):
            shared = np.bincount(predicted[truth == index + 1], minlength=number + 1)[1:]
            hit = shared >= LEAST_IOU * (volumes + sizes[index] - shared)
            hit &= shared > 0
            found[row, index] = hit.any()
            real |= hit
        false[row] = np.count_nonzero(~real & (volumes * voxel_ml >= LEAST_ML))
    return CaseObjects(sizes * voxel_ml, found, false)


def recall_at(cases: Sequence[CaseObjects], rates: Sequence[float] = RATES) -> dict[float, float]:
    """The best share of anomalies found by any threshold with at most so many false objects a scan.

    NaN where no case holds an anomaly; 0 where every threshold has too many false objects.
    """
    found = np.concatenate([case.found for case in cases], axis=1)
    if not found.shape[1]:
        return {rate: float("nan") for rate in rates}
    recall, false = found.mean(axis=1), _false_per_scan(cases)
    return {rate: float(max(recall[false <= rate], default=0.0)) for rate in rates}


def sizes_and_found(
    cases: Sequence[CaseObjects], rate: float = 1.0
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Volume in mL of every anomaly, and whether the best threshold for a false-object rate finds it."""
    volumes = np.concatenate([case.volumes for case in cases])
    found = np.concatenate([case.found for case in cases], axis=1)
    allowed = np.flatnonzero(_false_per_scan(cases) <= rate)
    if not allowed.size or not volumes.size:
        return volumes, np.zeros(volumes.size, bool)
    return volumes, found[allowed[found[allowed].mean(axis=1).argmax()]]


def _false_per_scan(cases: Sequence[CaseObjects]) -> NDArray[np.float64]:
    return np.mean([case.false for case in cases], axis=0)


def _bounding_box(mask: Mask3D) -> tuple[slice, ...]:
    boxes = ndimage.find_objects(mask.view(np.uint8))
    return boxes[0] if boxes else (slice(0, 0),) * 3
