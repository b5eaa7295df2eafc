"""A folder of scans in, a folder of maps or scores out; one bad file never stops the rest."""

import contextlib
import errno
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mood_infer import __version__
from mood_infer.challenge import Mode, output_path
from mood_infer.errors import ScanError, UserError
from mood_infer.predictor import AnomalyMap, Predictor
from mood_infer.report import Report
from mood_infer.volume import PARTIAL_PREFIX, Volume, read_volume, write_atomically, write_map


class State(StrEnum):
    """What became of one scan."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one scan.

    Attributes:
        scan: the input file.
        state: done, skipped (a whole output of these weights was there) or failed.
        seconds: wall time from reading to writing.
        sample_score: in [0,1], of a scan done now.
        error: one sentence, of a scan that failed.
        warnings: one sentence each.
        members: files of the networks that scored it, of a scan done now.
    """

    scan: Path
    state: State
    seconds: float
    sample_score: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


class Watcher:
    """Is told how a job goes on; this one ignores it."""

    def begins(self, scan: Path, index: int, count: int) -> None:
        """Scan ``index`` of ``count``, from 0, is about to be read."""

    def advances(self, windows: int, of: int) -> None:
        """So many of its windows are done."""

    def ends(self, outcome: Outcome) -> None:
        """The scan is done, skipped or failed."""


@dataclass(frozen=True)
class Job:
    """What to do with every scan.

    Attributes:
        predictor: the loaded ensemble.
        mode: a map or a score for each scan.
        output: the folder for them; it exists. Nothing is written elsewhere.
        overwrite: make outputs again that are whole and of the same weights.
        report: makes a picture of each scan, if any.
    """

    predictor: Predictor
    mode: Mode
    output: Path
    overwrite: bool = False
    report: Report | None = None

    @property
    def description(self) -> str:
        """Stands in every output and says what made it; an output with another one is made anew."""
        return f"mood-infer {__version__} {self.predictor.digest}"

    def run(self, scans: Sequence[Path], watcher: Watcher | None = None) -> list[Outcome]:
        """Score the scans one after another.

        Returns:
            One outcome a scan, in their order. Whatever goes wrong with a scan is in its outcome.
        """
        watcher = watcher or Watcher()
        remove_partial_files(self.output)
        outcomes = []
        for index, scan in enumerate(scans):
            watcher.begins(scan, index, len(scans))
            outcomes.append(self._attempt(scan, watcher))
            watcher.ends(outcomes[-1])
        return outcomes

    def _attempt(self, scan: Path, watcher: Watcher) -> Outcome:
        begin = time.perf_counter()
        target = output_path(scan, self.output, self.mode)
        try:
            if not self.overwrite and self._is_done(scan, target):
                return Outcome(scan, State.SKIPPED, time.perf_counter() - begin)
            _check_writable(target)
            volume = read_volume(scan)
            anomalies = self.predictor.predict(volume, watcher.advances)
            self._write(target, volume, anomalies)
            warnings = anomalies.warnings + self._picture(scan, anomalies)
        except ScanError as error:
            text = str(error)
        except UserError as error:
            text = f"{scan.name}: {error}"
        except (MemoryError, torch.OutOfMemoryError):
            text = _out_of_memory(scan)
        except Exception as error:  # the rest must go on, whatever it was
            # torch has no kind of its own for host memory
            memory = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
            text = (
                _out_of_memory(scan)
                if memory
                else f"{scan.name}: {type(error).__name__}: {error}; report this."
            )
        else:
            seconds = time.perf_counter() - begin
            score, members = anomalies.sample_score, anomalies.members
            return Outcome(scan, State.DONE, seconds, score, warnings=warnings, members=members)
        return Outcome(scan, State.FAILED, time.perf_counter() - begin, error=text)

    def _is_done(self, scan: Path, target: Path) -> bool:
        """Whether the output is whole, newer than the scan, and of the same weights and software."""
        try:
            if target.stat().st_mtime_ns <= scan.stat().st_mtime_ns:
                return False
            whole = _whole_map if self.mode is Mode.PIXEL else _whole_score
            return whole(scan, target, self.description)
        except Exception:  # anything odd about either file: the way through prediction says what it is
            return False

    def _write(self, target: Path, volume: Volume, anomalies: AnomalyMap) -> None:
        # a later run does not take what the time limit cut short for whole
        made_by = self.description + ("" if anomalies.complete else " incomplete")
        with _naming(target):
            if self.mode is Mode.PIXEL:
                write_map(target, anomalies.scores, volume, made_by)
            else:
                text = f"{anomalies.sample_score:.9g}\n{made_by}\n"
                write_atomically(target, lambda partial: _write_text(partial, text))

    def _picture(self, scan: Path, anomalies: AnomalyMap) -> tuple[str, ...]:
        if self.report is None:
            return ()
        try:
            self.report.add(scan, anomalies)
        except OSError as error:
            return (f"no picture was written: {error.strerror or error}",)
        return ()


def remove_partial_files(folder: Path) -> None:
    """Delete what a killed run was just writing; no file of another name is touched."""
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _whole_map(scan: Path, target: Path, description: str) -> bool:
    stored = nib.load(target)
    header = stored.header
    same = (
        bytes(header["descrip"]).rstrip(b"\0") == description.encode()
        and stored.get_data_dtype().newbyteorder("=") == np.float32  # of a big-endian scan it is big-endian
        and stored.shape == nib.load(scan).shape
    )
    if not same:
        return False
    scores = np.asarray(stored.dataobj)  # to its end: a copy that was cut short raises here
    return bool(scores.min() >= 0 and scores.max() <= 1)  # false for NaN as well


def _whole_score(_scan: Path, target: Path, description: str) -> bool:
    score, made_by = target.read_text().splitlines()
    return made_by == description and math.isfinite(float(score)) and 0 <= float(score) <= 1


def _check_writable(target: Path) -> None:
    """Learn before the prediction, not after it, that nothing can be written."""
    with _naming(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder has that name")
        probe = target.with_name(f"{PARTIAL_PREFIX}probe")
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the output."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise ScanError(target, problem, "make room there or give another output folder") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _out_of_memory(scan: Path) -> str:
    return str(
        ScanError(scan, "there is not enough memory for it", "crop it or use a machine with more memory")
    )
