"""Times the way from a scan to its map: the peer (MONAI), us by stage, and the pure forward passes.

``scripts/bench.sh [--quick] [--sizes SIZE ...] [--members N ...] [--preset NAME] [--runs N] [--json FILE]``

Prints a Markdown table of medians. "peer" and "end to end" are processes of their own, start of Python
included, and their peak is of resident memory; the stages and the floor are timed inside one process.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from cases import ROOT, Size, make_scan, make_weights

HERE = Path(__file__).parent
SIZES = ("160x180x150", "256", "512x512x400@0.75")
MEMBERS = (1, 2, 10)


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds and peak are medians, ratios of seconds."""

    name: str
    seconds: float
    ratio_to_peer: float
    ratio_to_floor: float
    peak_mb: float | None = None


@dataclass(frozen=True)
class Ended:
    """What a process took: wall seconds and peak resident MB, and what it printed."""

    seconds: float
    peak_mb: float
    printed: str


def run(*command: object) -> Ended:
    """Run Python with arguments to its end."""
    words = [sys.executable, *map(str, command)]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(words, cwd=ROOT, stdout=printed, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        for stream in (printed, errors):
            stream.seek(0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"{' '.join(words)} ended with {code}:\n{errors.read()}")
        return Ended(seconds, usage.ru_maxrss / 1024, printed.read())


def bench(folder: Path, size: Size, members: int, preset: str, runs: int) -> tuple[list[Row], float]:
    """The rows of one scan and ensemble, and the largest difference between the peer's map and ours."""
    scan, weights = folder / "scan.nii.gz", folder / "weights" / size.region
    make_scan(scan, size)
    make_weights(folder / "weights", size.region, members, preset)
    theirs, ours = folder / "peer", folder / "ours"
    options = ["--region", size.region, "--mode", "pixel", "--weights", weights, "--overwrite"]
    peer, whole = [], []
    for _ in range(runs):  # in turns, so that a busy moment does not hit one of them alone
        peer.append(run(HERE / "peer.py", scan, theirs, weights))
        whole.append(run("-m", "mood_infer", "predict", scan, ours, *options))
    inside = json.loads(run(HERE / "stages.py", scan, folder / "stages", weights, runs).printed)
    base, floor = statistics.median(end.seconds for end in peer), inside.pop("floor")
    name = f"{size}, {members} {preset}"

    def row(what: str, seconds: float, ends: list[Ended] | None = None) -> Row:
        peak = statistics.median(end.peak_mb for end in ends) if ends else None
        return Row(f"{name}: {what}", seconds, seconds / base, seconds / floor, peak)

    rows = [row("peer", base, peer), row("end to end", statistics.median(e.seconds for e in whole), whole)]
    rows += [row(stage, seconds) for stage, seconds in inside.items()]
    rows.append(row("floor", floor))
    maps = [nib.load(place / scan.name).get_fdata(dtype=np.float32) for place in (theirs, ours)]
    return rows, float(np.abs(maps[0] - maps[1]).max())


def table(rows: list[Row], voxels: int) -> str:
    """Markdown lines."""
    lines = []
    for row in rows:
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        rate = voxels / row.seconds / 1e6
        ratios = f"{row.ratio_to_peer:.3f} | {row.ratio_to_floor:.3f}"
        lines.append(f"| {row.name} | {row.seconds:.2f} | {ratios} | {peak} | {rate:.3g} |")
    return "\n".join(lines)


def main() -> None:
    """Time all sizes with all numbers of members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, once: within 5 minutes")
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, help="a CT where a spacing is given, else a brain"
    )
    parser.add_argument("--members", nargs="+", type=int, default=MEMBERS)
    parser.add_argument("--preset", choices=("compact", "reference"), default="compact")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.members, options.runs = SIZES[:1], [1, 2], 1
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores, {options.runs} runs\n")
    print("| scan, members: what | seconds | of the peer | of the floor | peak MB | M voxels/s |")
    print("|---|---|---|---|---|---|", flush=True)
    rows: list[Row] = []
    differences = []
    for size in map(Size.parse, options.sizes):
        for members in options.members:
            with tempfile.TemporaryDirectory() as folder:
                made, difference = bench(Path(folder), size, members, options.preset, options.runs)
            print(table(made, int(np.prod(size.shape))), flush=True)
            differences.append(difference)
            rows += made
    print(f"\nLargest difference between the peer's map and ours: {max(differences):.3f}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
