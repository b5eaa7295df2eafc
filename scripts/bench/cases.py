"""What is timed: the sample scans on grids of many sizes, ensembles of many members; how far maps differ."""

import itertools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from mood_infer.challenge import Region
from mood_infer.intensity import QuartileRule, to_unit
from mood_infer.network import NetworkConfig, build_network
from mood_infer.volume import Array3D, read_volume
from mood_infer.weights import find_weights, read_manifest, save_member, write_manifest

ROOT = Path(__file__).parents[2]
REFERENCE_WIDTHS = (32, 64, 128, 256, 320, 320)  # of the preset `reference`, as its window
REFERENCE_WINDOW = 160


@dataclass(frozen=True)
class Size:
    """A grid: a CT where its spacing is given, else a brain at 1 mm.

    Attributes:
        shape: voxels along each axis.
        spacing: of the CT, in mm; None for the brain.
    """

    shape: tuple[int, int, int]
    spacing: float | None

    @classmethod
    def parse(cls, text: str) -> "Size":
        """From ``256``, ``160x180x150`` or ``512x512x400@0.75``."""
        found = re.fullmatch(r"(\d+)(?:x(\d+)x(\d+))?(?:@([\d.]+))?", text)
        if found is None:
            raise ValueError(f"{text}: not a size like 256, 160x180x150 or 512x512x400@0.75")
        x, y, z, spacing = found.groups()
        shape = (int(x), int(y or x), int(z or x))
        return cls(shape, None if spacing is None else float(spacing))

    @property
    def region(self) -> Region:
        """What the scan shows."""
        return Region.BRAIN if self.spacing is None else Region.ABDOM

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape} brain" if self.spacing is None else f"{shape} CT at {self.spacing:g} mm"


@dataclass(frozen=True)
class Case:
    """What is timed together: a scan and an ensemble, and whether the peer, which takes longest, is too."""

    size: Size
    members: int
    preset: str = "compact"
    with_peer: bool = True


SMALL, LARGE, CT = map(Size.parse, ("160x180x150", "256", "512x512x400@0.75"))
MEMBERS = (1, 2, 10)
README = (
    *(Case(size, members) for size in (LARGE, SMALL) for members in MEMBERS),
    Case(SMALL, 1, "reference"),
    Case(CT, 1),
    Case(CT, 10, with_peer=False),  # the peer's ten take as long as the rest of the table
)


def choose_cases(
    quick: bool,
    sizes: Sequence[Size] | None,
    members: Sequence[int] | None,
    preset: str | None,
    peer_members: int,
) -> Sequence[Case]:
    """What the options ask for; those of the README's table where they ask for nothing."""
    if not (quick or sizes or members or preset):
        limited = ((case, case.with_peer and case.members <= peer_members) for case in README)
        return [replace(case, with_peer=with_peer) for case, with_peer in limited]
    return [
        Case(size, count, preset or "compact", count <= peer_members)
        for size in sizes or ((SMALL,) if quick else (LARGE, SMALL, CT))
        for count in members or (MEMBERS[:2] if quick else MEMBERS)
    ]


def make_scan(path: Path, size: Size) -> None:
    """Write the sample brain (in [0,1], 1 mm) or abdomen (HU, resampled), cut or padded about its middle."""
    if size.spacing is None:
        volume = read_volume(ROOT / "samples/brain/colin27.nii.gz")
        array = to_unit(volume.array, QuartileRule())
    else:
        volume = read_volume(ROOT / "samples/abdom/totalseg3mm.nii.gz")
        scale = float(np.linalg.norm(volume.affine[:3, 0])) / size.spacing
        tensor = torch.from_numpy(volume.array)[None, None]
        array = functional.interpolate(tensor, scale_factor=scale, mode="trilinear")[0, 0].numpy().round()
    affine = np.diag([*[size.spacing or 1.0] * 3, 1.0])
    kind = np.float32 if size.spacing is None else np.int16
    nib.save(nib.Nifti1Image(fit(array, size.shape).astype(kind), affine), path)


def fit(array: Array3D, shape: tuple[int, int, int]) -> Array3D:
    """Cut (X, Y, Z) to a shape, or pad it with its lowest value, about the middle."""
    excess = [max(0, n - m) // 2 for n, m in zip(array.shape, shape, strict=True)]
    cut = array[tuple(slice(e, e + m) for e, m in zip(excess, shape, strict=True))]
    missing = [m - n for n, m in zip(cut.shape, shape, strict=True)]
    return np.pad(cut, [(m // 2, m - m // 2) for m in missing], constant_values=array.min())


def correlation(one: Path, other: Path) -> float:
    """Pearson's, of two maps on one grid, over all voxels."""
    maps = (nib.load(path).get_fdata(dtype=np.float32).ravel() for path in (one, other))
    return float(np.corrcoef(*maps)[0, 1])


def make_weights(folder: Path, region: Region, members: int, preset: str) -> None:
    """Write ``members`` networks to ``folder/<region>``.

    Those of ``compact`` are the shipped ones, repeated where there are too few; those of ``reference`` are
    random, which takes the same time.
    """
    source = find_weights(region)
    manifest = read_manifest(source)
    target = folder / region
    target.mkdir(parents=True)
    made = []
    for number, member in zip(range(members), itertools.cycle(manifest.members), strict=False):
        name = f"member{number}.safetensors"
        if preset == "compact":
            shutil.copy(source / member.file, target / name)
            made.append(member.model_copy(update={"file": name}))
        else:
            sha256 = save_member(target / name, build_network(NetworkConfig(widths=REFERENCE_WIDTHS)))
            made.append(member.model_copy(update={"file": name, "sha256": sha256, "preset": preset}))
    manifest = manifest.with_members(tuple(made))
    if preset == "reference":
        network = NetworkConfig(widths=REFERENCE_WIDTHS)
        changes = {"network": network, "window": REFERENCE_WINDOW, "spacing": 1.0, "upsample": True}
        manifest = manifest.model_copy(update=changes)
    write_manifest(target, manifest)
