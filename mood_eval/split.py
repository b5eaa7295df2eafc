"""Which scans may be judged on: those of no subject that any network was trained on."""

from pathlib import Path
from typing import Literal

from mood_infer.errors import UserError
from mood_train.folds import Split, subject_of

Part = Literal["set_aside", "held_out"]


def judge_scans(
    scans: list[Path], split: Split, part: Part | None, left_out: int | None = None
) -> list[Path]:
    """The scans of a folder that may be judged on.

    Args:
        scans: of the folder.
        split: of the region.
        part: picks the scans that are listed as set aside, or those of the fold left out, and passes over all
            others; None takes all.
        left_out: the fold that no network to be judged was trained on; None if all folds trained.

    Raises:
        UserError: a subject of theirs is in a fold that trained, whatever the file's name; or none is left.
    """
    trained = {subject_of(name) for name in split.training(left_out)}
    if part is not None:
        wanted = set(split.set_aside) if part == "set_aside" else split.held_out(left_out)
        scans = [scan for scan in scans if scan.name in wanted]
    leaked = [scan.name for scan in scans if subject_of(scan.name) in trained]
    if leaked:
        raise UserError(
            f"{', '.join(leaked)}: of a subject in a fold of the split file, so networks were trained on it; "
            "remove it from the folder or pick the scans that were set aside."
        )
    if not scans:
        kind = "held out" if part == "held_out" else "set aside"
        raise UserError(f"no scan there is {kind} in the split file; give the folder it was made for.")
    return scans


def training_scans(scans: list[Path], split: Split, left_out: int | None = None) -> list[Path]:
    """The scans of a folder that are listed in the folds that train.

    Raises:
        UserError: there are none.
    """
    names = split.training(left_out)
    chosen = [scan for scan in scans if scan.name in names]
    if not chosen:
        raise UserError("no scan there is in a fold of the split file; give the folder it was made for.")
    return chosen
