"""How a job goes on, for people: a bar on a terminal, and a line for each scan everywhere."""

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mood_infer.job import Outcome, State, Watcher


class Log(Watcher):
    """Prints each outcome; on a terminal a bar also counts scans, in windows' steps, with the time left."""

    def __init__(self, console: Console, bar: bool = True) -> None:
        self._console = console
        self._index = 0
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns, console=console, transient=True, disable=not (bar and console.is_terminal)
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begins(self, scan: Path, index: int, count: int) -> None:
        self._index = index
        self._bar.update(
            self._task, description=f"{scan.name} ({index + 1}/{count})", total=count, completed=index
        )

    def advances(self, windows: int, of: int) -> None:
        self._bar.update(self._task, completed=self._index + windows / of)

    def ends(self, outcome: Outcome) -> None:
        self._console.print(describe(outcome))
        for warning in outcome.warnings:
            self._console.print(f"{outcome.scan.name}: warning: {warning}")


def describe(outcome: Outcome) -> str:
    """One line on what became of a scan."""
    if outcome.state is State.FAILED:
        return f"failed: {outcome.error}"
    if outcome.state is State.SKIPPED:
        return f"{outcome.scan.name}: skipped, its result is there already"
    text = f"{outcome.scan.name}: done in {outcome.seconds:.1f} s, sample score {outcome.sample_score:.4f}"
    if outcome.normal_below is None:
        return text
    lower, count = outcome.normal_below
    return f"{text}, higher than {lower} of {count} normal scans stored with the weights"
