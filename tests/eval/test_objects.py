"""Maps built by hand, whose objects can be counted by eye."""

import numpy as np
import pytest

from mood_eval.objects import CaseObjects, find_objects, recall_at, sizes_and_found

ML = 0.008  # 2 mm voxels
AT = (0.3, 0.6)


def _blank() -> np.ndarray:
    return np.zeros((40, 40, 40), np.float32)


def _case() -> CaseObjects:
    """Two anomalies; one is found at 0.6, the other at 0.3 only, with one false object at 0.3."""
    label, scores = _blank().astype(bool), _blank()
    label[2:8, 2:8, 2:8] = True  # 216 voxels
    label[20:30, 20:30, 20:30] = True  # 1000 voxels
    scores[2:8, 2:8, 2:8] = 0.9
    scores[20:30, 20:30, 20:25] = 0.4
    scores[34:38, 2:6, 2:6] = 0.5  # 64 voxels of nothing
    scores[0, 39, 39] = 0.8  # a speck
    return find_objects(scores, label, ML, AT)


def test_found_false_and_sizes() -> None:
    case = _case()
    assert case.volumes.tolist() == pytest.approx([216 * ML, 1000 * ML])
    assert case.found.tolist() == [[True, True], [True, False]]
    assert case.false.tolist() == [1, 0]


def test_recall_at_false_objects_a_scan() -> None:
    healthy = find_objects(_blank(), _blank().astype(bool), ML, AT)
    assert recall_at([_case()], (0.0, 0.5, 1.0)) == {0.0: 0.5, 0.5: 0.5, 1.0: 1.0}
    # a second scan without objects halves the rate
    assert recall_at([_case(), healthy], (0.0, 0.5, 1.0)) == {0.0: 0.5, 0.5: 1.0, 1.0: 1.0}
    assert np.isnan(recall_at([healthy], (1.0,))[1.0])


def test_too_many_false_objects_at_every_threshold() -> None:
    scores, label = _blank(), _blank().astype(bool)
    label[0:5, 0:5, 0:5] = True
    scores[0:5, 0:5, 0:5] = 1
    scores[10::10, 10:14, 10:30] = 1  # 3 plates of 80 voxels
    case = find_objects(scores, label, ML, AT)
    assert case.false.tolist() == [3, 3]
    assert recall_at([case], (2.0, 3.0)) == {2.0: 0.0, 3.0: 1.0}


def test_covering_everything_finds_nothing() -> None:
    label = _blank().astype(bool)
    label[2:8, 2:8, 2:8] = True
    case = find_objects(np.ones_like(_blank()), label, ML, AT)
    assert not case.found.any() and case.false.tolist() == [1, 1]


@pytest.mark.parametrize(("extra", "hit"), [(9, True), (10, False)])
def test_a_tenth_of_the_union_is_enough(extra: int, hit: bool) -> None:
    label, scores = _blank().astype(bool), _blank()
    label[5, 5, 5] = True
    scores[5, 5, 5 : 6 + extra] = 1  # 1 voxel in the label, so many outside
    case = find_objects(scores, label, 1.0, (0.5,))
    assert case.found.tolist() == [[hit]]
    assert case.false.tolist() == [0 if hit else 1]


@pytest.mark.parametrize(("length", "hit"), [(10, True), (11, False)])
def test_a_small_part_of_a_large_anomaly_does_not_find_it(length: int, hit: bool) -> None:
    label, scores = _blank().astype(bool), _blank()
    label[5, 5, 5 : 5 + length] = True
    scores[5, 5, 5] = 1
    assert find_objects(scores, label, 1.0, (0.5,)).found.tolist() == [[hit]]


def test_voxels_that_share_a_corner_are_one_object() -> None:
    label = _blank().astype(bool)
    label[5, 5, 5] = label[6, 6, 6] = True
    assert find_objects(_blank(), label, 1.0, AT).volumes.tolist() == [2.0]


def test_sizes_and_whether_found_at_one_false_object() -> None:
    volumes, found = sizes_and_found([_case()], 0.5)
    assert volumes.tolist() == pytest.approx([216 * ML, 1000 * ML])
    assert found.tolist() == [True, False]
    assert sizes_and_found([_case()], 1.0)[1].tolist() == [True, True]
