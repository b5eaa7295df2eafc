"""Seconds and peak memory of one 256^3 brain in pixel mode, each run a process of its own.

The scan is the sample brain in the middle of a 256^3 grid of 1 mm, in [0,1], like the challenge's.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from mood_infer.challenge import Region
from mood_infer.intensity import MedianRule, to_unit
from mood_infer.volume import read_volume

ROOT = Path(__file__).parents[1]
SIDE = 256


def make_scan(path: Path) -> None:
    """Write the sample brain, centred on the large grid."""
    volume = read_volume(ROOT / "samples/brain/colin27.nii.gz")
    brain = to_unit(volume.array, MedianRule())
    before = [(SIDE - n) // 2 for n in brain.shape]
    padded = np.pad(brain, [(a, SIDE - n - a) for a, n in zip(before, brain.shape, strict=True)])
    nib.save(nib.Nifti1Image(padded, np.eye(4)), path)


def run_once(scan: Path, out: Path) -> tuple[float, float]:
    """(wall seconds, peak resident MB) of one prediction, start of Python included."""
    command = [sys.executable, "-m", "mood_infer", "predict", str(scan), str(out)]
    options = ["--region", Region.BRAIN, "--mode", "pixel", "--overwrite"]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mood-infer ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    """Print each run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        scan, out = Path(folder) / "brain.nii.gz", Path(folder) / "out"
        make_scan(scan)
        results = [run_once(scan, out) for _ in range(runs)]
    for seconds, memory in results:
        print(f"{seconds:6.1f} s  {memory:6.0f} MB")
    seconds, memory = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"median of {runs}: {seconds:.1f} s, peak {memory:.0f} MB, {os.cpu_count()} CPU cores")


if __name__ == "__main__":
    main()
