"""Scores a folder of predictions as the challenge does, but says what it had to make up.

A prediction that is missing, unreadable, of another shape or holds NaN counts as all zeros, as in the
organisers' scorer (where one NaN ends everything); here each of them is a warning.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mood_eval.average_precision import ScoreCounts
from mood_eval.body import Mask3D
from mood_eval.objects import find_objects
from mood_eval.summary import Judged, Summary, summarise
from mood_eval.validation_set import Index
from mood_infer.challenge import is_scan
from mood_infer.errors import UserError
from mood_infer.scores import sample_score
from mood_infer.volume import Array3D


@dataclass(frozen=True)
class Predictions:
    """Where a method's results lie.

    Attributes:
        maps: folder of ``case.nii.gz``, or None if there are no maps.
        samples: folder of ``case.nii.gz.txt``, or None if there are none; scores then come from the maps.
    """

    maps: Path | None
    samples: Path | None


def find_predictions(folder: Path) -> Predictions:
    """Maps and sample scores in ``folder/pixel`` and ``folder/sample``, or both in ``folder`` itself.

    Raises:
        UserError: there are neither.
    """
    places = [folder / "pixel", folder / "sample", folder]
    maps = next((place for place in places if place.is_dir() and any(map(is_scan, place.iterdir()))), None)
    samples = next((place for place in places if any(place.glob("*.nii*.txt"))), None)
    if maps is None and samples is None:
        raise UserError(f"{folder}: neither maps (.nii.gz) nor sample scores (.nii.gz.txt); check the path.")
    return Predictions(maps, samples)


def find_labels(labels: Path) -> list[Path]:
    """The pixel labels of a ``toy_label`` folder, by name.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in labels.glob("pixel/*") if is_scan(path))
    if not paths:
        raise UserError(f"{labels}/pixel: no labels there; give a folder with pixel and sample in it.")
    return paths


def judge_folder(
    predictions: Predictions, labels: Path, objects: bool = True, workers: int = 2
) -> tuple[list[Judged], list[str]]:
    """Judge every case of a label folder.

    Args:
        predictions: of one method.
        labels: folder with ``pixel`` and ``sample`` in it.
        objects: also match objects, which takes seconds a case.
        workers: cases worked on at the same time.

    Returns:
        One result a case, by name, and the warnings.

    Raises:
        UserError: a label cannot be read.
    """
    paths = find_labels(labels)
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda path: _judge(predictions, path, labels, objects), paths))
    warnings = [warning for _, part in results for warning in part]
    if predictions.samples is None:
        warnings.append("no sample scores (.nii.gz.txt): the mean of a map's 100 highest voxels was taken.")
    return [judged for judged, _ in results], warnings


def score(
    folder: Path,
    labels: Path,
    index: Index | None = None,
    objects: bool = True,
    runs: int = 1000,
    list_size: int | None = None,
) -> tuple[Summary, list[Judged]]:
    """Judge a folder of predictions and sum it up.

    Raises:
        UserError: there are no predictions or labels, or the index is of another set.
    """
    judged, warnings = judge_folder(find_predictions(folder), labels, objects)
    check_index(index, [one.name for one in judged])
    return summarise(judged, index, warnings, runs, list_size), judged


def check_index(index: Index | None, names: Sequence[str]) -> None:
    """Raises UserError unless every case is in the index."""
    if index is None:
        return
    missing = sorted(set(names) - {case.name for case in index.cases})
    if missing:
        raise UserError(f"{missing[0]}: not in the index; give the index.json of this very set.")


def _judge(predictions: Predictions, path: Path, labels: Path, objects: bool) -> tuple[Judged, list[str]]:
    warnings = []
    label, voxel_ml = read_label(path)
    anomalous = _anomalous(labels / "sample" / f"{path.name}.txt", label)
    sample = None
    if predictions.samples is not None:
        sample, warning = _read_sample(predictions.samples / f"{path.name}.txt")
        warnings += warning
    if predictions.maps is None:
        return Judged(path.name, anomalous, None, sample), warnings
    scores, warning = read_scores(predictions.maps / path.name, label.shape)
    warnings += warning
    if sample is None:
        sample = sample_score(scores)
    found = find_objects(scores, label, voxel_ml) if objects else None
    return Judged(path.name, anomalous, ScoreCounts.of(scores, label, path.name), sample, found), warnings


def read_label(path: Path) -> tuple[Mask3D, float]:
    """A pixel label as (X, Y, Z) bool, and the volume of a voxel in mL.

    Raises:
        UserError: it cannot be read.
    """
    try:
        image: Any = nib.load(path)
        stored = np.asarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        raise UserError(f"{path}: the label cannot be read; copy it again.") from error
    label = stored == 1 if stored.dtype.kind in "ui" else np.rint(stored) >= 1
    return label, float(np.prod(image.header.get_zooms()[:3])) / 1000


def read_scores(path: Path, shape: tuple[int, ...]) -> tuple[Array3D, list[str]]:
    """A map clipped to [0,1]; all zeros, and the reason, where it cannot be judged."""
    try:
        image: Any = nib.load(path)
        if image.shape != shape:
            return _zeros(path, shape, f"has shape {image.shape}, its label {shape}")
        scores = np.asarray(image.dataobj, dtype=np.float32)
    except FileNotFoundError:
        return _zeros(path, shape, "is missing")
    except Exception:  # nibabel, gzip and zlib raise many kinds
        return _zeros(path, shape, "cannot be read")
    if np.isnan(scores.min()):  # NaN spreads into the minimum
        return _zeros(path, shape, "holds NaN")
    return np.clip(scores, 0, 1, out=scores), []


def _zeros(path: Path, shape: tuple[int, ...], problem: str) -> tuple[Array3D, list[str]]:
    return np.zeros(shape, np.float32), [f"{path.name}: the map {problem}; it counts as all zeros."]


def _read_sample(path: Path) -> tuple[float, list[str]]:
    try:
        value = float(path.read_text().splitlines()[0])
    except FileNotFoundError:
        return 0.0, [f"{path.name}: the sample score is missing; it counts as 0."]
    except (OSError, ValueError, IndexError):
        return 0.0, [f"{path.name}: no number in the first line; it counts as 0."]
    if math.isnan(value):
        return 0.0, [f"{path.name}: the sample score is NaN; it counts as 0."]
    return min(max(value, 0.0), 1.0), []


def _anomalous(path: Path, label: Mask3D) -> bool:
    try:
        return bool(int(path.read_text().splitlines()[0]))
    except FileNotFoundError:
        return bool(label.any())
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: no 0 or 1 in the first line; copy the label again.") from error
