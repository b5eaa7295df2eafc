"""A sheet of synthetic anomalies to look at, like the paper's Figures 1 to 3."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mood_infer.volume import write_atomically
from mood_train.anomalies.generator import AnomalyGenerator

ROWS = ("normal", "foreign patch", "alpha", "result")


def draw_preview(generator: AnomalyGenerator, count: int, path: Path) -> None:
    """Draw the first ``count`` samples as columns, each through the axial slice with the most anomaly.

    Args:
        generator: of a run.
        count: columns.
        path: PNG file to make.
    """
    figure = Figure(figsize=(1.6 * count, 1.7 * len(ROWS)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ROWS), count, squeeze=False)
    for column in range(count):
        sample = generator.sample(column)
        weight = sample.label.sum(axis=(0, 1))
        level = int(weight.argmax()) if weight.any() else sample.label.shape[2] // 2
        rows = (sample.normal, sample.foreign, sample.label, sample.image)
        for row, array in enumerate(rows):
            axis = axes[row, column]
            axis.imshow(array[:, :, level].T, cmap="gray", vmin=0, vmax=1, origin="lower")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(ROWS[row])
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
