"""One training run, from files to a checkpoint: the split, the scans, first weights, the trainer."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_train.checkpoint import CHECKPOINT_NAME, read_checkpoint, run_config
from mood_train.config import RegionConfig, RunConfig
from mood_train.data import CachedScan, list_scans, load_scans
from mood_train.folds import Split, make_split, read_split, write_split
from mood_train.start import read_start
from mood_train.trainer import Result, Trainer


@dataclass(frozen=True)
class Material:
    """The normal scans of a region, dealt to folds.

    Attributes:
        paths: all scans; those of the set-aside part are never read.
        split_file: who is in which fold.
        split: its content for the region.
        cache: folder for prepared scans.
    """

    paths: list[Path]
    split_file: Path
    split: Split
    cache: Path

    @classmethod
    def find(cls, data: Path, split_file: Path, region: Region, seed: int, cache: Path) -> "Material":
        """List the scans and read their split, which is made from the seed where there is none.

        Raises:
            UserError: there are no scans, or the split cannot be read.
        """
        paths = list_scans(data)
        if not split_file.exists():
            split_file.parent.mkdir(parents=True, exist_ok=True)
            write_split(split_file, region, make_split((path.name for path in paths), seed))
        return cls(paths, split_file, read_split(split_file, region), cache)

    def mismatch(self) -> str | None:
        """What the split does not name, and what of its folds is not there, in a sentence."""
        there = {path.name for path in self.paths}
        dealt = self.split.training(None)
        parts = {
            "in the split but not among the scans": dealt - there,
            "among the scans but not in the split": there - dealt - set(self.split.set_aside),
        }
        said = [f"{len(names)} {where} ({min(names)} first)" for where, names in parts.items() if names]
        return f"{self.split_file}: left out are {' and '.join(said)}." if said else None

    def training(self, fold: int | None, place: RegionConfig) -> list[CachedScan]:
        """All scans but those of one fold and those set aside.

        Raises:
            UserError: the split names none of the scans, or one cannot be read.
        """
        names = self.split.training(fold)
        chosen = [path for path in self.paths if path.name in names]
        if not chosen:
            raise UserError(f"{self.split_file}: names none of the scans; make one with mood-train folds.")
        return load_scans(chosen, place, self.cache)

    def held_out(self, fold: int | None, place: RegionConfig) -> list[CachedScan]:
        """The scans of the fold left out, to watch a training by."""
        names = self.split.held_out(fold)
        return load_scans([path for path in self.paths if path.name in names], place, self.cache)


@dataclass(frozen=True)
class Means:
    """What a run has to work with; none of it changes what is computed but the precision.

    Attributes:
        workers: processes that make samples; 0 makes them in the training process.
        precision: of the autocast; see :class:`Trainer`.
    """

    workers: int = 0
    precision: str | None = None


def train(
    config: RunConfig,
    material: Material,
    out: Path,
    start_from: Path | None,
    stop: Callable[[], bool],
    means: Means,
) -> Result:
    """Train, or go on from ``out/checkpoint.pt``.

    Args:
        config: what the run computes.
        material: the scans.
        out: folder of the run; made if missing.
        start_from: first weights of a new run: a checkpoint or an exported member.
        stop: asked before each step whether to leave off.
        means: what the run has to work with.

    Raises:
        UserError: scans, split or checkpoints do not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    scans = material.training(config.fold, config.place)
    held_out = material.held_out(config.fold, config.place)
    trainer = Trainer(config, scans, held_out, out, means.workers, means.precision)
    if start_from:
        trainer.start_from(read_start(start_from, config))
    return trainer.fit(stop)


def is_finished(out: Path, config: RunConfig) -> bool:
    """Whether the very run of this configuration is in a folder, at the end of its schedule by steps."""
    if not (out / CHECKPOINT_NAME).exists():
        return False
    checkpoint = read_checkpoint(out / CHECKPOINT_NAME)
    same = run_config(out / CHECKPOINT_NAME, checkpoint) == config
    return same and checkpoint.finished and checkpoint.step >= config.preset.optimiser.steps


def is_main() -> bool:
    """Whether this process is the one that reports and exports, of those that a launcher has started."""
    return int(os.environ.get("RANK", 0)) == 0  # as torchrun and accelerate set it


def stop_on_signal() -> Callable[[], bool]:
    """A function that says whether SIGTERM or SIGINT has come; what is in progress is finished first."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received_number, _frame: received.append(received_number))
    return lambda: bool(received)
