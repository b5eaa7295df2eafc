"""The challenge's contract in one place: regions, modes, input and output files.

Nothing here imports more than the standard library: names and paths are checked before torch is loaded.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from mood_infer.errors import UserError

SCAN_SUFFIXES = (".nii.gz", ".nii")


class Region(StrEnum):
    """The body region a set of weights was trained for."""

    BRAIN = "brain"
    ABDOM = "abdom"


class Mode(StrEnum):
    """What is asked of a scan: a score per voxel, one score, or (the challenge never does) both at once."""

    PIXEL = "pixel"
    SAMPLE = "sample"
    BOTH = "both"


def is_scan(path: Path) -> bool:
    """Whether a path is named like a scan: visible, and .nii or .nii.gz."""
    return not path.name.startswith(".") and path.name.endswith(SCAN_SUFFIXES)


def output_paths(scan: Path, output_folder: Path, mode: Mode) -> dict[Mode, Path]:
    """Where the results of a scan go: ``case.nii.gz`` (pixel), ``case.nii.gz.txt`` (sample)."""
    paths = {
        Mode.PIXEL: output_folder / scan.name,
        Mode.SAMPLE: output_folder / f"{scan.name}.txt",
    }
    return {part: path for part, path in paths.items() if mode in (part, Mode.BOTH)}


def find_scans(source: Path) -> list[Path]:
    """The scans of a folder, sorted by name, or the one file; hidden files and subfolders are ignored.

    Raises:
        UserError: there is nothing at that path, it cannot be listed, or the file is not named like a scan.
    """
    try:
        if source.is_dir():
            return sorted(path for path in source.iterdir() if is_scan(path) and not path.is_dir())
        source.stat()
    except FileNotFoundError as error:
        raise UserError(f"{source}: there is no such file or folder; check the path.") from error
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; check its permissions.") from error
    if not is_scan(source):
        raise UserError(f"{source}: not named like a scan; give a .nii or .nii.gz file, or a folder of them.")
    return [source]


def find_misnamed(source: Path) -> list[Path]:
    """Files of a folder that would be scans if their names ended in small letters, sorted by name."""
    if not source.is_dir():
        return []
    small = ((path, path.with_name(path.name.lower())) for path in source.iterdir())
    return sorted(path for path, lower in small if is_scan(lower) and not is_scan(path) and path.is_file())


def prepare_output(scans: Sequence[Path], output: Path, mode: Mode) -> None:
    """Make the output folder if it is missing.

    Raises:
        UserError: it cannot be made, or maps written to it would replace the scans themselves.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        folders = {folder for scan in scans for folder in (scan.resolve().parent, scan.parent)}
        # a container may see one folder under two names
        same = any(folder.is_dir() and output.samefile(folder) for folder in folders)
        if mode is not Mode.SAMPLE and same:
            raise UserError(f"{output}: maps would replace the scans; give another output folder.")
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}; give an output folder that can be made.") from error
