"""Lists and ranks against examples worked by hand and against the plain metric."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mood_eval.average_precision import ScoreCounts, average_precision, merge
from mood_eval.ranking import Standing, bootstrap, bootstrap_gains, draw_lists, list_precisions, rank


def _cases(count: int, seed: int = 0) -> tuple[list[ScoreCounts], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    labels = [rng.random(300) < 0.1 * (n % 3) for n in range(count)]
    scores = [(0.5 * rng.random(300) + 0.3 * label).astype(np.float16) for label in labels]
    return [ScoreCounts.of(s, y) for s, y in zip(scores, labels, strict=True)], scores, labels


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(max_examples=30)
def test_a_list_is_scored_like_its_cases_in_a_row(times: list[int]) -> None:
    cases, scores, labels = _cases(6)
    picked = np.repeat(np.arange(6), times)
    value = list_precisions(cases, np.array([times], float))[0]
    if not any(labels[n].any() for n in picked):
        assert value == 0
        return
    reference = average_precision_score(
        np.concatenate([labels[n] for n in picked]), np.concatenate([scores[n] for n in picked])
    )
    assert value == pytest.approx(reference, abs=1e-12)


def test_lists_are_drawn_as_said() -> None:
    with_return = draw_lists(8, 500, None, 1)
    assert np.all(with_return.sum(1) == 8) and with_return.max() > 1
    without = draw_lists(8, 500, 3, 1)
    assert np.all(without.sum(1) == 3) and without.max() == 1
    assert np.abs(without.mean(0) - 3 / 8).max() < 0.1
    assert np.array_equal(draw_lists(8, 5, 3, 1), draw_lists(8, 5, 3, 1))
    with pytest.raises(ValueError, match="lists of 9 out of 8 cases"):
        draw_lists(8, 1, 9, 0)


def test_interval_holds_the_whole_and_shrinks_with_more_cases() -> None:
    few, many = _cases(6)[0], _cases(60)[0]
    spreads = [bootstrap(cases, 300) for cases in (few, many)]
    for cases, spread in zip((few, many), spreads, strict=True):
        total = ScoreCounts()
        for case in cases:
            total = total + case
        assert spread.low < average_precision(total) < spread.high
        assert spread.low < spread.mean < spread.high
    assert spreads[1].high - spreads[1].low < spreads[0].high - spreads[0].low
    # a list of all cases, each once, is the whole
    full = bootstrap(few, 5, size=6)
    assert full.low == pytest.approx(full.high)


def test_cases_of_a_scan_are_drawn_together() -> None:
    cases = _cases(10)[0]
    apart, pairs = bootstrap(cases, 400), bootstrap(cases, 400, scans=[n for n in "abcde" for _ in range(2)])
    # five pairs drawn as wholes: 126 different lists, each of known precision
    values = [
        average_precision(merge(cases[n] for pair in picked for n in pair))
        for picked in combinations_with_replacement(((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)), 5)
    ]
    assert min(values) <= pairs.low <= pairs.high <= max(values)
    assert apart != pairs
    # the same case three times over is no more than one case
    twins = bootstrap(
        [case for case in cases for _ in range(3)], 400, scans=[n for n in "abcdefghij" for _ in range(3)]
    )
    assert twins.low == pytest.approx(apart.low) and twins.high == pytest.approx(apart.high)


def test_few_scans_are_no_lists_of_their_own() -> None:
    cases = _cases(6)[0]
    assert bootstrap(cases, 50, scans=["a", "b", "c"] * 2) == bootstrap(cases, 50)


def test_a_gain_is_taken_list_by_list() -> None:
    ours, theirs = _cases(6)[0], _cases(6)[0][::-1]
    gain = bootstrap_gains(ours, {"theirs": theirs}, 200)["theirs"]
    ends = [bootstrap(cases, 200) for cases in (ours, theirs)]
    assert gain.mean == pytest.approx(ends[0].mean - ends[1].mean) and gain.low < gain.mean < gain.high
    none = bootstrap_gains(ours, {"ours": ours}, 200, scans=list("abcdef"))["ours"]
    assert none.low == none.mean == none.high == 0


def test_ranking_by_hand() -> None:
    standings = rank(
        {
            "a": {"brain": 0.9, "abdom": 0.2},  # ranks 1 and 4: mean 2.5
            "b": {"brain": 0.5, "abdom": 0.8},  # ranks 2 and 1: mean 1.5
            "c": {"brain": 0.5, "abdom": 0.6},  # ranks 2 and 2: mean 2
            "d": {"brain": 0.1, "abdom": 0.6},  # ranks 4 and 2: mean 3
            "e": {"brain": 0.05},  # ranks 5 and 5: mean 5
        }
    )
    assert standings == [
        Standing("b", {"abdom": 1, "brain": 2}, 1.5, 1),
        Standing("c", {"abdom": 2, "brain": 2}, 2.0, 2),
        Standing("a", {"abdom": 4, "brain": 1}, 2.5, 3),
        Standing("d", {"abdom": 2, "brain": 4}, 3.0, 4),
        Standing("e", {"abdom": 5, "brain": 5}, 5.0, 5),
    ]


def test_equal_methods_share_a_place() -> None:
    standings = rank({"x": {"brain": 0.4}, "y": {"brain": 0.4}, "z": {"brain": 0.3}})
    assert [(one.method, one.place) for one in standings] == [("x", 1), ("y", 1), ("z", 3)]
