"""Times the way from a scan to its map: the peer (MONAI), us by stage, and the pure forward passes.

``scripts/bench.sh [--quick] [--sizes SIZE ...] [--members N ...] [--preset NAME] [--runs N] [--json FILE]``

Without sizes, members and preset it times what the README's table has, half an hour a run in bfloat16, an
hour and a half in float32. Prints a Markdown table of medians. "peer" and "end to end" are processes of their
own, start of Python included, and their peak is of resident memory; the stages and the floor are timed inside
one process, and the windows' peak is a GPU's, where there is one. Below it, the average precision of 100
million voxels: scikit-learn is the peer, seconds are of one core, and the peak is what a process took beyond
the two arrays.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from cases import ROOT, Case, Size, choose_cases, correlation, make_scan, make_weights

from mood_infer.predictor import format_name, reduced_precision
from mood_infer.weights import read_manifest

Result = TypeVar("Result")

HERE = Path(__file__).parent
PAIR = 2  # networks, a hard and a smooth one, of which --speed fast saves none
COUNTED = 100_000_000  # voxels of the average precision
AS_TORCH = {"THP_MEM_ALLOC_ENABLE": "0"}  # its default, which importing mood_infer changes


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds and peak are medians, ratios of seconds; None where there is no such."""

    name: str
    seconds: float
    ratio_to_peer: float | None
    ratio_to_floor: float | None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Ended:
    """What a process took: wall seconds and peak resident MB, and what it printed."""

    seconds: float
    peak_mb: float
    printed: str


def run(*command: object, settings: dict[str, str] | None = None) -> Ended:
    """Run Python with arguments, and settings of the environment, to its end.

    Its peak is at least that of this process, whose large arrays are therefore made by :func:`apart`.
    """
    environment = os.environ | (settings or {})
    words = [sys.executable, *map(str, command)]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=printed, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        for stream in (printed, errors):
            stream.seek(0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"{' '.join(words)} ended with {code}:\n{errors.read()}")
        return Ended(seconds, usage.ru_maxrss / 1024, printed.read())


def apart(work: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process of its own, so that this one stays small."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def bench(folder: Path, case: Case, runs: int) -> tuple[list[Row], float | None]:
    """The rows of one case, and how the peer's map and ours correlate."""
    size, members, preset = case.size, case.members, case.preset
    scan, weights = folder / "scan.nii.gz", folder / "weights" / size.region
    apart(make_scan, scan, size)
    make_weights(folder / "weights", size.region, members, preset)
    theirs, ours = folder / "peer", folder / "ours"
    options = ["--region", size.region, "--mode", "pixel", "--weights", weights, "--overwrite"]
    peer, whole, fast, start = [], [], [], []
    for _ in range(runs):  # in turns, so that a busy moment does not hit one of them alone
        if case.with_peer:
            peer.append(run(HERE / "peer.py", scan, theirs, weights, settings=AS_TORCH))
        whole.append(run("-m", "mood_infer", "predict", scan, ours, *options))
        if members > PAIR and preset == "compact":  # random ones are not alike: none would be saved either
            fast.append(
                run("-m", "mood_infer", "predict", scan, folder / "fast", *options, "--speed", "fast")
            )
        start.append(run("-c", "import mood_infer.predictor"))
    inside = json.loads(run(HERE / "stages.py", scan, folder / "stages", weights, runs).printed)
    base, floor = statistics.median(end.seconds for end in peer) if peer else None, inside.pop("floor")
    gpu = {"windows": inside.pop("gpu_mb", None)}
    name = f"{size}, {members} {read_manifest(weights).members[0].preset}"

    def row(what: str, seconds: float, peak: float | None = None) -> Row:
        return Row(f"{name}: {what}", seconds, base and seconds / base, seconds / floor, peak)

    def ended(what: str, ends: Sequence[Ended]) -> Row:
        seconds, peak = (
            statistics.median(getattr(end, key) for end in ends) for key in ("seconds", "peak_mb")
        )
        return row(what, seconds, peak)

    processes = {"peer": peer, "end to end": whole, "end to end, --speed fast": fast, "start": start}
    rows = [ended(what, ends) for what, ends in processes.items() if ends]
    rows += [row(stage, seconds, gpu.get(stage)) for stage, seconds in inside.items()]
    rows.append(row("floor", floor))
    if not case.with_peer:
        return rows, None
    return rows, apart(correlation, theirs / scan.name, ours / scan.name)


def bench_average_precision(voxels: int, runs: int) -> list[Row]:
    """The rows of the pixel average precision; refuses to time two ways that disagree."""
    command = (HERE / "average_precision.py", "--voxels", voxels)
    peer, ours = [], []
    for _ in range(runs):
        peer.append(json.loads(run(*command, "--scikit-learn").printed))
        ours.append(json.loads(run(*command).printed))
    if abs(peer[0]["value"] - ours[0]["value"]) > 1e-12:
        raise SystemExit(f"average precision: {ours[0]['value']}, scikit-learn has {peer[0]['value']}")
    base = statistics.median(one["seconds"] for one in peer)
    rows = []
    for what, taken in ("scikit-learn", peer), ("ours", ours):
        seconds, peak = (statistics.median(one[key] for one in taken) for key in ("seconds", "peak_mb"))
        rows.append(Row(f"average precision: {what}", seconds, seconds / base, None, peak))
    return rows


def table(rows: list[Row], voxels: int) -> str:
    """Markdown lines."""
    lines = []
    for row in rows:
        ratios = " | ".join("" if r is None else f"{r:.3f}" for r in (row.ratio_to_peer, row.ratio_to_floor))
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        rate = voxels / row.seconds / 1e6
        lines.append(f"| {row.name} | {row.seconds:.2f} | {ratios} | {peak} | {rate:.3g} |")
    return "\n".join(lines)


def write(rows: list[Row], path: Path | None) -> None:
    """Write what has been timed so far, where asked."""
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def processor() -> str:
    """The name of what computes, and the number format of the convolutions on it."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {format_name(reduced_precision(torch.device('cuda')))}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    kind = format_name(reduced_precision(torch.device("cpu")))
    return f"{names[0] if names else platform.machine()}, {kind}"


def main() -> None:
    """Time all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, 1 and 2 members, once")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=Size.parse,
        help="a CT where a spacing is given, else a brain",
    )
    parser.add_argument("--members", nargs="+", type=int)
    parser.add_argument("--preset", choices=("compact", "reference"), help="compact, unless told")
    parser.add_argument("--runs", type=int)
    parser.add_argument(
        "--peer-members",
        type=int,
        default=sys.maxsize,
        help="time the peer, which takes longest, with no more than these",
    )
    parser.add_argument(
        "--voxels", type=int, default=COUNTED, help="of the average precision; 0 leaves it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    cases = choose_cases(options.quick, options.sizes, options.members, options.preset, options.peer_members)
    runs = options.runs or (1 if options.quick else 3)
    print(f"{processor()}, {os.cpu_count()} CPU cores, {runs} runs\n")
    print("| what was timed | seconds | of the peer | of the floor | peak MB | M voxels/s |")
    print("|---|---|---|---|---|---|", flush=True)
    rows: list[Row] = []
    agreements: dict[str, float] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            made, agreement = bench(Path(folder), case, runs)
        print(table(made, int(np.prod(case.size.shape))), flush=True)
        if agreement is not None:
            agreements[made[0].name.rpartition(": ")[0]] = agreement
        rows += made
        write(rows, options.json)
    if options.voxels:
        counted = bench_average_precision(options.voxels, runs)
        print(table(counted, options.voxels))
        write(rows + counted, options.json)
    for name, value in agreements.items():
        print(f"\nCorrelation of the peer's map, unrefined, with ours: {name}: {value:.3f}")


if __name__ == "__main__":
    main()
