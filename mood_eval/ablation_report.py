"""The table and the figure of an ablation."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mood_eval.ablation import RowResult
from mood_eval.summary import FamilySummary
from mood_eval.table import markdown_table

Columns = dict[str, float | None]


def render_table(results: Mapping[str, RowResult]) -> str:
    """One row a network in Markdown: the paper's types first, then the unseen family as a whole."""
    columns = {name: _table_columns(result) for name, result in results.items()}
    head = list(next(iter(columns.values())))
    return markdown_table(head, {name: list(values.values()) for name, values in columns.items()})


def _table_columns(result: RowResult) -> Columns:
    summary = result.summary
    columns = _pixel_columns(summary, result.unsmoothed_ap) | {"sample AP": summary.sample_ap}
    if summary.unseen is not None:
        columns |= {"unseen": summary.unseen.pixel_ap, "unseen sample AP": summary.unseen.sample_ap}
    return columns


def _pixel_columns(family: FamilySummary, unsmoothed: float | None) -> Columns:
    columns: Columns = {"pixel AP": family.pixel_ap}
    if unsmoothed is not None:
        columns["unsmoothed"] = unsmoothed
    return columns | {kind.replace("_", " "): value for kind, value in family.per_type.items()}


def draw_figure(results: Mapping[str, RowResult]) -> Figure:
    """Bars as in the paper's figure 6: a panel for all cases and one a type, a bar a row.

    The second line of panels, if there is one, is the unseen family.
    """
    families = [{name: _pixel_columns(one.summary, one.unsmoothed_ap) for name, one in results.items()}]
    unseen = {name: one.summary.unseen for name, one in results.items()}
    families.append({name: _pixel_columns(one, None) for name, one in unseen.items() if one is not None})
    lines = [family for family in families if family]
    panels = max(len(next(iter(family.values()))) for family in lines)
    size = (2.0 + 1.3 * panels, len(lines) * (0.8 + 0.22 * len(results)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(lines), panels, sharex=True, sharey="row", squeeze=False)
    for line, (family, title) in enumerate(zip(lines, ("paper's types", "unseen family"), strict=False)):
        titles = list(next(iter(family.values())))
        grid[line][0].set_ylabel(title)
        for axes in grid[line][len(titles) :]:
            axes.set_axis_off()
        for axes, heading in zip(grid[line], titles, strict=False):
            _bars(axes, heading, list(family), [values.get(heading) or 0.0 for values in family.values()])
    return figure


def _bars(axes: Axes, heading: str, names: Sequence[str], values: Sequence[float]) -> None:
    colours = [f"C{number % 10}" for number in range(len(names))]
    axes.bar_label(axes.barh(names, values, color=colours), fmt="%.2f", padding=2, fontsize=7)
    axes.set_title(heading, fontsize=9)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(labelsize=8)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
