"""Pictures for people: three planes through the worst voxel of a scan, and a record of the run."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mood_infer import __version__
from mood_infer.errors import UserError
from mood_infer.grid import Grid
from mood_infer.predictor import AnomalyMap, Predictor
from mood_infer.volume import Array3D, write_atomically

if TYPE_CHECKING:
    from mood_infer.job import Outcome

RECORDED_PACKAGES = ("torch", "monai", "nibabel", "numpy", "scipy", "safetensors")
HEAT = "inferno"
# name, the axis looked along, and what lies at the left, right, bottom and top of the picture
PLANES = (("axial", 2, "LRPA"), ("coronal", 1, "LRIS"), ("sagittal", 0, "PAIS"))


def draw(image: Array3D, scores: Array3D, grid: Grid, title: str, sample_score: float) -> bytes:
    """Draw axial, coronal and sagittal planes through the voxel with the highest score.

    The convention is neurological: the patient's right is on the right. Colours always span [0,1], and the
    overlay is as opaque as the score is high, so pictures of different scans compare.

    Args:
        image: (X, Y, Z) in [0,1], axes in RAS order.
        scores: (X, Y, Z) in [0,1] on the same grid.
        grid: that grid.
        title: usually the file's name.
        sample_score: of the whole scan, in [0,1].

    Returns:
        A PNG file.

    Raises:
        UserError: matplotlib is missing or does not work.
    """
    if problem := why_no_pictures():
        raise UserError(problem)
    # the figure is drawn without pyplot, whose state is global and whose backend may want a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    peak = tuple(int(n) for n in np.unravel_index(int(scores.argmax()), scores.shape))
    right, anterior, superior = (grid.affine @ [*peak, 1])[:3]
    figure = Figure(figsize=(13, 5), layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    for panel, (name, axis, ends) in zip(axes, PLANES, strict=True):
        grey, heat = (np.take(array, peak[axis], axis).T for array in (image, scores))
        across, up = (n for n in range(3) if n != axis)
        aspect = grid.spacing[up] / grid.spacing[across]
        panel.imshow(grey, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect)
        panel.imshow(
            heat, cmap=HEAT, vmin=0, vmax=1, alpha=np.clip(heat, 0, 1), origin="lower", aspect=aspect
        )
        panel.axvline(peak[across], color="cyan", linewidth=0.6, alpha=0.7)
        panel.axhline(peak[up], color="cyan", linewidth=0.6, alpha=0.7)
        panel.set(xticks=[], yticks=[], title=name)
        for letter, (x, y) in zip(ends, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.03), (0.5, 0.97)), strict=True):
            panel.text(x, y, letter, color="white", ha="center", va="center", transform=panel.transAxes)
    colours = ScalarMappable(cmap=HEAT)
    colours.set_clim(0, 1)
    figure.colorbar(colours, ax=axes, label="anomaly score", shrink=0.8)
    place = f"R {right:.0f}, A {anterior:.0f}, S {superior:.0f} mm"
    text = f"{title}\nsample score {sample_score:.3f}, highest voxel {scores[peak]:.3f} at {place}"
    figure.suptitle(text, parse_math=False)  # a dollar in a file name is no formula
    figure.supxlabel("neurological convention: the patient's right is on the right", fontsize="small")
    stream = BytesIO()
    canvas.print_png(stream)
    return stream.getvalue()


def why_no_pictures() -> str | None:
    """What keeps pictures from being drawn here, and what to do about it; None if nothing does."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "pictures need matplotlib; install it (scripts/setup.sh demo)."
    except OSError:
        return "matplotlib finds no folder to write to; set MPLCONFIGDIR to one."
    return None


@dataclass(frozen=True)
class Report:
    """A folder with ``run.json``, the record of the run, and, where matplotlib works, a picture of each scan.

    Attributes:
        folder: made if it is missing.
        settings: what the run was asked to do, for the record.
        record_name: file of the record; one of its own for each of many processes.
        draws: whether pictures are made.
        before: of each record that was there, by its name: the weights' digest, and the entries by scan.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    record_name: str = "run.json"
    draws: bool = True
    before: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def open(self) -> "Report":
        """Make the folder, and read what records in it say: of several processes each has its own.

        Raises:
            UserError: that is not possible.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.before.update({path.name: _entries(path) for path in self.folder.glob("run*.json")})
        except OSError as error:
            raise UserError(
                f"{self.folder}: {error.strerror}; give a report folder that can be made."
            ) from error
        return self

    def add(self, scan: Path, anomalies: AnomalyMap) -> None:
        """Write the picture of one scan, ``<scan name>.png``, if pictures are made.

        Raises:
            OSError: it cannot be written.
        """
        if not self.draws:
            return
        picture = draw(anomalies.image, anomalies.working, anomalies.grid, scan.name, anomalies.sample_score)
        path = self.folder / f"{scan.name}.png"
        write_atomically(path, lambda partial: _write(partial, picture))

    def record(self, predictor: Predictor, scans: Sequence[Path], outcomes: Sequence["Outcome"]) -> None:
        """Write the record: settings, versions, weights, and what became of each scan.

        What this record, of the same weights, said of scans not reached now stays, and what any of the
        folder's said of scans that were skipped, as long as their outputs are those it spoke of.

        Args:
            predictor: that scored them.
            scans: all of the run.
            outcomes: of those that it has come to.

        Raises:
            UserError: it cannot be written.
        """
        path = self.folder / self.record_name
        now, entries = {str(outcome.scan): outcome for outcome in outcomes}, []
        for scan in map(str, scans):
            outcome = now.get(scan)
            if outcome is None:
                entry = self._said(scan, predictor.digest, [self.record_name], {})
            else:
                entry = asdict(outcome) | {"scan": scan}
                names = [self.record_name, *self.before] if outcome.state == "skipped" else []
                if said := self._said(scan, predictor.digest, names, outcome.outputs):
                    entry = said | {"state": outcome.state}
            if entry is not None:
                entries.append(entry)
        record = {
            "settings": self.settings,
            "versions": {"mood-infer": __version__, "python": platform.python_version()} | _versions(),
            "weights": {"digest": predictor.digest, **predictor.manifest.model_dump(mode="json")},
            "device": predictor.device,
            "precision": predictor.precision,
            "scans": entries,
        }
        content = (json.dumps(record, indent=1) + "\n").encode()
        try:
            write_atomically(path, lambda partial: _write(partial, content))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); give another report folder."
            ) from error

    def _said(
        self, scan: str, digest: str, names: Sequence[str], outputs: dict[str, int]
    ) -> dict[str, Any] | None:
        """What the first record of these names that knows a scan, with these outputs, said of it."""
        for name in names:
            made_by, entries = self.before.get(name, ("", {}))
            if made_by == digest and scan in entries and _stands(entries[scan], outputs):
                return dict(entries[scan])
        return None


def _entries(path: Path) -> tuple[str, dict[str, Any]]:
    """Of what weights a record is, and what it says of each scan; nothing where it is damaged."""
    try:
        record = json.loads(path.read_text())
        return record["weights"]["digest"], {entry["scan"]: entry for entry in record["scans"]}
    except (OSError, ValueError, LookupError, TypeError):
        return "", {}


def _stands(entry: Any, outputs: dict[str, int]) -> bool:
    """Whether an entry says what was done, speaks of some outputs, and all that it speaks of are the same."""
    try:
        known = entry["outputs"].items()
        said = bool(entry["members"]) and outputs.items() <= known
        return said and all(Path(path).stat().st_mtime_ns == at for path, at in known)
    except (OSError, LookupError, TypeError, AttributeError):
        return False


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
