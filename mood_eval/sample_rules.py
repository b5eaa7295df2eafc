"""From a map to one score a scan: which rule orders scans best (paper, section 2.4: the mean of 100 voxels).

The rules are compared on the cases of every other scan, so that the best of them can be told on the others.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mood_eval.average_precision import average_precision, merge
from mood_eval.baselines import Baselines
from mood_eval.members import Remembering
from mood_eval.ranking import bootstrap_gains
from mood_eval.summary import count_samples
from mood_eval.table import Report, make_all, markdown_table
from mood_eval.validation_set import HEALTHY, Case, Made, Recipe
from mood_infer.errors import UserError
from mood_infer.scores import TOP_VOXELS, mean_of_top, sample_score
from mood_infer.volume import Array3D

Rule = Callable[[Array3D], float]
PAPER = f"mean of the top {TOP_VOXELS} (paper)"
HISTOGRAM = "intensity-histogram"
FUSED = f"{PAPER} + histogram distance"
RUNS = 2000


def share_above(scores: Array3D, threshold: float) -> float:
    """Share of the working grid with a higher score than ``threshold``."""
    return float((scores > threshold).mean())


RULES: Mapping[str, Rule] = {
    PAPER: sample_score,
    **{f"mean of the top {count}": partial(mean_of_top, count=count) for count in (1, 10, 1000, 10000)},
    **{f"share above {level}": partial(share_above, threshold=level) for level in (0.1, 0.25, 0.5)},
}


class RuleRow(BaseModel):
    """What a rule reaches.

    Attributes:
        chosen_on: sample AP on the half that may be chosen on.
        told_on: on the other half.
        gain: of the latter over the paper's rule.
        low, high: the 95 % interval of the gain, see :func:`mood_eval.ranking.bootstrap_gains`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    chosen_on: float
    told_on: float
    gain: float
    low: float
    high: float


class RuleTable(BaseModel):
    """All rules on the same cases.

    Attributes:
        rows: name of the rule to its numbers.
        cases: in the half that is told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: dict[str, RuleRow]
    cases: int

    def markdown(self) -> str:
        """One row a rule."""
        rows = {
            name: [row.chosen_on, row.told_on, row.gain, row.low, row.high] for name, row in self.rows.items()
        }
        return markdown_table(["one half", "other half", "over the paper's", "from", "to"], rows)


def compare_rules(
    scans: Sequence[Path],
    recipe: Recipe,
    predictor: Remembering,
    baselines: Baselines,
    report: Report | None = None,
) -> RuleTable:
    """Score all cases of a recipe by every rule.

    Args:
        scans: normal scans that neither networks nor baselines know.
        recipe: the cases to make.
        predictor: makes the maps.
        baselines: fitted, the intensity histogram among them.
        report: called before each case with the case, its position from 1, and the number of cases.

    Raises:
        UserError: a scan cannot be used, or there is only one.
    """
    if len(scans) < 2:
        raise UserError("comparing rules takes two scans or more, some to choose on and others to tell of")
    scores: dict[str, list[float]] = {name: [] for name in (*RULES, FUSED)}
    cases: list[Case] = []
    for made in make_all(scans, recipe, report):
        cases.append(made.case)
        for name, value in _score(made, predictor, baselines).items():
            scores[name].append(value)
    return table_of({name: np.array(values) for name, values in scores.items()}, cases)


def _score(made: Made, predictor: Remembering, baselines: Baselines) -> dict[str, float]:
    predictor.score_case(made)
    # a scan's score is that of the map before its context weighs it
    scores, _ = predictor.last.refined(predictor.manifest.smoothing, 0)
    scored = {name: rule(scores) for name, rule in RULES.items()}
    return scored | {FUSED: scored[PAPER] + baselines.score(made)[HISTOGRAM].sample}


def is_told(cases: Sequence[Case]) -> NDArray[np.bool_]:
    """True for the cases to be told: those of every other scan, so that none is in both halves."""
    _, of_case = np.unique([case.source for case in cases], return_inverse=True)
    return of_case % 2 == 1


def table_of(scores: Mapping[str, NDArray[np.float64]], cases: Sequence[Case]) -> RuleTable:
    """Sample AP of each rule on both halves.

    Args:
        scores: name of the rule to (cases,) scores; the paper's among them.
        cases: what was scored.
    """
    anomalous = np.array([case.kind != HEALTHY for case in cases])
    told = is_told(cases)
    sources = [case.source for case, kept in zip(cases, told, strict=True) if kept]
    counts = {name: count_samples(values[told], anomalous[told]) for name, values in scores.items()}
    paper = average_precision(merge(counts[PAPER]))
    rows = {}
    for name, values in scores.items():
        spread = bootstrap_gains(counts[name], {PAPER: counts[PAPER]}, RUNS, scans=sources)[PAPER]
        told_on = average_precision(merge(counts[name]))
        rows[name] = RuleRow(
            chosen_on=average_precision(merge(count_samples(values[~told], anomalous[~told]))),
            told_on=told_on,
            gain=told_on - paper,
            low=spread.low,
            high=spread.high,
        )
    return RuleTable(rows=rows, cases=int(told.sum()))
