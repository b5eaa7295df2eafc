"""What windows that overlap less cost in average precision, and save in time.

``python scripts/bench/overlaps.py SCANS --region R --split FILE [--limit N] [--peer] [--weights DIR]``, and
``--help`` for the rest.

The same cases for all settings, made in memory from normal scans that no member was trained on. "shared": all
members look at the same windows, as ``--speed exact`` does; "staggered": each has its own, as with ``--speed
fast``. "whole grid" is the paper's way, windows over the air around the body too, and in float32 it is what
MONAI's inferer would compute. The seconds are those of preparation and prediction, summed over the cases;
settings take turns on each case.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mood_eval.split import judge_scans
from mood_eval.summary import summarise
from mood_eval.table import Scored, judge_cases
from mood_eval.validation_set import Made, Recipe, one_each
from mood_infer.challenge import Region, find_scans
from mood_infer.predictor import MARGIN, Precision, Predictor, Speed
from mood_train.folds import read_split

OVERLAPS = (0.5, 0.25, 0.125, 0.0)
WHOLE = 1e3  # windows around the body: the box is then the whole grid


@dataclass(frozen=True)
class Setting:
    """Where the windows stand.

    Attributes:
        speed: exact: shared by the members; fast: staggered.
        overlap: of neighbouring windows, share of their side.
        margin: around the body, in windows.
        precision: auto is 16 bits where the processor is fast at that.
    """

    speed: Speed
    overlap: float
    margin: float = MARGIN
    precision: Precision = "auto"

    def __str__(self) -> str:
        where = ", whole grid" if self.margin == WHOLE else ""
        how = ", float32" if self.precision == "float32" else ""
        return f"{'staggered' if self.speed == 'fast' else 'shared'} {self.overlap:g}{where}{how}"


PEER = (Setting("exact", OVERLAPS[0], WHOLE, "float32"), Setting("exact", OVERLAPS[0], WHOLE))
SPEEDS: tuple[Speed, ...] = ("exact", "fast")
SETTINGS = tuple(Setting(speed, overlap) for speed in SPEEDS for overlap in OVERLAPS)


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratio`` is of the seconds of shared windows at the paper's overlap."""

    name: str
    seconds: float
    ratio: float
    pixel_ap: float | None
    sample_ap: float | None


def compare(
    scans: list[Path], recipe: Recipe, weights: Path | None, settings: Sequence[Setting]
) -> list[Row]:
    """Judge all settings on all cases."""
    predictors = {
        precision: Predictor.load(recipe.region, weights, precision=precision)
        for precision in {setting.precision for setting in settings}
    }
    seconds: dict[str, list[float]] = defaultdict(list)

    def score(made: Made) -> dict[str, Scored]:
        scored = {}
        for setting in settings:
            predictor = predictors[setting.precision]
            predictor.place_windows(setting.overlap, setting.speed, setting.margin)
            result = predictor.predict(made.image)
            seconds[str(setting)].append(result.seconds)
            scored[str(setting)] = Scored(result.working, result.grid, result.sample_score)
        return scored

    index, judged = judge_cases(scans, recipe, score, objects=False)
    total = {name: sum(taken) for name, taken in seconds.items()}
    base = total[str(Setting("exact", OVERLAPS[0]))]
    summaries = {name: summarise(cases, index) for name, cases in judged.items()}
    return [
        Row(name, total[name], total[name] / base, summary.pixel_ap, summary.sample_ap)
        for name, summary in summaries.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--region", type=Region, choices=list(Region), required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="take only so many of the scans")
    parser.add_argument("--peer", action="store_true", help="judge the whole grid too, which takes longest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    split = read_split(options.split, options.region)
    scans = judge_scans(find_scans(options.scans), split, "set_aside")[: options.limit]
    recipe = one_each(options.region, options.seed, "seen", len(scans))
    settings = (*PEER, *SETTINGS) if options.peer else SETTINGS
    rows = compare(scans, recipe, options.weights, settings)
    print("| windows | seconds | of shared 0.5 | pixel AP | sample AP |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.seconds:.1f} | {row.ratio:.2f} | {row.pixel_ap:.4f} | {row.sample_ap:.4f} |"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
