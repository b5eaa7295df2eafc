"""Scans in and maps out: NIfTI files as frozen volumes, written atomically.

A readable file always becomes a volume of finite numbers with a usable geometry; what had to be
mended is listed in its ``warnings``. A file that is not a 3D scan raises :class:`ScanError`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from isal import igzip
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from mood_infer.errors import ScanError

Array3D = NDArray[np.float32]
Affine = NDArray[np.float64]

PARTIAL_PREFIX = ".mood-partial-"
CHUNK_BYTES = 2**20
SPACING_TOLERANCE = 0.02  # by which pixdim and affine may differ without a word
UMASK = os.umask(0)  # asked once: asking changes it for a moment, and for all threads
os.umask(UMASK)
COMPRESSION_LEVEL = 1  # of 0 to 3: the higher ones take longer and save up to 4 %


@dataclass(frozen=True)
class Volume:
    """One scan as it was stored.

    Attributes:
        array: (X, Y, Z) float32, finite, in the file's own units (after slope and intercept).
        affine: (4, 4) float64, invertible, voxel index to world mm (RAS+).
        header: the NIfTI header of the file; a map of this scan is written with the same geometry.
        warnings: one sentence for each thing that had to be mended.
    """

    array: Array3D
    affine: Affine
    header: Any
    warnings: tuple[str, ...] = ()


def read_volume(path: Path) -> Volume:
    """Read a 3D scan from ``.nii`` or ``.nii.gz``.

    Voxels that are not finite become the smallest finite value, or 0 if that is smaller: masks often say NaN
    for outside. A singular affine is replaced by the qform, or where there is none by the stored spacing
    along the stored axes (1 mm where that is 0).

    Raises:
        ScanError: the file is missing, broken, not NIfTI, empty, not 3D, or not of real scalars.
    """
    image = _open(path)
    try:
        stored, header = read_to_the_end(path, type(image))
    except MemoryError:
        raise
    except Exception as error:  # truncated or corrupt data surfaces as one of isal, gzip, EOF, OS, Value
        raise ScanError(path, "the voxel data is damaged or cut short", "copy the file again") from error
    array, intensity_warnings = _finite(stored.reshape(stored.shape[:3]))
    affine, geometry_warnings = _usable_affine(image, header)
    return Volume(array, affine, header, intensity_warnings + geometry_warnings)


def read_geometry(path: Path) -> tuple[tuple[int, int, int], Affine]:
    """Shape and usable affine of a 3D scan, from its header alone.

    Raises:
        ScanError: the file is missing, not NIfTI, empty, not 3D, or not of real scalars.
    """
    image = _open(path)
    affine, _ = _usable_affine(image, image.header)
    x, y, z = image.shape[:3]
    return (x, y, z), affine


def _open(path: Path) -> Any:
    """The image without its voxels."""
    try:
        with LoggingOutputSuppressor():  # what nibabel would say of the header is among our warnings
            image = nib.load(path)
    except FileNotFoundError as error:
        raise ScanError(path, "there is no such file", "check the path") from error
    except Exception as error:  # nibabel raises many kinds for a file that is no image
        raise ScanError(path, "not a readable NIfTI file", "convert it to .nii.gz or remove it") from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
        raise ScanError(path, f"a {type(image).__name__}, not NIfTI", "convert it to .nii.gz")
    _check_kind(path, image)
    return image


def read_to_the_end(path: Path, kind: Any) -> tuple[Array3D, Any]:
    """The voxels of a NIfTI file, and its header just as it is stored.

    The end matters: there lies the checksum of a ``.gz`` stream, and reading the voxels stops before it.

    Args:
        path: the file.
        kind: the nibabel image class for it.

    Returns:
        The (X, Y, Z, ...) float32 voxels, and the header.

    Raises:
        Exception: of one of many kinds, if the file is damaged or cut short.
    """
    with igzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream, LoggingOutputSuppressor():
        header = kind.header_class.from_fileobj(stream, check=False)
        stream.seek(0)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is mended as not finite
            # not mapped: a file that is cut short while its voxels are in use would end the process
            image = kind.from_file_map(kind.make_file_map({"image": stream}), mmap=False)
            stored = np.asarray(image.dataobj, dtype=np.float32)
        while stream.read(CHUNK_BYTES):
            pass
    return stored, header


def _check_kind(path: Path, image: Any) -> None:
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise ScanError(
            path, f"voxels are of type {dtype}, not one real number each", "convert it to grey values"
        )
    shape = image.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise ScanError(path, f"has shape {shape}, not that of one 3D scan", "give one 3D volume a file")
    if 0 in shape:
        raise ScanError(path, f"has shape {shape}: no voxels", "export the scan again")


def _finite(array: Array3D) -> tuple[Array3D, tuple[str, ...]]:
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if not count:
        return array, ()
    fill = array[~bad].min(initial=0)
    return np.where(bad, fill, array).astype(np.float32), (
        f"{count} voxels were not finite and were taken as {fill:g}",
    )


def _usable_affine(image: Any, header: Any) -> tuple[Affine, tuple[str, ...]]:
    affine, stored = np.asarray(image.affine, dtype=np.float64), np.asarray(header["pixdim"][1:4])
    if _is_regular(affine):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if (stored > 0).all() and np.allclose(stored, lengths, rtol=SPACING_TOLERANCE, atol=0):
            return affine, ()
        text = " x ".join(f"{length:g}" for length in stored)
        return affine, (f"the stored spacing is {text} mm; the affine was used as it is",)
    if (qform := _qform(image.header)) is not None:
        return qform, ("the affine of the sform is singular; the qform was used",)
    spacing = np.abs(stored.astype(np.float64))
    spacing = np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
    text = " x ".join(f"{length:g}" for length in spacing)
    return np.diag([*spacing, 1.0]), (f"the affine is singular; {text} mm along the stored axes was used",)


def _qform(header: Any) -> Affine | None:
    """The affine of the qform, if there is a usable one."""
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:  # a quaternion that is none
        return None
    return qform if qform is not None and _is_regular(qform) else None


def _is_regular(affine: Affine) -> bool:
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # relative to the axis lengths, so that a small spacing is not taken for a singular one
    return bool(lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def write_map(path: Path, scores: Array3D, header: Any, description: str = "") -> None:
    """Write an anomaly map with the geometry of its scan, atomically.

    Scores are rounded to what float16 can hold, because the challenge's scorer reads them so; this makes the
    file less than half as large, and it is still one of float32. The same map gives the same bytes.

    Args:
        path: the ``.nii`` or ``.nii.gz`` file to make or replace.
        scores: (X, Y, Z) float32 in [0,1], on the grid of the scan.
        header: the scan's; shape, affine, qform and sform codes and units are taken from it.
        description: up to 79 ASCII characters for the header's ``descrip`` field.

    Raises:
        ValueError: the map is not of the scan's shape.
        OSError: the file cannot be written; nothing is left behind.
    """
    shape = tuple(int(n) for n in header.get_data_shape())
    if scores.shape != shape[:3]:
        raise ValueError(f"map of shape {scores.shape} for a scan of shape {shape}")
    made = header.copy()
    made.set_data_dtype(np.float32)
    made.set_slope_inter(1.0, 0.0)
    made["cal_min"], made["cal_max"] = 0.0, 1.0
    made["descrip"] = description.encode("ascii", "replace")[:79]
    # affine=None keeps the header's own qform and sform, codes and all, even if they are singular
    cls = nib.Nifti2Image if type(header).__name__.startswith("Nifti2") else nib.Nifti1Image
    with LoggingOutputSuppressor():
        nifti = cls(to_half(scores).reshape(shape), None, made)
    nifti.header["pixdim"] = header["pixdim"]  # nibabel mends a spacing of 0, but the scan has it
    write_atomically(path, lambda partial: _save(nifti, partial))


def to_half(scores: NDArray[np.floating]) -> NDArray[np.float16]:
    """Scores of any shape as float16, rounded as ``astype`` does.

    numpy takes 30 times as long for scores below 6e-5, and most of a map's are.
    """
    if scores.dtype != np.float32:
        return scores.astype(np.float16)  # torch would round a float64 twice
    if not scores.flags.writeable or min(scores.strides, default=0) < 0:
        scores = scores.copy(order="K")  # torch warns of the one and refuses the other
    half: NDArray[np.float16] = torch.from_numpy(scores).half().numpy()
    return half


def _save(nifti: Any, path: Path) -> None:
    with path.open("wb") as stream:
        if path.suffix == ".gz":
            # no name and no time inside: the same map gives the same bytes
            with igzip.IGzipFile("", "wb", COMPRESSION_LEVEL, stream, mtime=0) as packed:
                nifti.to_stream(packed)
        else:
            nifti.to_stream(stream)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Make a file so that it is either whole or absent: ``write`` fills a hidden neighbour, which is renamed.

    Raises:
        OSError: as ``write`` or the rename raised it; the hidden neighbour is removed.
    """
    # the end of the name tells the format; all of it might exceed what a file system allows
    handle, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, suffix="-" + path.name[-20:], dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        with contextlib.suppress(OSError):  # some network and FAT mounts allow writing, but not this
            partial.chmod(0o666 & ~UMASK)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
