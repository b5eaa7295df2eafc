"""Several methods on the same cases, which are made, scored and forgotten one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from mood_eval.average_precision import ScoreCounts
from mood_eval.objects import find_objects
from mood_eval.summary import FamilySummary, Judged, Summary
from mood_eval.validation_set import Case, Index, Made, Recipe, make_cases, plan_cases
from mood_eval.verdicts import RememberedVerdicts, Verdict, Verdicts
from mood_infer.grid import Grid, resample
from mood_infer.preparation import scan_grid
from mood_infer.volume import Array3D


@dataclass(frozen=True, eq=False)
class Scored:
    """What a method says of one case.

    Attributes:
        working: (X, Y, Z) float32 in [0,1] on the working grid.
        grid: the working grid.
        sample: score of the whole case in [0,1].
    """

    working: Array3D
    grid: Grid
    sample: float


Score = Callable[[Made], Mapping[str, Scored]]  # a case to the name of each row and what it says
Report = Callable[[Case, int, int], None]


class ScoreTable(BaseModel):
    """The numbers of several methods on the same cases.

    Attributes:
        index: the cases.
        rows: name of the method to its numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    index: Index
    rows: dict[str, Summary]

    def markdown(self) -> str:
        """Two tables of one row a method; where both families were judged, the unseen one's columns follow.

        Pixel AP over all cases and by type, and sample AP; then the 95 % intervals of both, pixel AP by
        volume of the anomaly, the share of these found as objects at one false object a scan, and the share
        of all at several rates.
        """
        tables = (self._table(columns) for columns in (_precisions, _details))
        return "\n".join(table for table in tables if table)

    def _table(self, of: Callable[[FamilySummary], dict[str, float | None]]) -> str:
        columns = {name: _of_both(summary, of) for name, summary in self.rows.items()}
        head = list(next(iter(columns.values())))
        rows = {name: [values[title] for title in head] for name, values in columns.items()}
        return markdown_table(head, rows) if head else ""


def _of_both(
    summary: Summary, of: Callable[[FamilySummary], dict[str, float | None]]
) -> dict[str, float | None]:
    unseen = of(summary.unseen) if summary.unseen is not None else {}
    return of(summary) | {f"unseen: {name}": value for name, value in unseen.items()}


def _precisions(summary: FamilySummary) -> dict[str, float | None]:
    types = {kind.replace("_", " "): value for kind, value in summary.per_type.items()}
    return {"pixel AP": summary.pixel_ap, **types, "sample AP": summary.sample_ap}


def _details(summary: FamilySummary) -> dict[str, float | None]:
    intervals = {"pixel AP": summary.pixel_interval, "sample AP": summary.sample_interval}
    ends: dict[str, float | None] = {}
    for name, interval in intervals.items():
        if interval is not None:
            ends |= {f"{name}, low": interval.low, f"{name}, high": interval.high}
    named = {
        f"{name}, {group.from_ml:.3g}-{group.to_ml:.3g} mL": group for name, group in summary.by_size.items()
    }
    precisions = {f"AP, {name}": group.pixel_ap for name, group in named.items()}
    found = {f"found, {name}": group.found for name, group in named.items()}
    recall = {f"found at {rate}": part for rate, part in summary.recall.items()}
    return {**ends, **precisions, **found, **recall}


def markdown_table(head: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """A table in Markdown: a name and numbers to three digits a row."""
    lines = [_row(["", *head]), _row(["---"] * (len(head) + 1))]
    for name, values in rows.items():
        lines.append(_row([name, *("-" if value is None else f"{value:.3f}" for value in values)]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def judge_cases(
    scans: Sequence[Path],
    recipe: Recipe,
    score: Score,
    report: Report | None = None,
    objects: bool = True,
    verdicts: Verdicts | None = None,
) -> tuple[Index, dict[str, list[Judged]]]:
    """Make all cases of a recipe and score each of them.

    Args:
        scans: normal scans that no method was fitted on.
        recipe: the cases to make.
        score: the methods; the cases of one scan come one after the other.
        report: called before each case with the case, its position from 1, and the number of cases.
        objects: also match objects, which takes a second or more a case and row.
        verdicts: where what each case gave is kept; those it has are not made again.

    Raises:
        UserError: a scan cannot be used.
    """
    verdicts = RememberedVerdicts() if verdicts is None else verdicts
    for made in make_all(scans, recipe, report, verdicts):
        rows = {name: _judge(made, name, scored, objects) for name, scored in score(made).items()}
        verdicts.add(Verdict(made.case, rows))
    found = [verdicts[case.name] for cases in _by_scan(scans, recipe).values() for case in cases]
    names = found[0].rows if found else ()
    judged = {name: [verdict.rows[name] for verdict in found] for name in names}
    return Index.of(recipe, [verdict.case for verdict in found]), judged


def make_all(
    scans: Sequence[Path], recipe: Recipe, report: Report | None = None, verdicts: Verdicts | None = None
) -> Iterator[Made]:
    """Cases of a recipe, those of one scan one after the other; arguments as of :func:`judge_cases`."""
    plan = _by_scan(scans, recipe)
    verdicts = RememberedVerdicts() if verdicts is None else verdicts
    number, count = 0, sum(map(len, plan.values()))
    for source in verdicts.share(scans):
        missing = [case for case in plan[source] if case.name not in verdicts]
        number += len(plan[source]) - len(missing)
        for made in make_cases(source, missing, recipe):
            number += 1
            if report is not None:
                report(made.case, number, count)
            yield made


def _by_scan(scans: Sequence[Path], recipe: Recipe) -> dict[Path, list[Case]]:
    plan = plan_cases(list(scans), recipe)
    return {source: [case for path, case in plan if path == source] for source in scans}


def _judge(made: Made, name: str, scored: Scored, objects: bool) -> Judged:
    own = scan_grid(made.image)
    scores = np.clip(resample(scored.working, scored.grid, own), 0, 1)
    counts = ScoreCounts.of(scores, made.label, f"{made.case.name}, {name}")
    voxel_ml = float(np.prod(own.spacing)) / 1000
    found = find_objects(scores, made.label, voxel_ml) if objects else None
    return Judged(made.case.name, bool(made.label.any()), counts, scored.sample, found)
