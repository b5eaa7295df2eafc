"""A folder of scans in, a folder of maps or scores out; one bad file never stops the rest."""

import contextlib
import ctypes
import errno
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from threading import Event, Thread
from typing import Any

import nibabel as nib
import numpy as np

from mood_infer import __version__
from mood_infer.challenge import Mode, output_paths
from mood_infer.errors import ScanError, UserError
from mood_infer.locking import alone
from mood_infer.memory import check_fits, lacks_gpu_memory
from mood_infer.predictor import AnomalyMap, Predictor
from mood_infer.ranks import Share
from mood_infer.report import Report
from mood_infer.volume import (
    PARTIAL_PREFIX,
    Volume,
    read_to_the_end,
    read_volume,
    write_atomically,
    write_map,
)
from mood_infer.windows import Progress

CUT_SHORT = " incomplete in "  # seconds, at the end of what stands in an output
PATIENCE = 3.0  # seconds that a stopped job waits for its threads; it must end within 5


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
        seconds: spent on reading, scoring and writing it, without waiting for its neighbours.
        sample_score: in [0,1], of a scan done now.
        error: one sentence, of a scan that failed.
        warnings: one sentence each.
        members: files of the networks that scored it, of a scan done now.
        normal_below: how many of the normal scans known with the weights score lower, and of how many.
        complete: whether time was enough for every member and all windows, of a scan done now.
        outputs: when each of its outputs was written, in ns, by its path; of a scan done or skipped.
    """

    scan: Path
    state: State
    seconds: float
    sample_score: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    normal_below: tuple[int, int] | None = None
    complete: bool | None = None
    outputs: dict[str, int] = field(default_factory=dict)


class Watcher:
    """Is told how a job goes on; this one ignores it."""

    def begins(self, scan: Path, index: int, count: int) -> None:
        """Scan ``index`` of ``count``, from 0, is the next to be scored."""

    def advances(self, windows: int, of: int) -> None:
        """So many of its windows are done."""

    def ends(self, outcome: Outcome) -> None:
        """The scan is done, skipped or failed; the next one may have begun by then."""


@dataclass
class _Passage:
    """A scan on its way through the stages; each fills in what the next one needs and keeps nothing else."""

    scan: Path
    index: int
    targets: dict[Mode, Path]
    state: State | None = None
    seconds: float = 0.0
    damaged: bool = False
    volume: Volume | None = None
    header: Any = None
    anomalies: AnomalyMap | None = None
    sample_score: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    normal_below: tuple[int, int] | None = None
    complete: bool | None = None
    outputs: dict[str, int] = field(default_factory=dict)

    def ends(self, state: State) -> None:
        """Take it that the outputs are whole."""
        self.outputs = {str(path.absolute()): path.stat().st_mtime_ns for path in self.targets.values()}
        self.state = state

    def outcome(self) -> Outcome:
        if self.state is None:
            raise RuntimeError(f"{self.scan.name} has not been through all stages")
        return Outcome(**{each.name: getattr(self, each.name) for each in fields(Outcome)})


class _Background(Thread):
    """Takes a scan through one stage, beside the caller.

    Ask ``done`` whether it has ended: after a signal during ``join``, CPython 3.11 takes a thread that still
    runs for ended.
    """

    def __init__(self, stage: Callable[[_Passage], None], passage: _Passage) -> None:
        super().__init__(target=stage, args=(passage,), daemon=True)
        self.passage = passage
        self.done = Event()
        self._unwanted = False

    def run(self) -> None:
        try:
            with contextlib.suppress(SystemExit):  # see stop
                if not self._unwanted:
                    super().run()
        finally:
            self.done.set()

    def stop(self) -> bool:
        """End it as a signal ends the main thread: by an exception, which removes half-written files.

        Returns:
            Whether it is still to end; one that a signal kept from its start never does anything.
        """
        self._unwanted = True
        if self.ident is None or self.done.is_set():
            return False
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))
        return True


@dataclass(frozen=True)
class Job:
    """What to do with every scan.

    Attributes:
        predictor: the loaded ensemble.
        mode: a map or a score for each scan, or both.
        output: the folder for them; it exists. Nothing is written elsewhere.
        overwrite: make outputs again that are whole and of the same weights.
        report: makes a picture of each scan and a record of all, if any.
        max_memory: bytes. With it, scans are read, scored and written strictly one after another, and one
            that would still take more is refused.
    """

    predictor: Predictor
    mode: Mode
    output: Path
    overwrite: bool = False
    report: Report | None = None
    max_memory: float | None = None

    @property
    def description(self) -> str:
        """Stands in every output and says what made it; an output with another one is made anew."""
        return f"mood-infer {__version__} {self.predictor.digest}"

    def _cut_short(self) -> str:
        """Stands in an output for which the time limit was too short."""
        return f"{self.description}{CUT_SHORT}{self.predictor.time_limit:.9g}"

    def _serves(self, made_by: str) -> bool:
        """Whether an output need not be made again: one cut short does where no more time is allowed now."""
        limit = self.predictor.time_limit
        description, short, allowed = made_by.partition(CUT_SHORT)
        enough = not short or (limit is not None and limit <= float(allowed))
        return description == self.description and enough

    def run(
        self, scans: Sequence[Path], watcher: Watcher | None = None, share: Share | None = None
    ) -> list[Outcome]:
        """Score the scans one after another.

        While one is scored, one thread reads the next and another writes the one before. So at most three are
        in memory: the voxels of the next, all that scoring takes, and the maps of the last. With a memory
        limit it is only one. The watcher is called by the caller's thread alone.

        Args:
            scans: to score.
            watcher: is told how it goes on.
            share: which of them other processes do; none by default.

        Returns:
            One outcome for each scan done here, in their order; whatever goes wrong with it is in there.
        """
        watcher, share = watcher or Watcher(), share or Share()
        outcomes: list[Outcome] = []
        reader: _Background | None = None
        writer: _Background | None = None

        def settle(wait: bool = True) -> None:
            nonlocal writer
            if writer is not None and (wait or writer.done.is_set()):
                writer.done.wait()
                if writer.passage.damaged:
                    _remove_outdated(writer.passage.scan, self.output)
                outcomes.append(writer.passage.outcome())
                writer = None
                watcher.ends(outcomes[-1])
                if self.report is not None and outcomes[-1].state is State.DONE:
                    with contextlib.suppress(UserError):  # the caller learns of it when all is done
                        self.report.record(self.predictor, scans, outcomes)

        def advances(windows: int, of: int) -> None:
            settle(wait=False)
            watcher.advances(windows, of)

        # a thread is known before it is started: a signal in between must not lose it

        def read_next() -> None:
            nonlocal reader
            index = next(order, None)
            reader = None if index is None else _Background(self._read, self._passage(scans[index], index))
            if reader is not None:
                reader.start()

        def write(passage: _Passage) -> None:
            nonlocal writer
            writer = _Background(self._write, passage)
            writer.start()

        order, ahead = share.order(scans), self.max_memory is None
        try:
            read_next()
            while reader is not None:
                passage = reader.passage
                ours = share.take(passage.scan)
                if ours:
                    watcher.begins(passage.scan, passage.index, len(scans))
                reader.done.wait()
                if ahead:
                    read_next()
                if ours:
                    self._score(passage, advances)
                    settle()
                    write(passage)
                if not ahead:
                    settle()
                    read_next()
            settle()
        finally:
            _stop(reader, writer)
            if writer is not None and writer.passage.state is not None:  # it had just ended
                settle()
        return outcomes

    def _passage(self, scan: Path, index: int) -> _Passage:
        return _Passage(scan, index, output_paths(scan, self.output, self.mode))

    def _read(self, passage: _Passage) -> None:
        with _attempt(passage):
            if not self.overwrite and self._is_done(passage):
                passage.ends(State.SKIPPED)
                return
            for target in passage.targets.values():
                _check_writable(target)
            if self.max_memory is not None:
                check_fits(passage.scan, self.predictor.manifest, self.max_memory)
            try:
                passage.volume = read_volume(passage.scan)
            except ScanError as error:
                # of what the system refuses, such as a file that may not be read, nothing is known
                passage.damaged = getattr(error.__cause__, "errno", None) is None
                raise

    def _score(self, passage: _Passage, advances: Progress) -> None:
        volume, passage.volume = passage.volume, None
        if volume is not None:
            with _attempt(passage):
                passage.anomalies = self.predictor.predict(volume, advances)
                passage.header = volume.header

    def _write(self, passage: _Passage) -> None:
        anomalies, passage.anomalies = passage.anomalies, None
        if anomalies is not None:
            with _attempt(passage):
                score = anomalies.sample_score
                made_by = self.description if anomalies.complete else self._cut_short()
                for part, target in passage.targets.items():
                    with _naming(target):
                        if part is Mode.PIXEL:
                            write_map(target, anomalies.scores, passage.header, made_by)
                        else:
                            _write_score(target, score, made_by)
                passage.warnings, passage.members = anomalies.warnings, anomalies.members
                passage.sample_score, passage.normal_below = score, anomalies.normal_below
                passage.complete = anomalies.complete
                passage.ends(State.DONE)  # even if the picture is interrupted
                passage.warnings += self._picture(passage.scan, anomalies)

    def _is_done(self, passage: _Passage) -> bool:
        """Whether all outputs are whole, newer than the scan, and of the same weights and software."""
        scan, whole = passage.scan, {Mode.PIXEL: _whole_map, Mode.SAMPLE: _whole_score}
        try:
            changed = _changed(scan)
            return all(
                target.stat().st_mtime_ns > changed and whole[part](scan, target, self._serves)
                for part, target in passage.targets.items()
            )
        except Exception:  # anything odd about one of the files: the way through prediction says what it is
            return False

    def _picture(self, scan: Path, anomalies: AnomalyMap) -> tuple[str, ...]:
        if self.report is None:
            return ()
        try:
            self.report.add(scan, anomalies)
        except Exception as error:  # whatever it is, the scan is done
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return (f"no picture was written: {reason}",)
        return ()


def _changed(scan: Path) -> int:
    """When a scan became what it is, in ns: a copy or a link that took its place may be of an older date."""
    state = scan.stat()
    return max(state.st_mtime_ns, state.st_ctime_ns, scan.lstat().st_ctime_ns)


def _remove_outdated(scan: Path, output: Path) -> None:
    """Results of what a scan was before it was damaged must not pass for those of what it is now."""
    for target in output_paths(scan, output, Mode.BOTH).values():
        with contextlib.suppress(OSError):
            if target.stat().st_mtime_ns <= _changed(scan):
                target.unlink()


@contextlib.contextmanager
def _attempt(passage: _Passage) -> Iterator[None]:
    """Time a stage; whatever goes wrong in it becomes the outcome of its scan, and the rest goes on."""
    begin = time.perf_counter()
    try:
        yield
    except Exception as error:
        passage.state, passage.error = State.FAILED, _sentence(passage.scan, error)
    passage.seconds += time.perf_counter() - begin


def _sentence(scan: Path, error: Exception) -> str:
    if isinstance(error, ScanError):
        return str(error)
    if isinstance(error, UserError):
        return f"{scan.name}: {error}"
    # torch has no kind of its own for host memory
    host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if host or isinstance(error, MemoryError) or lacks_gpu_memory(error):
        remedy = "crop it or use a machine with more memory"
        return str(ScanError(scan, "there is not enough memory for it", remedy))
    return f"{scan.name}: {type(error).__name__}: {error}; report this."


def _stop(*threads: _Background | None) -> None:
    """End threads and wait for them, but no longer than ``PATIENCE``."""
    running = [thread for thread in threads if thread is not None and thread.stop()]
    deadline = time.monotonic() + PATIENCE
    for thread in running:
        thread.done.wait(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def sole_run(output: Path, share: Share) -> Iterator[None]:
    """Make sure that no other run writes to a folder, and delete what a killed one was just writing.

    Where the file system knows no locks, nobody is kept out.

    Args:
        output: the folder.
        share: its first process holds the folder until all have left; if that one dies, its launcher ends
            the others.

    Raises:
        UserError: another run writes there.
    """
    with contextlib.ExitStack() as held:
        share.once(lambda: _claim(output, held))
        yield
        share.leave()


def _claim(output: Path, held: contextlib.ExitStack) -> None:
    with contextlib.suppress(OSError):  # no locks there, or a folder that may be written to, but not listed
        if not held.enter_context(alone(output, wait=False)):
            raise UserError(
                f"{output}: another run writes there; wait for it, or give another output folder."
            )
    for path in output.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _whole_map(scan: Path, target: Path, serves: Callable[[str], bool]) -> bool:
    stored = nib.load(target)
    header = stored.header
    same = (
        serves(bytes(header["descrip"]).rstrip(b"\0").decode())
        and stored.get_data_dtype().newbyteorder("=") == np.float32  # of a big-endian scan it is big-endian
        and stored.shape == nib.load(scan).shape
    )
    if not same:
        return False
    scores, _ = read_to_the_end(target, type(stored))  # a copy that was cut short raises here
    return bool(scores.min() >= 0 and scores.max() <= 1)  # false for NaN as well


def _whole_score(_scan: Path, target: Path, serves: Callable[[str], bool]) -> bool:
    score, made_by = target.read_text().splitlines()
    return serves(made_by) and math.isfinite(float(score)) and 0 <= float(score) <= 1


def _check_writable(target: Path) -> None:
    """Learn before the prediction, not after it, that nothing can be written."""
    with _naming(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder has that name")
        probe = target.with_name(f"{PARTIAL_PREFIX}probe")
        try:
            write_atomically(probe, lambda _: None)
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


def _write_score(target: Path, score: float, made_by: str) -> None:
    text = f"{score!r}\n{made_by}\n"  # every digit, so that it compares as the score itself
    write_atomically(target, lambda partial: partial.write_text(text))
