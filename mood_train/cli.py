"""The commands of the training stage: folds, preview, fit, ensemble, export."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mood_infer.challenge import Region
from mood_infer.errors import UserError

if TYPE_CHECKING:
    from mood_train.run import Material

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="Folder of normal scans, or a JSON list with a 'training' key.")]
RegionOption = Annotated[Region, typer.Option(help="Body region; decides intensity rule and grid.")]
PresetName = Annotated[str, typer.Option(help="Name of a shipped preset, or a TOML file.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for prepared scans; by default OUT/cache.")]
Split = Annotated[
    Path | None, typer.Option(help="Split file; by default OUT/split.json, made from the seed.")
]
StartFrom = Annotated[Path | None, typer.Option(help="First weights: a checkpoint, or a member.")]
Precision = Annotated[str | None, typer.Option(help="no, bf16, fp16; by default what the device has.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that make samples.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of the CPU; by default all.")]
DataName = Annotated[str, typer.Option(help="Name of the training data, for the manifest.")]
Licence = Annotated[str, typer.Option(help="Of the training data, for the manifest.")]

EXIT_STOPPED, EXIT_USAGE = 75, 2
INSTALL = "scripts/setup.sh train"


@app.command()
def folds(
    data: Data,
    out: Annotated[Path, typer.Option(help="Split file to write.")],
    region: RegionOption = Region.BRAIN,
    seed: Seed = 0,
) -> None:
    """Set aside a fifth of the subjects and deal the others to five folds."""
    from mood_train.data import list_scans
    from mood_train.folds import make_split, subject_of, write_split

    names = [path.name for path in list_scans(data)]
    split = make_split(names, seed)
    write_split(out, region, split)
    subjects = len({subject_of(name) for name in names})
    parts = f"{len(split.set_aside)} set aside, folds of {[len(fold) for fold in split.folds]}"
    typer.echo(f"{out}: {len(names)} scans of {subjects} subjects, {parts}")


@app.command()
def preview(
    data: Data,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    region: RegionOption = Region.BRAIN,
    preset: PresetName = "compact",
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

    config = RunConfig(
        preset=load_preset(preset, region), region=region, edges=_edges(edges), fold=None, seed=seed
    )
    scans = load_scans(list_scans(data), config.place, cache or out.parent / "cache")
    draw_preview(AnomalyGenerator(scans, config), count, out)
    typer.echo(str(out))


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    region: RegionOption = Region.BRAIN,
    preset: PresetName = "compact",
    fold: Annotated[int, typer.Option(min=-1, help="Fold left out, 0-4; -1 trains on all five.")] = 0,
    edges: Annotated[str, typer.Option(help="hard or smooth.")] = "hard",
    split: Split = None,
    start_from: StartFrom = None,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of the preset's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.01, help="End the schedule then.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="In place of the preset's.")] = None,
    max_lr: Annotated[float | None, typer.Option(min=1e-9, help="In place of the preset's.")] = None,
    precision: Precision = None,
    workers: Workers = 0,
    threads: Threads = None,
    seed: Seed = 0,
    cache: Cache = None,
    weights: Annotated[Path | None, typer.Option(help="Export there at the end.")] = None,
    data_name: DataName = "unnamed",
    licence: Licence = "unknown",
) -> None:
    """Train one member. The same command starts, resumes, and (under torchrun) uses many devices.

    Ends with 0 when the schedule is done, 75 when it was stopped by a signal and can be resumed.
    """
    from mood_train.config import RunConfig, load_preset
    from mood_train.export import check_destination, export_member
    from mood_train.run import Means, is_main, stop_on_signal, train
    from mood_train.start import start_name

    _use(threads)
    config = RunConfig(
        preset=load_preset(preset, region),
        region=region,
        edges=_edges(edges),
        fold=None if fold < 0 else fold,
        seed=seed,
        max_minutes=max_minutes,
        started_from=start_name(start_from) if start_from else None,
    )
    given = {"steps": steps, "batch": batch, "max_lr": max_lr}
    config = config.with_optimiser(**{name: value for name, value in given.items() if value})
    material = _material(data, split, out, region, seed, cache)
    if weights:
        check_destination(weights, config)
    result = train(config, material, out, start_from, stop_on_signal(), Means(workers, precision))
    if is_main():
        typer.echo(f"{out}: step {result.step}{'' if result.finished else ' (stopped)'}")
    if result.held_out_ap is not None:
        typer.echo(f"AP on synthetic anomalies in the fold left out of this run: {result.held_out_ap:.3f}")
    if not result.finished:
        raise typer.Exit(EXIT_STOPPED)
    if weights and is_main():
        typer.echo(str(export_member(out / "checkpoint.pt", weights, data_name, licence)))


@app.command()
def ensemble(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder with a folder a run; what is finished there stays.")],
    weights: Annotated[Path, typer.Option(help="Export each member there as it is finished.")],
    region: RegionOption = Region.BRAIN,
    preset: PresetName = "compact",
    split: Split = None,
    start_from: StartFrom = None,
    start_smooth_from: Annotated[
        Path | None,
        typer.Option(help="First weights of the smooth members; with --start-from, in place of the bases."),
    ] = None,
    precision: Precision = None,
    workers: Workers = 0,
    threads: Threads = None,
    seed: Seed = 0,
    cache: Cache = None,
    data_name: DataName = "unnamed",
    licence: Licence = "unknown",
) -> None:
    """Train all ten members of a region, one after another. The same command goes on where it was cut off.

    Ends with 0 when all are done, 75 when it was stopped by a signal and can be resumed.
    """
    from mood_train.config import load_preset
    from mood_train.ensemble import plan_ensemble, train_ensemble
    from mood_train.export import check_destination, export_member
    from mood_train.run import Means, stop_on_signal

    _use(threads)
    material = _material(data, split, out, region, seed, cache)
    first, first_smooth = (path.resolve() if path else None for path in (start_from, start_smooth_from))
    if first_smooth and not first:
        raise UserError("--start-smooth-from: give --start-from as well, for the members with hard edges.")
    jobs = plan_ensemble(
        load_preset(preset, region), region, seed, len(material.split.folds), first, first_smooth
    )
    check_destination(weights, jobs[0].config)
    done = train_ensemble(
        jobs,
        material,
        out,
        lambda checkpoint: export_member(checkpoint, weights, data_name, licence),
        stop_on_signal(),
        Means(workers, precision),
        typer.echo,
    )
    if not done:
        raise typer.Exit(EXIT_STOPPED)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint.")],
    weights: Annotated[Path, typer.Option(help="Folder with a folder a region.")],
    data_name: DataName,
    licence: Licence,
) -> None:
    """Turn a checkpoint into safetensors and its manifest entry."""
    from mood_train.export import export_member

    checkpoint = run / "checkpoint.pt" if run.is_dir() else run
    typer.echo(str(export_member(checkpoint, weights, data_name, licence)))


def _edges(name: str) -> Any:
    if name not in ("hard", "smooth"):
        raise UserError(f"--edges {name}: give hard or smooth.")
    return name


def _use(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _material(
    data: Path, split: Path | None, out: Path, region: Region, seed: int, cache: Path | None
) -> "Material":
    from mood_train.run import Material, is_main

    if split is not None and not split.exists():
        raise UserError(f"{split}: there is no such split file; make one with mood-train folds.")
    material = Material.find(data, split or out / "split.json", region, seed, cache or out / "cache")
    if is_main() and (said := material.mismatch()):
        typer.echo(said, err=True)
    return material


def main() -> None:
    """Entry point: errors a user can mend become one sentence and exit code 2."""
    try:
        _run()
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" in os.environ and isinstance(end.code, int):
            # a thread of torch's that still talks to other ranks may abort a process whose Python ends
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


def _run() -> None:
    try:
        app()
    except UserError as error:
        typer.echo(f"mood-train: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except ModuleNotFoundError as error:
        typer.echo(f"mood-train: {error.name} is missing; install it: {INSTALL}.", err=True)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
