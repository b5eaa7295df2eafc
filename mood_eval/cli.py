"""The command line of ``mood-eval``: make-set, score, members, normal-scores, baselines,
sample-rules, ablation, rank.

Exit codes: 0 done, 2 the command cannot be run as given, 75 stopped by a signal and can be resumed.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from mood_eval.split import judge_scans, training_scans
from mood_eval.validation_set import (
    HEALTHY,
    INDEX_NAME,
    PAPER_EACH,
    PAPER_HEALTHY,
    Case,
    Recipe,
    default_counts,
    make_set,
    one_each,
    read_index,
)
from mood_infer.challenge import Region, find_scans
from mood_infer.cli import SpeedName
from mood_infer.errors import UserError
from mood_train.folds import read_split

if TYPE_CHECKING:
    from mood_eval.table import ScoreTable
    from mood_infer.predictor import AnomalyMap

EXIT_USAGE = 2
EXIT_STOPPED = 75
INSTALL = "scripts/setup.sh train,eval"

app = typer.Typer(
    name="mood-eval",
    help="Say how good anomaly maps are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class FamilyName(StrEnum):
    """Which anomalies a set gets."""

    SEEN = "seen"
    UNSEEN = "unseen"
    BOTH = "both"


class PartName(StrEnum):
    """Part of the split file that may be judged on."""

    SET_ASIDE = "set_aside"


class DeviceName(StrEnum):
    """Where the networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class JudgedPart(StrEnum):
    """What an ablation is judged on."""

    SET_ASIDE = "set_aside"
    HELD_OUT = "held_out"


HeldOutScans = Annotated[
    Path, typer.Argument(metavar="SCANS", help="Folder of normal scans, held out of training.")
]
AllScans = Annotated[
    Path, typer.Argument(metavar="SCANS", help="Folder of normal scans, those of training among them.")
]
RegionOption = Annotated[Region, typer.Option(help="What the scans show.")]
SeedOption = Annotated[int, typer.Option(help="Of all randomness; the same seed makes the same cases.")]
SplitOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The split file of training; scans of its folds are refused."),
]
PartOption = Annotated[
    PartName | None, typer.Option(help="Take only this part of the split; all by default.")
]
FamilyOption = Annotated[FamilyName, typer.Option(help="The paper's anomalies, the unseen family, or both.")]
KeepOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep what each case gave: the same command goes on after a stop, and several share the scans.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here.")]
MarkdownOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table here.")]
EachOption = Annotated[int | None, typer.Option(min=1, help="Cases of each type; one a scan by default.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where the networks run.")]
WeightsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Weights other than the package's own or /weights.")
]

SpacingOption = Annotated[
    float | None,
    typer.Option(
        min=0.1, metavar="MM", help="Resample scans to this isotropic grid first; own grids by default."
    ),
]


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        app()
    except UserError as error:
        _console().print(str(error))
        sys.exit(EXIT_USAGE)
    except ModuleNotFoundError as error:
        _console().print(f"{error.name} is missing; install it: {INSTALL}.")
        sys.exit(EXIT_USAGE)
    sys.exit(0)


@app.command("make-set")
def make_set_command(
    scans: HeldOutScans,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the set; made if missing.")],
    region: RegionOption,
    seed: SeedOption = 0,
    healthy: Annotated[int, typer.Option(min=0, help="Healthy cases.")] = PAPER_HEALTHY,
    each: Annotated[int, typer.Option(min=0, help="Cases of each type.")] = PAPER_EACH,
    counts: Annotated[
        list[str] | None, typer.Option(metavar="TYPE=N", help="Cases of one type; may be repeated.")
    ] = None,
    family: FamilyOption = FamilyName.SEEN,
    split: SplitOption = None,
    part: PartOption = None,
    spacing: SpacingOption = None,
    repeat_healthy: Annotated[
        bool, typer.Option("--repeat-healthy", help="Let a scan serve as several healthy cases.")
    ] = False,
) -> None:
    """Make a validation set from normal scans; by default of the paper's size: 50 healthy, 30 a type."""
    recipe = Recipe(region, seed, _counts(region, family, healthy, each, counts), spacing, repeat_healthy)
    index = make_set(_scans(scans, region, split, part), out, recipe)
    console = _console()
    console.print(f"{len(index.cases)} cases in {out / region}")
    if repeat_healthy:
        console.print("healthy scans may occur more than once in it.")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Folder of maps and sample scores.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Folder with pixel and sample labels.")],
    index: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The set's index.json: adds types, sizes and families."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The scans, for pictures; `toy` beside LABELS by default."),
    ] = None,
    json_file: JsonOption = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page here.")] = None,
    objects: Annotated[bool, typer.Option(help="Also judge objects; takes seconds a case.")] = True,
    runs: Annotated[int, typer.Option(min=1, help="Bootstrapped lists.")] = 1000,
    list_size: Annotated[
        int | None,
        typer.Option(min=1, help="Cases a list, drawn without return; all with return by default."),
    ] = None,
) -> None:
    """Score predictions as the challenge does; what it had to take as zeros is said."""
    from mood_eval.page import Sources, render_page, table_rows
    from mood_eval.scoring import find_predictions
    from mood_eval.scoring import score as score_folder

    known = read_index(index) if index is not None else None
    summary, judged = score_folder(predictions, labels, known, objects, runs, list_size)
    table = Table(show_header=False)
    for row in table_rows(summary):
        table.add_row(*row)
    console = _console()
    for warning in summary.warnings:
        console.print(f"warning: {warning}")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(summary.model_dump_json(indent=1) + "\n")
    if page is not None:
        toy = images if images is not None else labels.resolve().parent / "toy"
        sources = Sources(find_predictions(predictions), labels, toy if toy.is_dir() else None)
        page.write_text(render_page(f"{predictions.name} on {labels}", summary, judged, sources, known))


@app.command()
def members(
    scans: HeldOutScans,
    region: RegionOption,
    split: SplitOption = None,
    part: PartOption = None,
    seed: SeedOption = 0,
    family: FamilyOption = FamilyName.SEEN,
    weights: WeightsOption = None,
    device: DeviceOption = DeviceName.AUTO,
    each: EachOption = None,
    spacing: SpacingOption = None,
    keep: KeepOption = None,
    speed: Annotated[
        SpeedName, typer.Option(help="exact: every network. fast: those of mood-infer's --speed fast.")
    ] = SpeedName.EXACT,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
) -> None:
    """Score each network alone and the whole ensemble: one healthy case a scan, and one of each type."""
    from mood_eval.members import evaluate_members

    chosen = _scans(scans, region, split, part)
    recipe = one_each(region, seed, family.value, len(chosen), each, spacing)
    table = evaluate_members(chosen, recipe, weights, device.value, _say_case, keep, speed.value)
    _write_scores(table, json_file, markdown)


@app.command("normal-scores")
def normal_scores(
    scans: HeldOutScans,
    region: RegionOption,
    split: SplitOption = None,
    part: PartOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = DeviceName.AUTO,
) -> None:
    """Score normal scans and store their sample scores with the weights, to compare new ones with."""
    from mood_eval.normal import store_normal_scores

    def say(scan: Path, found: "AnomalyMap") -> None:
        typer.echo("; ".join([f"{scan.name}: {found.sample_score:.4f}", *found.warnings]))

    chosen = _scans(scans, region, split, part)
    found = store_normal_scores(chosen, region, weights, device.value, say)
    typer.echo(f"{len(found)} normal scans score {found[0]:.4f} to {found[-1]:.4f}; stored in the manifest")


@app.command()
def baselines(
    scans: AllScans,
    region: RegionOption,
    split: Annotated[
        Path, typer.Option(metavar="FILE", help="The split file of training; its folds are fitted on.")
    ],
    part: PartOption = PartName.SET_ASIDE,
    seed: SeedOption = 0,
    family: FamilyOption = FamilyName.SEEN,
    each: EachOption = None,
    spacing: SpacingOption = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
) -> None:
    """Score the baselines that learn nothing but averages, on the very cases of ``members``."""
    from mood_eval.baselines import Baselines
    from mood_eval.summary import summarise
    from mood_eval.table import ScoreTable, judge_cases

    chosen = _scans(scans, region, split, part)
    recipe = one_each(region, seed, family.value, len(chosen), each, spacing)
    fitted = Baselines.fit(training_scans(find_scans(scans), read_split(split, region)), region)
    index, judged = judge_cases(chosen, recipe, fitted.score, _say_case)
    rows = {name: summarise(one, index) for name, one in judged.items()}
    _write_scores(ScoreTable(index=index, rows=rows), json_file, markdown)


@app.command("sample-rules")
def sample_rules(
    scans: AllScans,
    region: RegionOption,
    split: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The split file of training; a baseline learns its folds."),
    ],
    part: PartOption = PartName.SET_ASIDE,
    seed: SeedOption = 0,
    family: FamilyOption = FamilyName.SEEN,
    each: EachOption = None,
    spacing: SpacingOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = DeviceName.AUTO,
    json_file: JsonOption = None,
) -> None:
    """Compare ways to make one score of a map, on the very cases of ``members``."""
    from mood_eval.baselines import Baselines
    from mood_eval.members import Remembering
    from mood_eval.sample_rules import HISTOGRAM, compare_rules

    chosen = _scans(scans, region, split, part)
    recipe = one_each(region, seed, family.value, len(chosen), each, spacing)
    fitted = Baselines.fit(training_scans(find_scans(scans), read_split(split, region)), region, [HISTOGRAM])
    predictor = Remembering.load(region, weights, device.value)
    table = compare_rules(chosen, recipe, predictor, fitted, _say_case)
    typer.echo(table.markdown())
    if json_file is not None:
        json_file.write_text(table.model_dump_json(indent=1) + "\n")


@app.command()
def ablation(
    config: Annotated[Path, typer.Option(metavar="FILE", help="TOML file with the rows.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of normal scans, to train and judge on.")],
    region: RegionOption,
    split: Annotated[Path, typer.Option(metavar="FILE", help="The split file.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the ablation; what is done there stays.")
    ],
    part: Annotated[
        JudgedPart, typer.Option(help="Judge on the part set aside, or on the fold that training left out.")
    ] = JudgedPart.SET_ASIDE,
    family: FamilyOption = FamilyName.BOTH,
    each: EachOption = None,
    seed: Annotated[int | None, typer.Option(help="Of trainings and cases, in place of the file's.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Prepared scans; by default OUT/cache.")
    ] = None,
    device: DeviceOption = DeviceName.AUTO,
) -> None:
    """Train networks that differ in one thing, and judge them on the same cases.

    Writes OUT/ablation.md and OUT/ablation.png, and OUT/rows/ROW.json. The same command goes on where it was
    cut off; it ends with 75 when it was stopped by a signal.
    """
    import torch

    from mood_eval.ablation import Bench, RowResult, StoppedError, read_plan, run_ablation
    from mood_eval.ablation_report import draw_figure, render_table
    from mood_train.run import Material, stop_on_signal

    torch.set_num_threads(threads)
    plan = read_plan(config)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    if not split.exists():
        raise UserError(f"{split}: there is no such split file; make one with mood-train folds.")
    material = Material.find(data, split, region, plan.seed, cache or out / "cache")
    chosen = judge_scans(material.paths, material.split, part.value, plan.fold)
    recipe = one_each(region, plan.seed, family.value, len(chosen), each)
    out.mkdir(parents=True, exist_ok=True)

    def write(results: dict[str, RowResult]) -> None:
        (out / "ablation.md").write_text(render_table(results))
        draw_figure(results).savefig(out / "ablation.png", dpi=110)

    bench = Bench(material, chosen, recipe, out, device.value)
    try:
        run_ablation(plan, bench, stop_on_signal(), _console().print, write)
    except StoppedError as stopped:
        raise typer.Exit(EXIT_STOPPED) from stopped
    typer.echo((out / "ablation.md").read_text())


@app.command()
def rank(
    methods: Annotated[
        list[Path],
        typer.Argument(metavar="METHOD...", help="Folders with the maps of each region in a subfolder."),
    ],
    sets: Annotated[Path, typer.Option("--set", metavar="DIR", help="Folder that make-set filled.")],
    runs: Annotated[int, typer.Option(min=1, help="Bootstrapped lists.")] = 1000,
    list_size: Annotated[int | None, typer.Option(min=1, help="Cases a list, drawn without return.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Rank methods as the challenge does: by mean AP over lists in each region, then over the regions."""
    from mood_eval.ranking import rank as rank_methods
    from mood_eval.scoring import score as score_folder

    console = _console()
    scores: dict[str, dict[str, float]] = {}
    if len({method.name for method in methods}) < len(methods):
        raise UserError("two METHOD folders have one name, which is the method's in the table; rename one.")
    for region in Region:
        folder = sets / region
        if not (folder / INDEX_NAME).is_file():
            continue
        index = read_index(folder / INDEX_NAME)
        for method in methods:
            summary, _ = score_folder(
                method / region, folder / "toy_label", index, objects=False, runs=runs, list_size=list_size
            )
            for warning in summary.warnings:
                console.print(f"warning: {method.name}: {warning}")
            spread = summary.pixel_interval
            scores.setdefault(method.name, {})[region] = spread.mean if spread else 0.0
    if not scores:
        raise UserError(f"{sets}: no set there; give the folder that make-set filled.")
    standings = rank_methods(scores)
    table = Table("place", "method", *(f"{region} AP (rank)" for region in standings[0].ranks), "mean rank")
    for standing in standings:
        cells = [f"{scores[standing.method][r]:.3f} ({n})" for r, n in standing.ranks.items()]
        table.add_row(str(standing.place), standing.method, *cells, f"{standing.mean_rank:.1f}")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([vars(standing) for standing in standings], indent=1) + "\n")


def _scans(folder: Path, region: Region, split: Path | None, part: PartName | None) -> list[Path]:
    scans = find_scans(folder)
    if split is not None:
        return judge_scans(scans, read_split(split, region), part.value if part else None)
    if part is not None:
        raise UserError("--part needs --split: give the split file of training.")
    return scans


def _say_case(case: Case, at: int, of: int) -> None:
    _console().print(f"{at}/{of} {case.kind} in {case.source}")


def _write_scores(table: "ScoreTable", json_file: Path | None, markdown: Path | None) -> None:
    typer.echo(table.markdown())
    if markdown is not None:
        markdown.write_text(table.markdown())
    if json_file is not None:
        json_file.write_text(table.model_dump_json(indent=1) + "\n")


def _counts(
    region: Region, family: FamilyName, healthy: int, each: int, changes: list[str] | None
) -> dict[str, int]:
    counts = default_counts(region, family.value, healthy, each)
    for change in changes or []:
        kind, _, number = change.partition("=")
        if kind not in counts or not number.isdigit():
            known = ", ".join(name for name in counts if name != HEALTHY)
            raise UserError(f"--counts {change}: give TYPE=N with one of {HEALTHY}, {known}.")
        counts[kind] = int(number)
    return counts


def _console() -> Console:
    # one line stays one line when it is not a terminal, and file names are not markup
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
