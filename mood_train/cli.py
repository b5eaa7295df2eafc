"""The commands of the training stage: folds, preview, fit, export."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mood_infer.challenge import Region
from mood_infer.errors import UserError

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="Folder of normal scans, or a JSON list with a 'training' key.")]
RegionOption = Annotated[Region, typer.Option(help="Body region; decides intensity rule and grid.")]
Preset = Annotated[str, typer.Option(help="Name of a shipped preset, or a TOML file.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for prepared scans; by default OUT/cache.")]
Split = Annotated[
    Path | None, typer.Option(help="Split file; by default OUT/split.json, made from the seed.")
]


@app.command()
def folds(
    data: Data,
    out: Annotated[Path, typer.Option(help="Split file to write.")],
    region: RegionOption = Region.BRAIN,
    seed: Seed = 0,
) -> None:
    """Set aside a fifth of the subjects and deal the others to five folds."""
    from mood_train.data import list_scans
    from mood_train.folds import make_split, write_split

    split = make_split((path.name for path in list_scans(data)), seed)
    write_split(out, region, split)
    typer.echo(f"{out}: {len(split.set_aside)} set aside, folds of {[len(fold) for fold in split.folds]}")


@app.command()
def preview(
    data: Data,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    region: RegionOption = Region.BRAIN,
    preset: Preset = "compact",
    edges: Annotated[str, typer.Option(help="hard or smooth.")] = "smooth",
    count: Annotated[int, typer.Option(min=1, help="Samples to draw.")] = 10,
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Draw a sheet of synthetic anomalies."""
    from mood_train.anomalies.generator import AnomalyGenerator
    from mood_train.config import RunConfig, load_preset
    from mood_train.data import list_scans, load_scans
    from mood_train.preview import draw_preview

    config = RunConfig(preset=load_preset(preset), region=region, edges=_edges(edges), fold=None, seed=seed)
    scans = load_scans(list_scans(data), config.place, cache or out.parent / "cache")
    draw_preview(AnomalyGenerator(scans, config), count, out)
    typer.echo(str(out))


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    region: RegionOption = Region.BRAIN,
    preset: Preset = "compact",
    fold: Annotated[int, typer.Option(min=-1, help="Fold left out, 0-4; -1 trains on all five.")] = 0,
    edges: Annotated[str, typer.Option(help="hard or smooth.")] = "hard",
    split: Split = None,
    start_from: Annotated[Path | None, typer.Option(help="Checkpoint for the first weights.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of the preset's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End the schedule after this time.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="In place of the preset's.")] = None,
    max_lr: Annotated[float | None, typer.Option(help="In place of the preset's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="no, bf16, fp16; by default what the device has.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make samples.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; by default all.")] = None,
    seed: Seed = 0,
    cache: Cache = None,
    weights: Annotated[Path | None, typer.Option(help="Export there at the end.")] = None,
    data_name: Annotated[str, typer.Option(help="For the manifest.")] = "unnamed",
    licence: Annotated[str, typer.Option(help="Of the data, for the manifest.")] = "unknown",
) -> None:
    """Train one member. The same command starts, resumes, and (under torchrun) uses many devices.

    Ends with 0 when the schedule is done, 75 when it was stopped by a signal and can be resumed.
    """
    import torch

    from mood_train.checkpoint import check_same_kind, read_checkpoint
    from mood_train.config import RunConfig, load_preset
    from mood_train.data import list_scans, load_scans
    from mood_train.export import export_member, trained_state
    from mood_train.folds import make_split, read_split, write_split
    from mood_train.trainer import Trainer

    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    recipe = load_preset(preset)
    given = {"steps": steps, "batch": batch, "max_lr": max_lr}
    optimiser = recipe.optimiser.model_copy(update={name: value for name, value in given.items() if value})
    config = RunConfig(
        preset=recipe.model_copy(update={"optimiser": optimiser}),
        region=region,
        edges=_edges(edges),
        fold=None if fold < 0 else fold,
        seed=seed,
        max_minutes=max_minutes,
        started_from=f"{start_from.parent.name}/{start_from.name}" if start_from else None,
    )
    paths = list_scans(data)
    split_file = split or out / "split.json"
    if not split_file.exists() and split is None:
        write_split(split_file, region, make_split((path.name for path in paths), seed))
    parts = read_split(split_file, region)
    places = cache or out / "cache"
    scans = load_scans(_named(paths, parts.training(config.fold), split_file), config.place, places)
    watched = [path for path in paths if path.name in parts.held_out(config.fold)]
    held_out = load_scans(watched, config.place, places)
    trainer = Trainer(config, scans, held_out, out, workers, precision)
    if start_from:
        base = read_checkpoint(start_from)
        check_same_kind(start_from, base, config)
        minutes = base.minutes_before + base.seconds / 60
        trainer.start_from(trained_state(base), base.steps_before + base.step, minutes)
    result = trainer.fit(_stop_on_signal())
    typer.echo(f"{out}: step {result.step}{'' if result.finished else ' (stopped)'}")
    if result.held_out_ap is not None:
        typer.echo(f"AP on synthetic anomalies in the fold left out: {result.held_out_ap:.3f}")
    if not result.finished:
        raise typer.Exit(75)
    if weights:
        typer.echo(str(export_member(out / "checkpoint.pt", weights, data_name, licence)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint.")],
    weights: Annotated[Path, typer.Option(help="Folder with a folder a region.")],
    data_name: Annotated[str, typer.Option(help="Name of the training data.")],
    licence: Annotated[str, typer.Option(help="Of the training data.")],
) -> None:
    """Turn a checkpoint into safetensors and its manifest entry."""
    from mood_train.export import export_member

    checkpoint = run / "checkpoint.pt" if run.is_dir() else run
    typer.echo(str(export_member(checkpoint, weights, data_name, licence)))


def _edges(name: str) -> Any:
    if name not in ("hard", "smooth"):
        raise UserError(f"--edges {name}: give hard or smooth.")
    return name


def _named(paths: list[Path], names: set[str], split_file: Path) -> list[Path]:
    chosen = [path for path in paths if path.name in names]
    if not chosen:
        raise UserError(f"{split_file}: names none of the scans; make a split with mood-train folds.")
    return chosen


def _stop_on_signal() -> Any:
    """A function that says whether SIGTERM or SIGINT has come; the step in progress is finished first."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received_number, _frame: received.append(received_number))
    return lambda: bool(received)


def main() -> None:
    """Entry point: errors a user can mend become one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"mood-train: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
