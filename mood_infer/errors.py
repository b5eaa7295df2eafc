"""The errors a user can mend; each carries one sentence: the file, what is wrong, what to do."""

from pathlib import Path


class UserError(Exception):
    """Something the user can mend; its text is one sentence fit for the terminal."""


class ScanError(UserError):
    """A scan that cannot be read or written."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path.name}: {problem}; {remedy}.")


class WeightsError(UserError):
    """Weights that are missing, damaged, or for something else."""
