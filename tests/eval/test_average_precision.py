"""Counting codes must give what scikit-learn gives on the sorted scores."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mood_eval.average_precision import (
    CODES,
    ScoreCounts,
    area_under_roc,
    average_precision,
    best_dice,
    code_values,
    merge,
    to_codes,
)

Values = st.SearchStrategy[float]
few_values = st.sampled_from([0.0, -0.0, 1e-8, 0.1, 0.5, 0.50001, 0.9999, 0.99999, 1.0])
any_values = st.floats(0, 1, width=32)


def _counted(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> ScoreCounts:
    counts = ScoreCounts()
    counts.add(scores, labels)
    return counts


def _reference(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where nothing is positive, and returns 0
        return float(average_precision_score(labels, scores.astype(np.float16)))


@given(st.data(), st.integers(1, 200), st.sampled_from([few_values, any_values]))
def test_average_precision_is_scikit_learns(data: st.DataObject, size: int, values: Values) -> None:
    scores = data.draw(hnp.arrays(np.float32, size, elements=values))
    labels = data.draw(hnp.arrays(bool, size))
    assert average_precision(_counted(scores, labels)) == pytest.approx(_reference(scores, labels), abs=1e-12)


@given(hnp.arrays(np.float32, 30, elements=any_values))
def test_all_of_one_kind(scores: NDArray[np.float32]) -> None:
    everything, nothing = np.ones(30, bool), np.zeros(30, bool)
    assert average_precision(_counted(scores, everything)) == pytest.approx(1.0, abs=1e-12)
    assert _reference(scores, everything) == pytest.approx(1.0, abs=1e-12)
    assert average_precision(_counted(scores, nothing)) == _reference(scores, nothing) == 0.0
    assert np.isnan(area_under_roc(_counted(scores, everything)))
    assert best_dice(_counted(scores, nothing)).dice == 0.0


@given(st.data(), st.integers(2, 60), st.sampled_from([few_values, any_values]))
def test_area_and_dice_are_scikit_learns(data: st.DataObject, size: int, values: Values) -> None:
    scores = data.draw(hnp.arrays(np.float32, size, elements=values))
    labels = data.draw(hnp.arrays(bool, size).filter(lambda marks: 0 < marks.sum() < marks.size))
    counts, half = _counted(scores, labels), scores.astype(np.float16)
    assert area_under_roc(counts) == pytest.approx(roc_auc_score(labels, half), abs=1e-12)
    dices = {float(t): f1_score(labels, half >= t) for t in np.unique(half)}
    best = best_dice(counts)
    assert best.dice == pytest.approx(max(dices.values()), abs=1e-12)
    assert dices[best.threshold] == pytest.approx(best.dice, abs=1e-12)


def test_large_saturated_map_agrees() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(400_000) < 0.01
    scores = (1 / (1 + np.exp(-rng.normal(-4, 3, labels.size) - 8 * labels))).astype(np.float32)
    assert average_precision(_counted(scores, labels)) == pytest.approx(_reference(scores, labels), abs=1e-12)


@given(hnp.arrays(np.float32, 60, elements=any_values), st.integers(0, 60))
def test_parts_add_up_to_the_whole(scores: NDArray[np.float32], cut: int) -> None:
    labels = np.arange(60) % 3 == 0
    parts = [_counted(scores[:cut], labels[:cut]), _counted(scores[cut:], labels[cut:])]
    whole = _counted(scores, labels)
    for total in (merge(parts), parts[0] + parts[1]):
        assert np.array_equal(total.positives, whole.positives)
        assert np.array_equal(total.negatives, whole.negatives)


def test_codes_run_with_their_values() -> None:
    values = code_values()
    assert values.size == CODES == 15_361
    assert values[0] == 0 and values[-1] == 1 and np.all(np.diff(values) > 0)
    assert np.array_equal(to_codes(values.astype(np.float32)), np.arange(CODES))
    assert to_codes(np.array([-0.0, -3.0, 7.0, np.inf], np.float32)).tolist() == [0, 0, CODES - 1, CODES - 1]


def test_nan_is_refused_by_name_and_not_counted() -> None:
    counts, scores = ScoreCounts(), np.zeros((4, 4, 4), np.float32)
    scores[3, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"case_7\.nii\.gz: a score is NaN"):
        counts.add(scores, np.zeros((4, 4, 4), bool), "case_7.nii.gz")
    assert counts.positives.sum() + counts.negatives.sum() == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"case_7: scores of shape \(3,\) for labels of shape \(2,\)"):
        ScoreCounts().add(np.zeros(3, np.float32), np.zeros(2, bool), "case_7")


def test_memory_does_not_grow_with_the_case() -> None:
    scores, labels = np.zeros(20_000_000, np.float32), np.zeros(20_000_000, bool)
    counts = ScoreCounts()
    tracemalloc.start()
    counts.add(scores, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6  # the case itself takes 100 MB
