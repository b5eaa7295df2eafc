"""The command line: ``mood-infer predict`` and ``mood-infer weights``.

Exit codes: 0 all scans are done; 1 some failed; 2 the command cannot be run as given; 3 the weights were
refused; 130 and 143 ended by SIGINT and SIGTERM, with no half-written file left.

What needs torch is imported inside the commands: ``--help`` and usage errors answer at once.
"""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mood_infer import __version__
from mood_infer.challenge import Mode, Region, find_misnamed, find_scans, prepare_output
from mood_infer.errors import UserError, WeightsError

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_WEIGHTS = 1, 2, 3

EPILOG = (
    "Exit codes: 0 all scans are done, 1 some failed, 2 the command cannot be run as given, "
    "3 the weights were refused, 130 and 143 ended by a signal."
)

app = typer.Typer(
    name="mood-infer",
    help=__doc__.splitlines()[0] if __doc__ else None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class DeviceName(StrEnum):
    """Where the networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class SpeedName(StrEnum):
    """Whether the members run, or their averages."""

    EXACT = "exact"
    FAST = "fast"


def main() -> NoReturn:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    console = _console()
    try:
        app()
    except WeightsError as error:
        console.print(str(error))
        sys.exit(EXIT_WEIGHTS)
    except UserError as error:
        console.print(str(error))
        sys.exit(EXIT_USAGE)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Find what does not belong in a 3D scan."""
    if version:
        typer.echo(f"mood-infer {__version__}")
        raise typer.Exit


@app.command(epilog=EPILOG)
def predict(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A scan (.nii, .nii.gz) or a folder of scans.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder for the results; made if missing.")
    ],
    region: Annotated[Region, typer.Option(help="What the scans show.")],
    mode: Annotated[Mode, typer.Option(help="A map of scores, one score, or both, for each scan.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Weights other than the package's own or /weights.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo results that are whole and of the same weights.")
    ] = False,
    device: Annotated[DeviceName, typer.Option(help="Where the networks run.")] = DeviceName.AUTO,
    speed: Annotated[
        SpeedName,
        typer.Option(help="exact: every network. fast: one for all with the same edges and like weights."),
    ] = SpeedName.EXACT,
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="For each scan, until the mean map is there: use as many networks as there is time for.",
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="GB", help="One scan at a time, none that takes more; on a GPU, its memory too."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write run.json here, and draw the scans done now if matplotlib is there.",
        ),
    ] = None,
) -> None:
    """Score scans: for each one a map (pixel), a text file with one number (sample), or both.

    One bad file never stops the rest. What is already there, whole and of the same weights, is not redone.
    Under torchrun the processes of one machine share the scans; each prints those it did.
    """
    console = _console()
    scans = find_scans(source)
    prepare_output(scans, output, mode)
    for path in find_misnamed(source):
        console.print(f"{path.name}: not taken for a scan; let its name end in .nii or .nii.gz.")
    if not scans:
        console.print(f"{source}: no .nii or .nii.gz file in it; nothing to do.")
        return

    import torch

    from mood_infer.job import Job, State, sole_run
    from mood_infer.memory import GB, limit_gpu
    from mood_infer.predictor import Predictor
    from mood_infer.progress import Log
    from mood_infer.ranks import join
    from mood_infer.report import Report, why_no_pictures

    if threads is not None:
        torch.set_num_threads(threads)
    share = join(with_gpu=device is not DeviceName.CPU)
    predictor = Predictor.load(region, weights, device.value, speed=speed.value, time_limit=time_limit)
    limit = None if max_memory is None else max_memory * GB
    if limit is not None and predictor.device == "cuda":
        limit_gpu(limit)
    pages = None
    if report is not None:
        settings = {"input": source, "output": output, "region": region, "mode": mode, "overwrite": overwrite}
        settings |= {"speed": speed, "time_limit": time_limit, "max_memory": max_memory}
        texts = {name: str(value) for name, value in settings.items()}
        if problem := why_no_pictures():
            console.print(f"warning: no pictures are drawn: {problem}")
        pages = Report(report, texts, share.record_name, draws=problem is None).open()
    job = Job(predictor, mode, output, overwrite, pages, limit)
    with sole_run(output, share):
        if share.alone:  # so that a log is not empty until the first scan is done
            networks = len(predictor.manifest.members)
            console.print(f"scans: {len(scans)}, networks: {networks}, on: {predictor.device}")
        with Log(console, bar=share.alone) as log:
            outcomes = job.run(scans, log, share)
        counts = {state: sum(outcome.state is state for outcome in outcomes) for state in State}
        console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
        unrecorded: UserError | None = None
        if pages is not None:
            try:
                pages.record(predictor, scans, outcomes)
            except UserError as error:  # of many processes, one that ends with an error ends the others
                unrecorded = error
    if unrecorded is not None:
        raise unrecorded
    if counts[State.FAILED]:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command("weights", epilog=EPILOG)
def list_weights(
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Weights other than the package's own or /weights.")
    ] = None,
) -> None:
    """List the networks and verify their checksums: of both regions, or of those that DIR has."""
    from rich.table import Column, Table

    from mood_infer.weights import find_weights, has_manifest, read_manifest, verify_member

    console = Console()
    refused = 0
    folders = {find_weights(region, weights): region for region in Region}
    there = {
        folder: region
        for folder, region in folders.items()
        if weights is None or has_manifest(folder) or (weights / region).is_dir()
    }
    for folder, region in (there or folders).items():
        try:
            manifest = read_manifest(folder, None if folder == weights else region)
        except WeightsError as error:
            console.print(str(error), soft_wrap=True, highlight=False, markup=False)
            refused += 1
            continue
        title = f"{manifest.region}: {manifest.digest()}"
        name = Column("member", overflow="fold")
        table = Table(name, "fold", "edges", "steps", "size", "sha256", title=title)
        for member in manifest.members:
            path = folder / member.file
            problem = verify_member(folder, member)
            size = f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "-"
            table.add_row(path.stem, str(member.fold), member.edges, str(member.steps), size, problem or "ok")
            refused += problem is not None
        console.print(table)
    if refused:
        raise typer.Exit(EXIT_WEIGHTS)


def _console() -> Console:
    # one line stays one line when it is not a terminal, and file names are not markup
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def _on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    for either in (signal.SIGTERM, signal.SIGINT):
        signal.signal(either, signal.SIG_IGN)  # a second one must not cut the clean-up short
    raise SystemExit(128 + number)  # unwinds: half-written files are removed on the way
