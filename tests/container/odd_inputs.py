"""Every kind of file the container is judged on, and what it must say of each."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (40, 36, 30)
STEP = 0.001  # the body's values are multiples of it, so that integers with a slope can hold them


@dataclass(frozen=True)
class Odd:
    """A file and what becomes of it.

    Attributes:
        name: of the file.
        what: the words for it in docs/container.md.
        make: writes it.
        message: what standard error says of it, as docs/container.md quotes it; None: only that it is done.
        alike: whether its map must be that of the plain scan.
    """

    name: str
    what: str
    make: Callable[[Path], None]
    message: str | None = None
    alike: bool = False


def body() -> NDArray[np.float64]:
    """SHAPE, a textured ellipsoid in black air, in [0,1]."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    texture = np.random.default_rng(0).integers(300, 700, SHAPE) * STEP
    return np.where((place**2).sum(axis=0) < 0.8, texture, 0)


def save(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> None:
    """Write a NIfTI file; 1 mm without an affine."""
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def _plain(path: Path) -> None:
    save(path, body().astype(np.float32))


def _not_finite(path: Path) -> None:
    array = body().astype(np.float32)
    array[20, 18, 15:18] = np.nan, np.inf, -np.inf
    save(path, array)


def _all_nan(path: Path) -> None:
    save(path, np.full(SHAPE, np.nan, np.float32))


def _constant(path: Path) -> None:
    save(path, np.full(SHAPE, 0.5, np.float32))


def _one_voxel(path: Path) -> None:
    save(path, np.full((1, 1, 1), 0.5, np.float32))


def _raw(path: Path, array: NDArray[Any], change: Callable[[Any], None]) -> None:
    """Write header and voxels byte by byte, for headers that nibabel would mend."""
    header = nib.Nifti1Image(array, np.eye(4)).header.copy()
    header["vox_offset"], header["magic"] = 352, b"n+1"
    change(header)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + array.tobytes(order="F"), 1))


def _zero_pixdim(path: Path) -> None:
    def change(header: Any) -> None:
        header["pixdim"][1:4] = 0

    _raw(path, body().astype(np.float32), change)


def _singular(path: Path) -> None:
    def change(header: Any) -> None:
        header["srow_z"] = 0

    _raw(path, body().astype(np.float32), change)


def _sloped(path: Path) -> None:
    def change(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = STEP, 0

    _raw(path, np.rint(body() / STEP).astype(np.int16), change)


def _oblique(path: Path) -> None:
    turn = np.deg2rad(25)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, 3] = -12, 30, 7
    save(path, body().astype(np.float32), affine)


def _big_endian(path: Path) -> None:
    image = nib.Nifti1Image(body(), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(np.dtype(">f8"))
    nib.save(image, path)
    assert nib.load(path).header["bitpix"].dtype.byteorder == ">"


def _thick(path: Path) -> None:
    save(path, body()[:, :, ::5].astype(np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))


def _extra_axis(path: Path) -> None:
    save(path, body().astype(np.float32)[..., None])


def _large(path: Path) -> None:
    array = np.zeros((256, 256, 256), np.float32)
    array[108:148, 110:146, 113:143] = body()
    save(path, array)


def _unstripped(path: Path) -> None:
    save(path, (body() + 0.1).astype(np.float32))


def _below_zero(path: Path) -> None:
    array = body()
    save(path, np.where(array > 0, 8 * array - 4, 0).astype(np.float32))


def _ct(path: Path) -> None:
    save(path, np.rint(2000 * body() - 1000).astype(np.int16))


READABLE = (
    Odd("plain.nii.gz", "a scan in .nii.gz", _plain),
    Odd("uncompressed.nii", "one in .nii", _plain, alike=True),
    Odd("with spaces in it.nii.gz", "a name with spaces", _plain, alike=True),
    Odd("Schädel-脳-мозг.nii.gz", "a name with unicode", _plain, alike=True),
    Odd(
        "not-finite.nii.gz",
        "NaN and Inf voxels",
        _not_finite,
        "3 voxels were not finite and were taken as 0",
    ),
    Odd("all-nan.nii.gz", "nothing but NaN", _all_nan, "all voxels have the value 0"),
    Odd("constant.nii.gz", "a constant volume", _constant, "all voxels have the value 0.5"),
    Odd(
        "one-voxel.nii.gz",
        "a 1x1x1 volume",
        _one_voxel,
        "only 1 mm along one axis: the spacing may be wrong",
    ),
    Odd(
        "zero-pixdim.nii.gz",
        "a zero pixdim",
        _zero_pixdim,
        "the stored spacing is 0 x 0 x 0 mm; the affine was used as it is",
        alike=True,
    ),
    Odd(
        "singular.nii.gz",
        "a singular affine",
        _singular,
        "the affine is singular; 1 x 1 x 1 mm along the stored axes was used",
        alike=True,
    ),
    Odd("oblique.nii.gz", "an oblique affine", _oblique),
    Odd("sloped.nii.gz", "int16 with a slope", _sloped, alike=True),
    Odd("big-endian.nii.gz", "big-endian float64", _big_endian, alike=True),
    Odd(
        "thick.nii.gz",
        "5 mm slices",
        _thick,
        "voxels are up to 5 mm long, the networks know 1 mm",
    ),
    Odd("extra-axis.nii.gz", "a fourth axis of length 1", _extra_axis, alike=True),
    Odd("large.nii.gz", "256x256x256 in [0,1]", _large),
    Odd(
        "unstripped.nii.gz",
        "a brain without a background of 0",
        _unstripped,
        "hardly a voxel is 0; these weights know whole brains on a background of 0",
    ),
    Odd(
        "below-zero.nii.gz",
        "a brain with a mean of 0",
        _below_zero,
        "16% of the voxels are below 0 and were taken for background, not for tissue",
    ),
    Odd(
        "ct.nii.gz",
        "a CT for the brain's weights",
        _ct,
        "much of it lies far below 0, as in CT; these weights know brain MR",
    ),
)


def _broken_gzip(path: Path) -> None:
    _plain(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    _plain(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _text(path: Path) -> None:
    path.write_text("The scan of this case could not be exported.\n")


def _empty(path: Path) -> None:
    path.touch()


def _flat(path: Path) -> None:
    save(path, body()[:, :, 15].astype(np.float32))


def _moving(path: Path) -> None:
    save(path, np.stack([body()] * 3, axis=-1).astype(np.float32))


def _coloured(path: Path) -> None:
    colours = np.dtype([("R", np.uint8), ("G", np.uint8), ("B", np.uint8)])
    save(path, np.zeros(SHAPE, colours))


DAMAGED = "the voxel data is damaged or cut short; copy the file again."
NOT_NIFTI = "not a readable NIfTI file; convert it to .nii.gz or remove it."
UNREADABLE = (
    Odd("broken-gzip.nii.gz", "a broken gzip stream", _broken_gzip, DAMAGED),
    Odd("cut-short.nii.gz", "a file cut short", _cut_short, DAMAGED),
    Odd("text.nii.gz", "text called .nii.gz", _text, NOT_NIFTI),
    Odd("empty.nii.gz", "an empty file", _empty, NOT_NIFTI),
    Odd(
        "flat.nii.gz",
        "a 2D image",
        _flat,
        "has shape (40, 36), not that of one 3D scan; give one 3D volume a file.",
    ),
    Odd(
        "moving.nii.gz",
        "a 4D one",
        _moving,
        "has shape (40, 36, 30, 3), not that of one 3D scan; give one 3D volume a file.",
    ),
    Odd("coloured.nii.gz", "an RGB one", _coloured, "not one real number each; convert it to grey values."),
)
