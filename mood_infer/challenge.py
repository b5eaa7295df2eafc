"""The challenge's contract in one place: regions, modes and the names of output files.

Nothing here imports more than the standard library, so the names are known before torch is loaded.
"""

from enum import StrEnum
from pathlib import Path

SCAN_SUFFIXES = (".nii.gz", ".nii")


class Region(StrEnum):
    """The body region a set of weights was trained for."""

    BRAIN = "brain"
    ABDOM = "abdom"


class Mode(StrEnum):
    """What is asked of a scan: a score per voxel, or one score."""

    PIXEL = "pixel"
    SAMPLE = "sample"


def is_scan(path: Path) -> bool:
    """Whether a path is named like a scan: visible, and .nii or .nii.gz."""
    return not path.name.startswith(".") and path.name.endswith(SCAN_SUFFIXES)


def output_path(scan: Path, output_folder: Path, mode: Mode) -> Path:
    """Where the result of a scan goes: ``case.nii.gz`` (pixel) or ``case.nii.gz.txt`` (sample)."""
    return output_folder / (scan.name if mode is Mode.PIXEL else f"{scan.name}.txt")
