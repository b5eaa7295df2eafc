"""Normal scans, in [0,1] on their own grid, prepared once and memory-mapped from a cache folder."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track
from scipy import ndimage

from mood_infer.challenge import is_scan
from mood_infer.errors import ScanError, UserError
from mood_infer.grid import Spacing, axes_in_ras
from mood_infer.intensity import QuartileRule, may_be_ct, to_unit
from mood_infer.volume import Array3D, Volume, read_volume, write_atomically
from mood_train.config import RegionConfig
from mood_train.folds import subject_of

CACHE_FORMAT = 4  # raise when what is cached changes
SHAPES_CACHE = {"intensity", "body_above", "body_is_filled"}  # of a region
OPENING = 4.0  # mm; a table hangs on to the body by less than twice this
LATTICE = 4.0  # mm between the voxels that patches are centred on
FINEST = 0.1  # mm; voxels below this are a mistake in the header


@dataclass(frozen=True)
class CachedScan:
    """A scan on its own voxels, cut to the box of those above 0 and a voxel more; beyond it there is only 0.

    From the cache it is memory-mapped; what :func:`binned` makes of it is in memory.

    Attributes:
        name: file name of the scan.
        subject: whom it shows; scans of one subject are never foreign to each other.
        spacing: of the voxels along each axis, in mm.
        image: (X, Y, Z) float16 in [0,1], axes in RAS order.
        body: (X, Y, Z) boolean.
        places: (N, 3) int16 body voxels that patches are centred on, spread evenly.
        tissue: (M, 3) int16 those of them that are no air: foreign patches are cut around these.
        sha256: of the file, in hex.
    """

    name: str
    subject: str
    spacing: Spacing
    image: NDArray[np.float16]
    body: NDArray[np.bool_]
    places: NDArray[np.int16]
    tissue: NDArray[np.int16]
    sha256: str


def list_scans(source: Path) -> list[Path]:
    """The scans of a folder, or of a decathlon-style JSON list (``training``: names or ``image`` entries).

    Raises:
        UserError: there is nothing to train on, a listed file is missing, or two share a name.
    """
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if is_scan(path))
    else:
        try:
            entries = json.loads(source.read_text())["training"]
            names = [entry if isinstance(entry, str) else entry["image"] for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{source}: neither a folder nor a list with a 'training' key; give one of them."
            raise UserError(message) from error
        paths = [source.parent / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: listed in {source.name} but not there; mend the list.")
    if not paths:
        raise UserError(f"{source}: no .nii or .nii.gz scans; give a folder of normal scans.")
    doubled = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    if doubled:
        raise UserError(f"{doubled[0]}: two scans of {source.name} have this name; rename one.")
    return paths


def load_scans(paths: list[Path], place: RegionConfig, cache: Path) -> list[CachedScan]:
    """Prepare scans that are not in the cache yet, one at a time, and memory-map them all.

    Args:
        paths: scans to train on.
        place: intensity rule and body rule.
        cache: folder for the prepared scans: 3 bytes a voxel within the box of the voxels above 0.

    Raises:
        UserError: a scan cannot be read, or does not fit the region.
    """
    cache.mkdir(parents=True, exist_ok=True)
    silent = not get_console().is_terminal
    steps = track(paths, "Preparing scans", transient=True, disable=silent)
    return [_load(path, place, cache) for path in steps]


def data_digest(scans: list[CachedScan]) -> str:
    """sha256 over the scans' names and contents, in the order of the names."""
    lines = sorted(f"{scan.name} {scan.sha256}\n" for scan in scans)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _load(path: Path, place: RegionConfig, cache: Path) -> CachedScan:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    rules = place.model_dump_json(include=SHAPES_CACHE)
    key = hashlib.sha256(f"{CACHE_FORMAT} {sha256} {rules}".encode()).hexdigest()[:24]
    image_file, body_file = cache / f"{key}-image.npy", cache / f"{key}-body.npy"
    places_file = cache / f"{key}-places.npz"
    if not (image_file.exists() and body_file.exists() and places_file.exists()):
        volume = read_volume(path)
        _check_region(path, volume, place)
        whole, spacing = axes_in_ras(to_unit(volume.array, place.intensity), volume.affine)
        if min(spacing) < FINEST:
            raise ScanError(path, f"its voxels are {min(spacing):g} mm wide", "correct the spacing")
        whole = np.clip(whole, 0, 1)
        image, body = _box(whole, body_mask(whole, place, spacing))
        if not body.any():
            raise ScanError(path, "no voxel of it is body", "leave it out of the training data")
        places, tissue = _places(image, body, spacing, place.body_above)
        write_atomically(places_file, lambda file: _save_places(file, places, tissue, spacing))
        write_atomically(body_file, lambda file: _save(file, body))
        write_atomically(image_file, lambda file: _save(file, image.astype(np.float16)))
    body = np.load(body_file, mmap_mode="r")
    image = np.load(image_file, mmap_mode="r")
    with np.load(places_file) as kept:
        x, y, z = kept["spacing"].tolist()
        places, tissue = kept["places"], kept["tissue"]
    return CachedScan(path.name, subject_of(path.name), (x, y, z), image, body, places, tissue, sha256)


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with path.open("wb") as stream:
        np.save(stream, array)


def _save_places(path: Path, places: NDArray[np.int16], tissue: NDArray[np.int16], spacing: Spacing) -> None:
    with path.open("wb") as stream:
        np.savez(stream, places=places, tissue=tissue, spacing=spacing)


def _check_region(path: Path, volume: Volume, place: RegionConfig) -> None:
    if isinstance(place.intensity, QuartileRule) and may_be_ct(volume.array):
        raise ScanError(path, f"reaches {volume.array.min():g}, as only CT does", "give --region abdom")


def body_mask(image: Array3D, place: RegionConfig, spacing: Spacing) -> NDArray[np.bool_]:
    """Which voxels are body, by the region's rule.

    Args:
        image: (X, Y, Z) in [0,1], axes in RAS order.
        place: level, and whether to keep the largest component and fill its holes slice by slice.
        spacing: of the voxels, in mm.

    Returns:
        (X, Y, Z) boolean.
    """
    above = image > place.body_above
    if not place.body_is_filled or not above.any():
        return above
    # opened within the slices, so that the table hangs on by nothing
    labels, _ = ndimage.label(ndimage.binary_opening(above, _disc(spacing)))
    sizes = np.bincount(labels.ravel())[1:]
    largest = labels == 1 + int(sizes.argmax()) if sizes.size else above
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(largest, 2, 0)], axis=2)


def _disc(spacing: Spacing) -> NDArray[np.bool_]:
    """(A, B, 1) an axial disc with a radius of OPENING mm, or of one voxel where that is more."""
    radii = [max(OPENING, step) for step in spacing[:2]]
    lines = [
        np.arange(-int(radius / step), int(radius / step) + 1) * step / radius
        for radius, step in zip(radii, spacing[:2], strict=True)
    ]
    return (np.add.outer(lines[0] ** 2, lines[1] ** 2) <= 1)[:, :, None]


def _box(image: Array3D, body: NDArray[np.bool_]) -> tuple[Array3D, NDArray[np.bool_]]:
    """Image and body cut to the voxels above 0 and one more on each side, where the scan has one."""
    boxes = ndimage.find_objects((image > 0).astype(np.uint8))
    if not boxes:
        return image, body
    box = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in boxes[0])
    return image[box], body[box]


def _places(
    image: NDArray[np.floating], body: NDArray[np.bool_], spacing: Spacing, air: float
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Body voxels on a lattice of about LATTICE mm (every one if that leaves none); those above ``air``."""
    x, y, z = voxels(LATTICE, spacing)
    places = np.argwhere(body[::x, ::y, ::z]) * (x, y, z)
    places = (places if len(places) else np.argwhere(body)).astype(np.int16)
    tissue = places[image[tuple(places.T)] > air]
    return places, tissue if len(tissue) else places


def binned(scan: CachedScan, count: int, air: float) -> CachedScan:
    """The scan with ``count`` x ``count`` voxels of a slice averaged into one; voxels left over are dropped.

    Args:
        scan: any.
        count: 1 or more; 1 leaves the scan as it is.
        air: intensity in [0,1] up to which a voxel is no tissue.

    Raises:
        UserError: so few voxels have no body left.
    """
    if count == 1:
        return scan
    image, body = _binned(scan.image, count), _binned(scan.body, count) >= 0.5
    if not body.any():
        raise UserError(
            f"{scan.name}: too small for bins of {count} x {count} voxels; leave that out of bins."
        )
    x, y, z = scan.spacing
    spacing = (count * x, count * y, z)
    places, tissue = _places(image, body, spacing, air)
    return replace(
        scan, spacing=spacing, image=image.astype(np.float16), body=body, places=places, tissue=tissue
    )


def _binned(array: NDArray[np.generic], count: int) -> Array3D:
    x, y, z = array.shape[0] // count, array.shape[1] // count, array.shape[2]
    blocks = array[: x * count, : y * count].reshape(x, count, y, count, z)
    return np.asarray(blocks.mean((1, 3), dtype=np.float32))


def draw_centre(scan: CachedScan, rng: np.random.Generator) -> NDArray[np.int64]:
    """(3,) a random body voxel."""
    return scan.places[int(rng.integers(len(scan.places)))].astype(np.int64)


def draw_tissue(scan: CachedScan, rng: np.random.Generator) -> NDArray[np.int64]:
    """(3,) a random body voxel that is no air."""
    return scan.tissue[int(rng.integers(len(scan.tissue)))].astype(np.int64)


def cut(array: NDArray[np.generic], centre: NDArray[np.int64], shape: Sequence[int]) -> Array3D:
    """A box of ``shape`` voxels around ``centre``, 0 where it leaves the array.

    Returns:
        float32 of ``shape``, a copy.
    """
    start = centre - np.array(shape) // 2
    low = np.maximum(start, 0)
    high = np.minimum(start + shape, array.shape)
    box = np.zeros(tuple(shape), dtype=np.float32)
    if (high <= low).any():
        return box
    a, b = low - start, high - start
    box[a[0] : b[0], a[1] : b[1], a[2] : b[2]] = array[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return box


def cut_to_edge(array: NDArray[np.generic], centre: NDArray[np.int64], shape: Sequence[int]) -> Array3D:
    """As :func:`cut`, but where the box leaves the array its outermost voxels go on."""
    lines = [
        np.clip(np.arange(c - n // 2, c - n // 2 + n), 0, length - 1)
        for c, n, length in zip(centre, shape, array.shape, strict=True)
    ]
    return array[np.ix_(*lines)].astype(np.float32)


def voxels(size: float, spacing: Spacing) -> tuple[int, int, int]:
    """How many voxels a side of ``size`` mm takes along each axis, at least one."""
    x, y, z = (max(1, round(size / step)) for step in spacing)
    return x, y, z
