"""Makes a validation set from normal scans, in the folder layout of the challenge (paper, table 1).

    OUT/<region>/toy/case_001.nii.gz                     the scans, float32 in [0,1], true affines
    OUT/<region>/toy_label/pixel/case_001.nii.gz         uint8, 1 inside the anomaly
    OUT/<region>/toy_label/sample/case_001.nii.gz.txt    1 if there is an anomaly
    OUT/<region>/index.json, index.csv                   what is in each case

File names tell nothing about their content, so that any container can be judged.
"""

import csv
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mood_eval.anomalies import Anomaly, Kind, make_anomaly
from mood_eval.body import body_mask
from mood_eval.sites import Scan
from mood_eval.unseen import UnseenKind, make_unseen, unseen_kinds
from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.grid import Grid
from mood_infer.intensity import CurveRule, IntensityRule, QuartileRule, to_unit
from mood_infer.preparation import prepare, scan_grid
from mood_infer.volume import Volume, read_volume, write_atomically

Family = Literal["healthy", "seen", "unseen"]
HEALTHY = "healthy"
PAPER_HEALTHY, PAPER_EACH = 50, 30
INDEX_NAME = "index.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Record):
    """One case of a set; places and sizes are None in healthy ones.

    Attributes:
        name: of the image and label files.
        kind: type of the anomaly, or healthy.
        family: healthy, seen (the paper's types) or unseen.
        source: file name of the normal scan.
        number: with the set's seed, what the randomness was drawn from.
        centre_voxel: of the sphere or slab, index into the image.
        centre_mm: the same in world coordinates.
        radius_mm: of the sphere; half the thickness of a slab.
        sign: +1 brighter or pushed out, -1 darker or pulled in, 0 neither.
        detail: what else was drawn.
        voxels: in the label.
        volume_ml: of the label.
    """

    name: str
    kind: str
    family: Family
    source: str
    number: int
    centre_voxel: tuple[int, int, int] | None = None
    centre_mm: tuple[float, float, float] | None = None
    radius_mm: float | None = None
    sign: int = 0
    detail: str = ""
    voxels: int = 0
    volume_ml: float = 0.0


class Index(_Record):
    """What a set is and what is in it; every case can be made again from this and the scans.

    Attributes:
        region: brain or abdom.
        seed: of all randomness.
        spacing: of the isotropic grid in mm, or None if the scans kept their own.
        intensity: rule that took the scans to [0,1].
        healthy_repeats: whether a scan may serve as more than one healthy case.
        cases: in the order of their names.
    """

    region: Region
    seed: int
    spacing: float | None
    intensity: IntensityRule
    healthy_repeats: bool
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, recipe: "Recipe", cases: Iterable[Case]) -> "Index":
        """The index of cases made by a recipe."""
        return cls(
            region=recipe.region,
            seed=recipe.seed,
            spacing=recipe.spacing,
            intensity=recipe.intensity,
            healthy_repeats=recipe.repeat_healthy,
            cases=tuple(sorted(cases, key=lambda case: case.name)),
        )


@dataclass(frozen=True)
class Made:
    """A case with its arrays.

    Attributes:
        case: the index's entry.
        image: the scan with the anomaly, (X, Y, Z) float32 in [0,1]; maps can be written like it.
        label: (X, Y, Z) bool.
    """

    case: Case
    image: Volume
    label: NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe:
    """How to make a set.

    Attributes:
        region: brain or abdom.
        seed: of all randomness.
        counts: cases per type, :data:`HEALTHY` among them.
        spacing: isotropic working grid in mm, or None to leave each scan on its own.
        repeat_healthy: whether a scan may serve as more than one healthy case.
    """

    region: Region
    seed: int
    counts: dict[str, int]
    spacing: float | None = None
    repeat_healthy: bool = False

    @property
    def intensity(self) -> QuartileRule | CurveRule:
        """The region's default rule; scans in [0,1] pass it untouched."""
        return default_rule(self.region)


def default_rule(region: Region) -> QuartileRule | CurveRule:
    """The rule that takes a region's raw scans to [0,1]."""
    return QuartileRule() if region is Region.BRAIN else CurveRule()


def default_counts(
    region: Region,
    family: Literal["seen", "unseen", "both"] = "seen",
    healthy: int = PAPER_HEALTHY,
    each: int = PAPER_EACH,
) -> dict[str, int]:
    """Cases per type; by default the paper's table 1."""
    kinds: list[str] = [] if family == "unseen" else list(Kind)
    kinds += [] if family == "seen" else unseen_kinds(region)
    return {HEALTHY: healthy} | {str(kind): each for kind in kinds}


def one_each(
    region: Region,
    seed: int,
    family: Literal["seen", "unseen", "both"],
    scans: int,
    each: int | None = None,
    spacing: float | None = None,
) -> Recipe:
    """One healthy case for each of ``scans`` scans, and as many of each type, or ``each``."""
    return Recipe(region, seed, default_counts(region, family, scans, each or scans), spacing)


def plan_cases(scans: list[Path], recipe: Recipe) -> list[tuple[Path, Case]]:
    """Which scan becomes which case: each type goes round all scans before one serves twice.

    Raises:
        UserError: there are no scans, or fewer than healthy cases and repeats were not allowed.
    """
    if not scans:
        raise UserError("no .nii or .nii.gz file there; give a folder of normal scans.")
    healthy = recipe.counts.get(HEALTHY, 0)
    if healthy > len(scans) and not recipe.repeat_healthy:
        raise UserError(
            f"{healthy} healthy cases from {len(scans)} scans would repeat some; "
            f"ask for {len(scans)} or fewer, or allow repeats (--repeat-healthy)."
        )
    rng = np.random.default_rng(recipe.seed)
    pairs = []
    for kind, count in recipe.counts.items():
        rounds = [rng.permutation(len(scans)) for _ in range(-(-count // len(scans)))]
        pairs += [(scans[index], kind) for index in [i for order in rounds for i in order][:count]]
    digits = max(3, len(str(len(pairs))))
    plan = []
    for number, place in enumerate(rng.permutation(len(pairs)), start=1):
        path, kind = pairs[place]
        name = f"case_{number:0{digits}d}.nii.gz"
        plan.append((path, Case(name=name, kind=kind, family=_family(kind), source=path.name, number=number)))
    return plan


def _family(kind: str) -> Family:
    if kind == HEALTHY:
        return "healthy"
    return "seen" if kind in list(Kind) else "unseen"


def make_cases(source: Path, cases: list[Case], recipe: Recipe) -> Iterator[Made]:
    """Read one scan and make its cases, one after the other.

    Raises:
        ScanError: the scan cannot be read.
        UserError: it has no body where the anomalies go.
    """
    volume = read_volume(source)
    if recipe.spacing is None:
        array, grid = to_unit(volume.array, recipe.intensity), scan_grid(volume)
    else:
        array, grid = prepare(volume, recipe.intensity, recipe.spacing)
    axes = nib.io_orientation(grid.affine)[:, 0].tolist()
    axial = axes.index(2)
    body = body_mask(array, recipe.region, grid.spacing, axial)
    scan = Scan(array, body, grid.spacing, axes.index(0), axial)
    header = _header(volume if recipe.spacing is None else None, grid)
    for case in cases:
        rng = np.random.default_rng([recipe.seed, case.number])
        try:
            yield _make(scan, grid, header, case, rng)
        except UserError as error:
            raise UserError(f"{source.name}: {error}") from error


def _make(scan: Scan, grid: Grid, header: Any, case: Case, rng: np.random.Generator) -> Made:
    if case.kind == HEALTHY:
        return Made(case, Volume(scan.array, grid.affine, header), np.zeros(scan.array.shape, bool))
    anomaly: Anomaly
    if case.family == "seen":
        anomaly = make_anomaly(scan, Kind(case.kind), rng)
    else:
        anomaly = make_unseen(scan, UnseenKind(case.kind), rng)
    x, y, z = (float(n) for n in (grid.affine @ [*anomaly.centre, 1])[:3])
    voxels = int(anomaly.label.sum())
    drawn = case.model_copy(
        update={
            "centre_voxel": anomaly.centre,
            "centre_mm": (x, y, z),
            "radius_mm": anomaly.radius,
            "sign": anomaly.sign,
            "detail": anomaly.detail,
            "voxels": voxels,
            "volume_ml": voxels * float(np.prod(scan.spacing)) / 1000,
        }
    )
    return Made(drawn, Volume(anomaly.image, grid.affine, header), anomaly.label)


def _header(like: Volume | None, grid: Grid) -> Any:
    """The scan's own header, codes and all, or a new one for another grid; for float32 without scaling."""
    if like is None:
        return nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine).header
    header = like.header.copy()
    header.set_slope_inter(1.0, 0.0)
    header.set_data_shape(grid.shape)
    return header


def make_set(scans: list[Path], out: Path, recipe: Recipe, workers: int = 2) -> Index:
    """Make a set and write it to ``out/<region>``.

    Args:
        scans: normal scans, none of which any network was trained on.
        out: the folder; it is made where it is missing.
        recipe: what to make.
        workers: scans worked on at the same time.

    Raises:
        ScanError: a scan cannot be read.
        UserError: there is a set already, or the recipe does not fit the scans.
    """
    folder = out / recipe.region
    if (folder / INDEX_NAME).exists():
        raise UserError(f"{folder}: holds a validation set already; remove it or choose another folder.")
    plan = plan_cases(scans, recipe)
    for part in ("toy", "toy_label/pixel", "toy_label/sample"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def work(source: Path) -> list[Case]:
        cases = [case for path, case in plan if path == source]
        return [_write(folder, made) for made in make_cases(source, cases, recipe)]

    with ThreadPoolExecutor(workers) as pool:
        done = [case for part in pool.map(work, scans) for case in part]
    index = Index.of(recipe, done)
    _write_table(folder / "index.csv", index)
    # last, so that an index means a whole set
    text = index.model_dump_json(indent=1) + "\n"
    write_atomically(folder / INDEX_NAME, lambda path: path.write_text(text))
    return index


def _write(folder: Path, made: Made) -> Case:
    name, header = made.case.name, made.image.header
    _write_image(folder / "toy" / name, made.image.array, header)
    _write_image(folder / "toy_label" / "pixel" / name, made.label.astype(np.uint8), header)
    target = folder / "toy_label" / "sample" / f"{name}.txt"
    write_atomically(target, lambda path: path.write_text(f"{int(made.case.kind != HEALTHY)}\n"))
    return made.case


def _write_image(path: Path, array: NDArray[Any], like: Any) -> None:
    header = like.copy()
    header.set_data_dtype(array.dtype)
    cls = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    write_atomically(path, lambda partial: nib.save(cls(array, None, header), partial))


def _write_table(path: Path, index: Index) -> None:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(Case.model_fields)
        for case in index.cases:
            values = case.model_dump().values()
            table.writerow([" ".join(map(str, v)) if isinstance(v, tuple) else v for v in values])


def read_index(path: Path) -> Index:
    """Read an index.

    Raises:
        UserError: it cannot be read or is not valid.
    """
    try:
        return Index.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read; give the index.json of mood-eval make-set.") from error
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "file"
        raise UserError(f"{path}: {field}: {error.errors()[0]['msg']}; make the set again.") from error
