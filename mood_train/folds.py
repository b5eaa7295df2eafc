"""Who trains and who judges: subject-wise folds with a set-aside part, written to a file.

The file holds, per region, ``set_aside`` (never read by any training) and ``folds``, lists of file names;
folders in front of a name are for the reader and do not count. Judging reads it too, so
nothing here loads torch.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.volume import write_atomically

FOLDS = 5


class Split(BaseModel):
    """The parts of one region's scans, by file name."""

    model_config = ConfigDict(frozen=True)
    set_aside: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]

    def training(self, fold: int | None) -> set[str]:
        """Names of all folds but one (or of all, for None).

        Raises:
            UserError: there is no such fold.
        """
        if fold is not None and fold >= len(self.folds):
            raise UserError(f"fold {fold}: the split has folds 0 to {len(self.folds) - 1}; give one of them.")
        return {name for number, names in enumerate(self.folds) if number != fold for name in names}

    def held_out(self, fold: int | None) -> set[str]:
        """Names of one fold, to watch a training by; empty for None."""
        return set() if fold is None else set(self.folds[fold])


def subject_of(name: str) -> str:
    """Whom a file shows, by its name.

    ``sub-01`` wherever a BIDS name has it; else the part before the first ``_`` if it is letters and then
    digits and no further number follows, as in ``ct0518_abdomen``; else the whole stem.
    """
    stem = re.sub(r"\.nii(\.gz)?$", "", name)
    if bids := re.search(r"(?:^|_)(sub-[^_]+)", stem):
        return bids[1]
    head, _, rest = stem.partition("_")
    return head if re.fullmatch(r"[A-Za-z]+\d+", head) and not re.search(r"\d", rest) else stem


def make_split(names: Iterable[str], seed: int) -> Split:
    """Set aside a fifth of the subjects and deal the others to five folds.

    Args:
        names: file names of the scans.
        seed: of the dealing.

    Raises:
        UserError: there are fewer subjects than folds.
    """
    by_subject: dict[str, list[str]] = {}
    for name in sorted(names):
        by_subject.setdefault(subject_of(name), []).append(name)
    if len(by_subject) < FOLDS:
        raise UserError(f"{len(by_subject)} subjects cannot fill {FOLDS} folds; give more scans.")
    subjects = list(np.random.default_rng(seed).permutation(sorted(by_subject)))
    aside = min(len(subjects) // FOLDS, len(subjects) - FOLDS)  # of five none: a fold must not be empty

    def files(part: list[str]) -> tuple[str, ...]:
        return tuple(name for subject in sorted(part) for name in by_subject[subject])

    rest = subjects[aside:]
    return Split(set_aside=files(subjects[:aside]), folds=tuple(files(rest[k::FOLDS]) for k in range(FOLDS)))


def write_split(path: Path, region: Region, split: Split) -> None:
    """Write the split of one region; those of other regions in the file stay.

    Raises:
        UserError: the file has another split of the region, by which networks may have been trained, or
            holds something else.
    """
    try:
        content = dict(json.loads(path.read_text()))
    except FileNotFoundError:
        content = {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is no split file; remove it, or write to another.") from error
    dealt = split.model_dump(mode="json")
    if content.get(region.value, dealt) != dealt:
        raise UserError(
            f"{path}: has another split of {region.value}, and those whom networks were trained on must not "
            "judge them; write to another file, for new networks."
        )
    text = json.dumps(content | {region.value: dealt}, indent=1) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def read_split(path: Path, region: Region) -> Split:
    """Read the split of a region and make sure that no subject stands in two parts.

    Raises:
        UserError: the file cannot be read, is not a split, or leaks a subject; the text names it.
    """
    try:
        raw = Split.model_validate(json.loads(path.read_text())[region.value])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        message = f"{path}: holds no split for {region.value}; make one with mood-train folds."
        raise UserError(message) from error
    split = Split(
        set_aside=tuple(Path(name).name for name in raw.set_aside),
        folds=tuple(tuple(Path(name).name for name in fold) for fold in raw.folds),
    )
    seen: dict[str, int] = {}
    for number, part in enumerate((split.set_aside, *split.folds)):
        for name in part:
            if seen.setdefault(subject_of(name), number) != number:
                raise UserError(f"{path}: the subject of {name} stands in two parts; move it to one.")
    return split
