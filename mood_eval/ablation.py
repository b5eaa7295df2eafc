"""The paper's ablations (tables 2 and 3, figure 6): trains networks that differ in one thing and judges them.

One TOML file names the rows. Each row is trained in ``OUT/runs``, exported to ``OUT/weights`` and
judged, and its numbers go to ``OUT/rows``; what is there is not done again, so the same command goes on where
it was cut off.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from mood_eval.average_precision import average_precision, merge
from mood_eval.baselines import BASELINES, Baselines
from mood_eval.members import Remembering, score_rows
from mood_eval.split import training_scans
from mood_eval.summary import Judged, Summary, summarise
from mood_eval.table import Score, Scored, judge_cases
from mood_eval.validation_set import Case, Index, Made, Recipe
from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.predictor import Device
from mood_infer.volume import write_atomically
from mood_train.checkpoint import CHECKPOINT_NAME
from mood_train.config import AnomalyConfig, Edges, RunConfig, load_preset, parse_toml
from mood_train.export import export_member
from mood_train.run import Material, Means, is_finished, train

SMOOTH = "_smooth"  # how the names of the types with smoothed edges end
Stop = Callable[[], bool]
RowName = Annotated[str, StringConstraints(pattern="^[a-z0-9][a-z0-9-]*$")]


class StoppedError(Exception):
    """The work was left off because it was asked to; the same command goes on."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Section):
    """One row: a network of its own, the mean of other rows' networks, or a baseline that is not trained.

    Attributes:
        edges: of the anomalies a network of its own is trained on.
        anomalies: settings of :class:`AnomalyConfig` in place of the ablation's and the preset's.
        mean_of: rows whose maps are averaged.
        baseline: one of :data:`mood_eval.baselines.BASELINES`.
        overlap: of the windows at inference, in place of the weights'.
    """

    edges: Edges | None = None
    anomalies: dict[str, Any] = {}
    mean_of: tuple[str, ...] = ()
    baseline: str | None = None
    overlap: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "Row":
        if [self.edges is None, not self.mean_of, self.baseline is None].count(False) != 1:
            raise ValueError("give one of edges, mean_of and baseline")
        if self.anomalies and self.edges is None:
            raise ValueError("anomalies belong to a row with edges")
        if self.baseline is not None and self.baseline not in BASELINES:
            raise ValueError(f"there is no baseline {self.baseline}; choose among {', '.join(BASELINES)}")
        if self.baseline is not None and self.overlap is not None:
            raise ValueError("a baseline has no windows to overlap")
        return self


class Plan(_Section):
    """What the TOML file holds.

    Attributes:
        preset: of the training, by name or path.
        steps: of every training.
        seed: of every training and of the cases.
        fold: left out of every training.
        anomalies: settings of :class:`AnomalyConfig` for all rows in place of the preset's.
        rows: by name, in the order of the table.
    """

    preset: str
    steps: int = Field(default=1000, gt=0)
    seed: int = 0
    fold: int = Field(default=0, ge=0)
    anomalies: dict[str, Any] = {}
    rows: dict[RowName, Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        for name, row in self.rows.items():
            for part in row.mean_of:
                if part not in self.rows or self.rows[part].edges is None:
                    raise ValueError(f"{name}: {part} is no row with edges, so it has no network to average")
        return self


class RowResult(_Section):
    """The numbers of a row.

    Attributes:
        made_from: digest of all settings and of the names of the scans that decide them.
        unsmoothed_ap: pixel AP of the healthy cases and those of the paper's types without smoothed edges.
        summary: all other numbers.
    """

    made_from: str
    unsmoothed_ap: float | None
    summary: Summary


@dataclass(frozen=True)
class Bench:
    """What all rows are trained and judged on.

    Attributes:
        material: the scans that train.
        judged: normal scans of no subject that trains.
        recipe: the cases to make of them.
        out: folder of the ablation.
        device: where the networks run when they are judged.
    """

    material: Material
    judged: Sequence[Path]
    recipe: Recipe
    out: Path
    device: Device = "auto"


def read_plan(path: Path) -> Plan:
    """Read the TOML file of an ablation.

    Raises:
        UserError: it cannot be read, or a field is wrong; the text names it.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: cannot be read; give the TOML file of an ablation.") from error
    return parse_toml(text, str(path), Plan)


def run_configs(plan: Plan, region: Region) -> dict[str, RunConfig]:
    """The training of each row that has one.

    Raises:
        UserError: there is no such preset for the region, or a row's settings are wrong.
    """
    preset = load_preset(plan.preset, region)
    # the paper's plain mean, whose scores are not weighed by those around them
    place = preset.regions[region].model_copy(update={"smooth_weight": 1.0, "context": 0.0})
    configs = {}
    for name, row in plan.rows.items():
        if row.edges is None:
            continue
        settings = preset.anomalies.model_dump() | plan.anomalies | row.anomalies
        try:
            anomalies = AnomalyConfig.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "anomalies"
            raise UserError(f"row {name}: {field}: {first['msg']}; mend the ablation's file.") from error
        changed = {"name": name, "anomalies": anomalies, "regions": preset.regions | {region: place}}
        own = preset.model_copy(update=changed)
        config = RunConfig(preset=own, region=region, edges=row.edges, fold=plan.fold, seed=plan.seed)
        configs[name] = config.with_optimiser(steps=plan.steps)
    return configs


def run_ablation(
    plan: Plan,
    bench: Bench,
    stop: Stop,
    report: Callable[[str], None],
    done: Callable[[dict[str, RowResult]], None],
) -> None:
    """Train and judge the rows that have no numbers yet; those that share networks in one pass.

    Args:
        plan: the rows.
        bench: what they are trained and judged on.
        stop: asked before each step and each case whether to leave off.
        report: is told one line a training and a case.
        done: is given the results so far whenever there are more, in the order of the plan.

    Raises:
        UserError: something does not fit, or numbers there were made from other settings or scans.
        StoppedError: it was asked to leave off.
    """
    configs = run_configs(plan, bench.recipe.region)
    files = {name: bench.out / "rows" / f"{name}.json" for name in plan.rows}
    made_from = {
        name: _digest(plan, row, [configs[part] for part in _networks(name, row)], bench)
        for name, row in plan.rows.items()
    }
    results = {name: _read_result(path, made_from[name]) for name, path in files.items() if path.exists()}
    if results:
        done(results)
    for names in _passes(plan, [name for name in plan.rows if name not in results]):
        rows = {name: plan.rows[name] for name in names}
        score = _scorer(rows, configs, plan, bench, stop, report)
        for name, (unsmoothed, summary) in _judge(names, score, bench, stop, report).items():
            results[name] = RowResult(made_from=made_from[name], unsmoothed_ap=unsmoothed, summary=summary)
            _write_result(files[name], results[name])
        done({name: results[name] for name in plan.rows if name in results})


def _passes(plan: Plan, names: Sequence[str]) -> list[list[str]]:
    """Rows that are judged in one pass over the cases: those with networks in common, and all baselines."""

    def related(one: str, other: str) -> bool:
        first, second = plan.rows[one], plan.rows[other]
        if first.baseline is not None or second.baseline is not None:
            return first.baseline is not None and second.baseline is not None
        common = set(_networks(one, first)) & set(_networks(other, second))
        return first.overlap == second.overlap and bool(common)

    groups: list[list[str]] = []
    for name in names:
        joined = [group for group in groups if any(related(name, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([other for group in joined for other in group] + [name])
    return groups


def _networks(name: str, row: Row) -> tuple[str, ...]:
    """The rows whose networks make the map of a row."""
    return (name,) if row.edges is not None else row.mean_of


def _digest(plan: Plan, row: Row, configs: Sequence[RunConfig], bench: Bench) -> str:
    recipe = bench.recipe
    content = {
        "networks": [config.model_dump(mode="json") for config in configs],
        "row": row.model_dump(mode="json", exclude={"anomalies"}),
        "cases": [recipe.region, recipe.seed, recipe.counts, recipe.spacing],
        "judged": [path.name for path in bench.judged],
        "trained": sorted(bench.material.split.training(plan.fold)),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _read_result(path: Path, made_from: str) -> RowResult:
    try:
        result = RowResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: cannot be read; remove it, and the row is judged again.") from error
    if result.made_from != made_from:
        raise UserError(f"{path}: made from other settings or scans; give another --out, or remove it.")
    return result


def _write_result(path: Path, result: RowResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = result.model_dump_json(indent=1) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def _judge(
    names: Sequence[str], score: Score, bench: Bench, stop: Stop, report: Callable[[str], None]
) -> dict[str, tuple[float | None, Summary]]:
    def before(case: Case, at: int, of: int) -> None:
        if stop():
            raise StoppedError
        report(f"{', '.join(names)}: {at}/{of} {case.kind} in {case.source}")

    index, judged = judge_cases(bench.judged, bench.recipe, score, before, objects=False)
    return {name: (unsmoothed_ap(own, index), summarise(own, index)) for name, own in judged.items()}


def unsmoothed_ap(judged: Sequence[Judged], index: Index) -> float | None:
    """Pixel AP of the healthy cases and the paper's five types without smoothed edges (paper, table 2).

    None where there are no such anomalies.
    """
    kinds = {case.name: case.kind for case in index.cases if case.family != "unseen"}
    sharp = [one for one in judged if not kinds.get(one.name, SMOOTH).endswith(SMOOTH)]
    if not any(one.anomalous for one in sharp):
        return None
    return average_precision(merge(one.pixels for one in sharp if one.pixels is not None))


def _scorer(
    rows: dict[str, Row],
    configs: dict[str, RunConfig],
    plan: Plan,
    bench: Bench,
    stop: Stop,
    report: Callable[[str], None],
) -> Score:
    """What makes the maps of the rows of one pass, so all baselines, or networks at the same overlap.

    Networks that they need and that are not there are trained.
    """
    region = bench.recipe.region
    baselines = {name: row.baseline for name, row in rows.items() if row.baseline is not None}
    if baselines:
        scans = training_scans(bench.material.paths, bench.material.split, plan.fold)
        fitted = Baselines.fit(scans, region, list(baselines.values()))

        def score_by_baselines(made: Made) -> dict[str, Scored]:
            scored = fitted.score(made)
            return {name: scored[baseline] for name, baseline in baselines.items()}

        return score_by_baselines
    files = {
        part: _train(part, configs[part], bench, stop, report).name
        for part in dict.fromkeys(part for name, row in rows.items() for part in _networks(name, row))
    }
    predictor = Remembering.load(region, bench.out / "weights", bench.device, list(files.values()))
    overlap = next(iter(rows.values())).overlap
    if overlap is not None:
        predictor.place_windows(overlap)
    members = {name: [files[part] for part in _networks(name, row)] for name, row in rows.items()}
    return lambda made: score_rows(made, predictor, members)


def _train(name: str, config: RunConfig, bench: Bench, stop: Stop, report: Callable[[str], None]) -> Path:
    """Train a row's network to the end, or go on with it, and export it; nothing is trained twice."""
    run = bench.out / "runs" / name
    checkpoint = run / CHECKPOINT_NAME
    if not is_finished(run, config):
        report(f"{name}: training")
        if not train(config, bench.material, run, None, stop, Means()).finished:
            raise StoppedError
    return export_member(checkpoint, bench.out / "weights", "ablation", "unknown")
