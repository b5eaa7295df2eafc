"""Whether reading and writing hide behind computing: ``folder.py [--size SIZE] [--members N] [--scans N]``.

Times a job over a folder of scans against the same scans, already in memory, through the ensemble alone, and
against the same job with nothing read ahead or written behind. ``scripts/setup.sh`` sets up what this needs.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cases import Size, make_scan, make_weights
from stages import timed

from mood_infer.challenge import Mode
from mood_infer.job import Job
from mood_infer.predictor import Predictor
from mood_infer.volume import read_volume

NO_LIMIT = 1e18  # bytes; any limit at all makes a job strictly one after another


def compare(folder: Path, size: Size, members: int, scans: int, runs: int) -> dict[str, float]:
    """Median seconds of the ensemble alone, of the job, and of the job without neighbours."""
    make_weights(folder / "weights", size.region, members, "compact")
    source = folder / "scans"
    source.mkdir()
    paths = [source / f"{number:02d}.nii.gz" for number in range(scans)]
    make_scan(paths[0], size)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    predictor = Predictor.load(size.region, folder / "weights")
    volume = read_volume(paths[0])
    predictor.predict(volume)  # what is computed first is slow

    def predict_all() -> None:
        for _ in paths:
            predictor.predict(volume)  # and forget it, as a job does

    ways: dict[str, Callable[[], object]] = {"ensemble alone": predict_all}
    for name, limit in (("job", None), ("job, one after another", NO_LIMIT)):
        output = folder / name
        output.mkdir()
        job = Job(predictor, Mode.PIXEL, output, overwrite=True, max_memory=limit)
        ways[name] = partial(job.run, paths)
    taken: list[dict[str, float]] = []
    for _ in range(runs):  # in turns, so that a busy moment does not hit one of them alone
        taken.append({})
        for name, way in ways.items():
            timed(taken[-1], name, way)
    return {name: statistics.median(rows[name] for rows in taken) for name in ways}


def main() -> None:
    """Print a table, and JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=Size.parse, default=Size.parse("256"))
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), options.size, options.members, options.scans, options.runs)
    base = rows["ensemble alone"]
    print(f"{options.scans} scans, {options.size}, {options.members} members, {options.runs} runs\n")
    print("| what | seconds | of the ensemble alone |\n|---|---|---|")
    for name, taken in rows.items():
        print(f"| {name} | {taken:.1f} | {taken / base:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
