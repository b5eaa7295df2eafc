"""The split file both sides read: which scans train, and which are set aside to judge on."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mood_infer.challenge import Region
from mood_infer.errors import UserError

Part = Literal["set_aside"]


class RegionSplit(BaseModel):
    """A region's scans, as paths relative to the data folder.

    Attributes:
        set_aside: in no training whatever.
        folds: the rest; each fold trains all members but its own.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    set_aside: tuple[str, ...] = ()
    folds: tuple[tuple[str, ...], ...] = Field(default=())

    @property
    def trained_on(self) -> set[str]:
        """Names of all scans of all folds, as :func:`scan_name` has them."""
        return {scan_name(scan) for fold in self.folds for scan in fold}


def scan_name(scan: str | Path) -> str:
    """A scan's file name without folders and without .nii or .nii.gz: what identifies it in a split."""
    return Path(scan).name.removesuffix(".gz").removesuffix(".nii")


def read_split(path: Path, region: Region) -> RegionSplit:
    """Read a region's part of a split file.

    Raises:
        UserError: it cannot be read, lacks the region, or sets a scan aside that is in a fold.
    """
    try:
        split = RegionSplit.model_validate(json.loads(path.read_text())[region])
    except OSError as error:
        raise UserError(f"{path}: cannot be read; give the split file that training used.") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{path}: no valid split of {region}; give the file training used.") from error
    both = sorted(split.trained_on & {scan_name(scan) for scan in split.set_aside})
    if both:
        raise UserError(f"{path}: {', '.join(both)}: set aside and in a fold; take it out of one of them.")
    return split


def judge_scans(scans: list[Path], split: RegionSplit, part: Part | None) -> list[Path]:
    """The scans of a folder that may be judged on.

    Args:
        scans: of the folder.
        split: of the region.
        part: ``set_aside`` picks the scans listed there and passes over all others; None takes all.

    Raises:
        UserError: one of them is in a fold, so that members were trained on it; or none is left.
    """
    if part == "set_aside":
        wanted = {scan_name(scan) for scan in split.set_aside}
        scans = [scan for scan in scans if scan_name(scan) in wanted]
    leaked = [scan.name for scan in scans if scan_name(scan) in split.trained_on]
    if leaked:
        raise UserError(
            f"{', '.join(leaked)}: in a fold of the split file, so networks were trained on it; "
            "remove it from the folder or pick the scans that were set aside."
        )
    if not scans:
        raise UserError("no scan there is set aside in the split file; give the folder it was made for.")
    return scans
