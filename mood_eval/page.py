"""One self-contained HTML page about a method: curve, bars, and the cases it got most wrong."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mood_eval.average_precision import ScoreCounts, code_values, merge, precision_recall
from mood_eval.scoring import Predictions, read_label, read_scores
from mood_eval.summary import Judged, Summary
from mood_eval.validation_set import Index
from mood_infer.errors import ScanError
from mood_infer.preparation import scan_grid
from mood_infer.volume import Array3D, read_volume

matplotlib.use("Agg")

WORST = 4
TOP = 100
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
 table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .8rem; text-align: left; }
 td + td { font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #ddd; }
 img { max-width: 100%; } .warning { color: #a40000; } figure { margin: 1rem 0; }
</style></head><body>
<h1>{{ title }}</h1>
{% for warning in warnings %}<p class="warning">{{ warning }}</p>
{% endfor %}
<table>{% for name, value in numbers %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for caption, png in figures %}<figure><figcaption>{{ caption }}</figcaption>
<img alt="{{ caption }}" src="data:image/png;base64,{{ png }}"></figure>
{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Sources:
    """Where the pictures' files lie.

    Attributes:
        predictions: the method's maps.
        labels: the ``toy_label`` folder.
        images: the ``toy`` folder; without it pictures show the map alone.
    """

    predictions: Predictions
    labels: Path
    images: Path | None


def render_page(
    title: str, summary: Summary, judged: Sequence[Judged], sources: Sources, index: Index | None
) -> str:
    """The page as HTML, its pictures inside it.

    Args:
        title: of the page.
        summary: the numbers.
        judged: the cases.
        sources: where pictures come from.
        index: names the types in captions.
    """
    figures = []
    curves = _curves(judged, index)
    if curves:
        figures.append(("Precision and recall of the voxels", _png(_curve_figure(curves))))
    if summary.per_type:
        figures.append(("Pixel average precision by type", _png(_bars(summary))))
    if sources.predictions.maps is not None:
        for heading, one in worst_cases(judged):
            figures.append(
                (f"{heading}: {_describe(one.name, index)}", _png(_picture(one, sources, heading)))
            )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        title=title, warnings=summary.warnings, numbers=table_rows(summary), figures=figures
    )


def table_rows(summary: Summary) -> list[tuple[str, str]]:
    """Names and values of the numbers, for a table; those of the unseen family last."""
    rows = [("cases", str(summary.cases))]
    for name, value, spread in (
        ("pixel AP", summary.pixel_ap, summary.pixel_interval),
        ("sample AP", summary.sample_ap, summary.sample_interval),
    ):
        if value is not None:
            text = f" (95 % interval {spread.low:.3f} to {spread.high:.3f})" if spread else ""
            rows.append((name, f"{value:.3f}{text}"))
    if summary.dice is not None:
        rows += [
            ("voxel AUROC", _number(summary.auroc)),
            ("best Dice", f"{summary.dice:.3f} at {_number(summary.dice_threshold)}"),
        ]
    rows += [(f"pixel AP, {kind}", f"{value:.3f}") for kind, value in summary.per_type.items()]
    for name, group in summary.by_size.items():
        rows.append((f"pixel AP, {name} ({group.from_ml:.1f}-{group.to_ml:.1f} mL)", f"{group.pixel_ap:.3f}"))
    rows += [
        (f"objects found at {rate} false a scan", _number(value)) for rate, value in summary.recall.items()
    ]
    if summary.unseen is not None:
        unseen = Summary(**dict(summary.unseen))
        rows += [(f"unseen family: {name}", value) for name, value in table_rows(unseen)]
    return rows


def worst_cases(judged: Sequence[Judged]) -> list[tuple[str, Judged]]:
    """The anomalies with the lowest mean score, and the cases with the highest scores on normal voxels."""
    missed = [one for one in judged if one.pixels is not None and one.pixels.positives.any()]
    missed.sort(key=lambda one: _mean_inside(one.pixels))
    alarms = [one for one in judged if one.pixels is not None]
    alarms.sort(key=lambda one: -_top_outside(one.pixels))
    return [("Missed", one) for one in missed[:WORST]] + [("False alarm", one) for one in alarms[:WORST]]


def _mean_inside(counts: ScoreCounts | None) -> float:
    return 0.0 if counts is None else float(counts.positives @ code_values() / counts.positives.sum())


def _top_outside(counts: ScoreCounts | None) -> float:
    """Mean of the 100 highest scores of normal voxels."""
    if counts is None:
        return 0.0
    highest = counts.negatives[::-1]
    taken = np.diff(np.minimum(np.cumsum(highest), TOP), prepend=0)
    return float(taken @ code_values()[::-1] / TOP)


def _curves(judged: Sequence[Judged], index: Index | None) -> dict[str, ScoreCounts]:
    families = {case.name: case.family for case in index.cases} if index else {}
    names = [name for name in ("seen", "unseen") if name in families.values()] or ["all"]
    return {
        name: merge(
            one.pixels
            for one in judged
            if one.pixels is not None and families.get(one.name, "healthy") in ("healthy", name)
        )
        for name in names
        if any(one.pixels is not None for one in judged)
    }


def _curve_figure(curves: dict[str, ScoreCounts]) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, counts in curves.items():
        precision, recall = precision_recall(counts)
        axes.step(recall, precision, where="pre", label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend()
    return figure


def _bars(summary: Summary) -> Figure:
    kinds = dict(summary.per_type)
    unseen = summary.unseen.per_type if summary.unseen is not None else {}
    names = [*kinds, *unseen]
    figure = Figure(figsize=(7, 0.6 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = ["C0"] * len(kinds) + ["C1"] * len(unseen)
    bars = axes.barh(names, [*kinds.values(), *unseen.values()], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, 1.1)
    axes.invert_yaxis()
    return figure


def _picture(one: Judged, sources: Sources, heading: str) -> Figure:
    label, _ = read_label(sources.labels / "pixel" / one.name)
    maps = sources.predictions.maps or sources.labels
    scores, _ = read_scores(maps / one.name, label.shape)
    image, spacing = _image(sources.images, one.name, scores)
    if heading == "Missed":
        at = [round(float(axis.mean())) for axis in np.nonzero(label)]
    else:
        at = [int(n) for n in np.unravel_index(np.where(label, -1, scores).argmax(), scores.shape)]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 3), range(3), strict=True):
        plane: tuple[Any, ...] = tuple(at[n] if n == axis else slice(None) for n in range(3))
        width, height = (spacing[n] for n in range(3) if n != axis)
        axes.imshow(image[plane].T, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=height / width)
        shown = np.ma.masked_less(scores[plane].T, 0.05)
        axes.imshow(shown, cmap="inferno", vmin=0, vmax=1, alpha=0.5, origin="lower", aspect=height / width)
        if label[plane].any():
            axes.contour(label[plane].T, [0.5], colors="deepskyblue", linewidths=1)
        axes.set_axis_off()
    return figure


def _image(folder: Path | None, name: str, scores: Array3D) -> tuple[Array3D, tuple[float, float, float]]:
    """The scan and its spacing, or the map itself where there is no readable scan."""
    try:
        volume = read_volume(folder / name) if folder is not None else None
    except ScanError:
        volume = None
    if volume is None or volume.array.shape != scores.shape:
        return scores, (1.0, 1.0, 1.0)
    return volume.array, scan_grid(volume).spacing


def _describe(name: str, index: Index | None) -> str:
    cases = {case.name: case for case in index.cases} if index else {}
    case = cases.get(name)
    return f"{name}, {case.kind} in {case.source}" if case else name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return base64.b64encode(stream.getvalue()).decode()
