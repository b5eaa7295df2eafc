"""Bootstrapped lists of cases and the challenge's ranking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mood_eval.average_precision import CODES, ScoreCounts

LEAST_SCANS = 5  # of fewer there are hardly any different lists
_BLOCK = 64  # lists worked on at once: 64 x 15,361 codes x 2 x 8 bytes = 16 MB


@dataclass(frozen=True)
class Spread:
    """Average precision over many lists of cases.

    Attributes:
        mean: over the lists.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """A method's place.

    Attributes:
        method: its name.
        ranks: per region, 1 the best; equal scores share the better rank.
        mean_rank: over the regions.
        place: by mean rank, 1 the best; equal ones share the better place.
    """

    method: str
    ranks: dict[str, int]
    mean_rank: float
    place: int


def draw_lists(cases: int, runs: int, size: int | None, seed: int) -> NDArray[np.float64]:
    """How often each case is in each list, (runs, cases).

    Args:
        cases: how many there are.
        runs: lists to draw.
        size: cases a list, drawn without return, as the organisers do; None draws as many as there are, with
            return, which is the usual bootstrap.
        seed: of the draws.

    Raises:
        ValueError: a list would need more cases than there are.
    """
    if size is not None and not 0 < size <= cases:
        raise ValueError(f"lists of {size} out of {cases} cases")
    rng = np.random.default_rng(seed)
    lists = np.zeros((runs, cases))
    for row in lists:
        drawn = rng.integers(cases, size=cases) if size is None else rng.permutation(cases)[:size]
        row += np.bincount(drawn, minlength=cases)
    return lists


def bootstrap(
    cases: Sequence[ScoreCounts],
    runs: int = 1000,
    size: int | None = None,
    seed: int = 0,
    scans: Sequence[str] | None = None,
) -> Spread:
    """Average precision over lists of cases: all voxels of a list are ranked together.

    Args:
        cases: counts of each.
        runs, size, seed: see :func:`draw_lists`.
        scans: the scan that each case was made from. Without ``size``, whole scans are then drawn where there
            are five or more, as the cases of one scan are as alike as the scan is to itself.
    """
    return _spread(list_precisions(cases, _draw(len(cases), runs, size, seed, scans)))


def bootstrap_gains(
    cases: Sequence[ScoreCounts],
    others: Mapping[str, Sequence[ScoreCounts]],
    runs: int = 1000,
    seed: int = 0,
    scans: Sequence[str] | None = None,
) -> dict[str, Spread]:
    """How much higher the average precision of one method is than of others, list by list.

    Args:
        cases: counts of each case by the one.
        others: name of each other to its counts, in the same order.
        runs, seed, scans: see :func:`bootstrap`.
    """
    lists = _draw(len(cases), runs, None, seed, scans)
    values = list_precisions(cases, lists)
    return {name: _spread(values - list_precisions(counts, lists)) for name, counts in others.items()}


def _draw(
    cases: int, runs: int, size: int | None, seed: int, scans: Sequence[str] | None
) -> NDArray[np.float64]:
    names, of_case = np.unique(() if scans is None else scans, return_inverse=True)
    if size is None and len(names) >= LEAST_SCANS:
        return draw_lists(len(names), runs, None, seed)[:, of_case]
    return draw_lists(cases, runs, size, seed)


def _spread(values: NDArray[np.float64]) -> Spread:
    low, high = np.percentile(values, [2.5, 97.5])
    return Spread(float(values.mean()), float(low), float(high))


def list_precisions(cases: Sequence[ScoreCounts], lists: NDArray[np.float64]) -> NDArray[np.float64]:
    """(lists,) average precision of each list; as :func:`average_precision` of its merged counts."""
    used = np.zeros(CODES, bool)
    for case in cases:
        used |= (case.positives + case.negatives) > 0
    # from the highest score down, scores that occur nowhere left out
    positives = np.array([case.positives[used][::-1] for case in cases], np.float64)
    negatives = np.array([case.negatives[used][::-1] for case in cases], np.float64)
    values = []
    for start in range(0, len(lists), _BLOCK):
        block = lists[start : start + _BLOCK]
        gained = block @ positives
        found, false = np.cumsum(gained, axis=1), np.cumsum(block @ negatives, axis=1)
        precision = found / np.maximum(found + false, 1)
        values.append(np.sum(gained * precision, axis=1) / np.maximum(found[:, -1], 1))
    return np.concatenate(values)


def rank(scores: Mapping[str, Mapping[str, float]]) -> list[Standing]:
    """Rank methods within each region, then by the mean of their ranks.

    Args:
        scores: method to region to average precision; a region that a method lacks counts as 0.

    Returns:
        The best first; methods on one place in the order of their names.
    """
    methods = sorted(scores)
    regions = sorted({region for by_region in scores.values() for region in by_region})
    table = {
        region: stats.rankdata([-scores[method].get(region, 0.0) for method in methods], "min").astype(int)
        for region in regions
    }
    means = [float(np.mean([table[region][n] for region in regions])) for n in range(len(methods))]
    places = stats.rankdata(means, "min").astype(int)
    standings = [
        Standing(method, {region: int(table[region][n]) for region in regions}, means[n], int(places[n]))
        for n, method in enumerate(methods)
    ]
    return sorted(standings, key=lambda standing: standing.place)
