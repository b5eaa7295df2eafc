"""Our way by stage, and the floor, in one process: ``stages.py SCAN OUT WEIGHTS RUNS``; prints JSON.

The floor is what no way around the networks can be faster than: the same forward passes, one after another,
on windows that lie ready in memory.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mood_infer import predictor as predictor_module
from mood_infer.grid import resample, working_grid
from mood_infer.intensity import to_unit
from mood_infer.network import window_logits
from mood_infer.predictor import MARGIN, Predictor
from mood_infer.preparation import body_box, scan_grid
from mood_infer.refinement import MeanMap
from mood_infer.volume import Array3D, read_volume, write_map
from mood_infer.weights import read_manifest

T = TypeVar("T")


@dataclass
class Passes:
    """Forward passes of one network on batches of one shape.

    Attributes:
        network: it.
        windows: (B, 1, w, w, w), the first batch, as an example.
        autocast: the 16-bit format it ran in, if any.
        count: how many batches there were.
    """

    network: nn.Module
    windows: Tensor
    autocast: torch.dtype | None
    count: int = 0

    def seconds(self) -> float:
        """Do them all again."""
        kind = self.windows.device.type
        synchronise(kind)
        begin = time.perf_counter()
        with torch.inference_mode(), torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            for _ in range(self.count):
                window_logits(self.network, self.windows)
        synchronise(kind)
        return time.perf_counter() - begin


@contextmanager
def recorded_passes() -> Iterator[dict[tuple[int, int], Passes]]:
    """Record every forward pass of a predictor."""
    passes: dict[tuple[int, int], Passes] = {}

    def record(network: nn.Module, windows: Tensor) -> Tensor:
        kind = windows.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        found = passes.setdefault((id(network), len(windows)), Passes(network, windows, half))
        found.count += 1
        return window_logits(network, windows)

    predictor_module.window_logits = record
    try:
        yield passes
    finally:
        predictor_module.window_logits = window_logits


def synchronise(kind: str) -> None:
    """Wait for the GPU, if it is one."""
    if kind == "cuda":
        torch.cuda.synchronize()


def timed(rows: dict[str, float], name: str, work: Callable[[], T]) -> T:
    """Do something and note its seconds."""
    begin = time.perf_counter()
    result = work()
    rows[name] = time.perf_counter() - begin
    return result


class Staged(Predictor):
    """A predictor that notes how long the mean map takes to be made, and to be smoothed and weighed.

    The floor of each member is timed right after it, so that both meet the machine in the same mood.
    """

    rows: dict[str, float]

    def _mean(self, *arguments: Any) -> tuple[Tensor, float, float, int]:
        made = timed(self.rows, "windows", lambda: super(Staged, self)._mean(*arguments))
        self.rows["windows"] -= self.rows["floor"]
        return made

    def _member(self, *arguments: Any) -> tuple[Tensor, float, float]:
        with recorded_passes() as passes:
            made = super()._member(*arguments)
        self.rows["floor"] += sum(one.seconds() for one in passes.values())
        return made

    def _refine(self, mean: MeanMap) -> tuple[Array3D, float]:
        return timed(self.rows, "refine", lambda: super(Staged, self)._refine(mean))


def run(predictor: Staged, scan: Path, out: Path) -> dict[str, float]:
    """Seconds of each stage of one scan."""
    rows = predictor.rows = {"floor": 0.0}
    manifest = predictor.manifest
    volume = timed(rows, "read", lambda: read_volume(scan))
    own = scan_grid(volume)
    unit = timed(rows, "to [0,1]", lambda: to_unit(volume.array, manifest.intensity))
    working = working_grid(own, manifest.spacing, manifest.upsample)
    image = timed(rows, "to grid", lambda: resample(unit, own, working))
    margin = round(MARGIN * manifest.window)
    timed(rows, "body's box", lambda: body_box(image, manifest.region, margin))
    anomalies = predictor.predict(volume)
    scores = timed(rows, "back", lambda: anomalies.scores)
    timed(rows, "write", lambda: write_map(out / scan.name, scores, volume.header))
    rows["floor"] = rows.pop("floor")  # last
    return rows


def main() -> None:
    """Print the medians, and a GPU's peak, as one line of JSON."""
    scan, out, weights = map(Path, sys.argv[1:4])
    runs = int(sys.argv[4])
    out.mkdir(parents=True, exist_ok=True)
    loading: dict[str, float] = {}
    predictor = timed(loading, "load", lambda: Staged.load(read_manifest(weights).region, weights))
    results = [run(predictor, scan, out) for _ in range(runs)]
    figures = loading | {name: statistics.median(result[name] for result in results) for name in results[0]}
    if predictor.device == "cuda":
        figures["gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
