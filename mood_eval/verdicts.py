"""What each case gave, in memory or in files: judging that takes hours goes on where it was cut off."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mood_eval.average_precision import ScoreCounts
from mood_eval.objects import CaseObjects
from mood_eval.summary import Judged
from mood_eval.validation_set import Case
from mood_infer.errors import UserError
from mood_infer.locking import alone
from mood_infer.volume import write_atomically


@dataclass(frozen=True)
class Verdict:
    """What one case gave.

    Attributes:
        case: the index's entry.
        rows: name of each method to what it gave.
    """

    case: Case
    rows: dict[str, Judged]


class Verdicts(Protocol):
    """What the cases judged so far gave, by the names of the cases."""

    def share(self, scans: Sequence[Path]) -> Iterator[Path]:
        """The scans one by one; the cases of the last one are to be judged before the next one comes."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Verdict: ...

    def add(self, verdict: Verdict) -> None:
        """Remember a verdict."""


class RememberedVerdicts:
    """Verdicts in memory, of one process."""

    def __init__(self) -> None:
        self._known: dict[str, Verdict] = {}

    def share(self, scans: Sequence[Path]) -> Iterator[Path]:
        """All scans, in their order."""
        yield from scans

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Verdict:
        return self._known[name]

    def add(self, verdict: Verdict) -> None:
        """Remember a verdict."""
        self._known[verdict.case.name] = verdict


class KeptVerdicts:
    """Verdicts in a folder, a file a case; several processes may share it, each with scans of its own."""

    def __init__(self, folder: Path, plan: dict[str, object]) -> None:
        """Open or make the folder.

        Args:
            folder: of the files.
            plan: all that the verdicts depend on, as JSON.

        Raises:
            UserError: the folder holds the verdicts of another plan.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            path = folder / "plan.json"
            if not path.exists():
                write_atomically(path, lambda partial: partial.write_text(json.dumps(plan, indent=1)))
            if json.loads(path.read_text()) != json.loads(json.dumps(plan)):
                raise UserError(
                    f"{folder}: what is kept there is of other scans, cases, weights or versions; "
                    "name another folder."
                )

    def share(self, scans: Sequence[Path]) -> Iterator[Path]:
        """The scans that no other process has, then the others', which by then are done or given up."""
        late = []
        for scan in scans:
            with alone(self._lock(scan), wait=False) as mine:
                if mine:
                    yield scan
                else:
                    late.append(scan)
        for scan in late:
            with alone(self._lock(scan)):
                yield scan

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def __getitem__(self, name: str) -> Verdict:
        with np.load(self._path(name), allow_pickle=False) as arrays:
            names = json.loads(str(arrays["rows"]))
            rows = {row: _judged(name, arrays, number) for number, row in enumerate(names)}
            return Verdict(Case.model_validate_json(str(arrays["case"])), rows)

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict in its file, which is whole or absent."""
        arrays: dict[str, Any] = {
            "case": np.array(verdict.case.model_dump_json()),
            "rows": np.array(json.dumps(list(verdict.rows))),
        }
        for number, judged in enumerate(verdict.rows.values()):
            arrays |= {f"{number}.{name}": array for name, array in _arrays(judged).items()}
        write_atomically(
            self._path(verdict.case.name), lambda partial: np.savez_compressed(partial, **arrays)
        )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"

    def _lock(self, scan: Path) -> Path:
        return self._folder / f"{scan.name}.lock"


def _arrays(judged: Judged) -> dict[str, NDArray[Any]]:
    arrays = {"anomalous": np.array(judged.anomalous)}
    if judged.sample is not None:
        arrays["sample"] = np.array(judged.sample)
    for part in (judged.pixels, judged.objects):
        if part is not None:
            arrays |= vars(part)
    return arrays


def _judged(case: str, arrays: np.lib.npyio.NpzFile, number: int) -> Judged:
    own = {name.split(".", 1)[1]: arrays[name] for name in arrays.files if name.startswith(f"{number}.")}
    pixels = ScoreCounts(own["positives"], own["negatives"]) if "positives" in own else None
    objects = CaseObjects(own["volumes"], own["found"], own["false"]) if "volumes" in own else None
    sample = float(own["sample"]) if "sample" in own else None
    return Judged(case, bool(own["anomalous"]), pixels, sample, objects)
