"""What fewer windows and fewer networks cost in average precision, and save in time.

``python scripts/bench/overlaps.py SCANS --region R --split FILE [--limit N] [--ways W ...]``, and ``--help``
for the rest.

The same cases for all settings, made in memory from normal scans that no member was trained on. "averages":
one network for all members with the same edges and like weights, as with ``--speed fast``. "shared": all
networks look at the same windows, as with ``--speed exact``; "staggered": each has its own, of which the
inner ones move within what is free; "moved": the whole grid of each does, by its share of a step, which takes
more windows, as some reach beyond the body. "whole grid" is as in the paper, windows over the air around the
body too, and in float32 it is what MONAI's inferer would compute ("peer" among the ways). "unrefined", with
``--unrefined``: the same map before it is smoothed and weighed by its context, as MONAI's is. The seconds
are those of preparation and prediction, summed over the cases; settings take turns on each case.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mood_eval.split import judge_scans
from mood_eval.summary import summarise
from mood_eval.table import Scored, judge_cases
from mood_eval.validation_set import Made, Recipe, one_each
from mood_infer.challenge import Region, find_scans
from mood_infer.predictor import MARGIN, STAGGER, Precision, Predictor, Speed, reduced_precision
from mood_infer.refinement import MeanMap
from mood_infer.volume import Array3D
from mood_train.folds import read_split

PAPER = 0.5  # overlap
OVERLAPS = (PAPER, 0.25, 0.125, 0.0)
WHOLE = 1e3  # windows around the body: the box is then the whole grid


@dataclass(frozen=True)
class Setting:
    """Which networks run, and where the windows stand.

    Attributes:
        networks: exact: the members; fast: their averages.
        windows: see above.
        overlap: of neighbouring windows, share of their side.
        margin: around the body, in windows.
        precision: auto is 16 bits where the processor is fast at that.
    """

    networks: Speed = "exact"
    windows: Literal["shared", "staggered", "moved"] = "shared"
    overlap: float = PAPER
    margin: float = MARGIN
    precision: Precision = "auto"

    def __str__(self) -> str:
        who = "averages" if self.networks == "fast" else "members"
        where = ", whole grid" if self.margin == WHOLE else ""
        kind = ", float32" if self.precision == "float32" else ""
        return f"{who}, {self.windows} {self.overlap:g}{where}{kind}"


EXACT = Setting()
PEER = (Setting(margin=WHOLE, precision="float32"), Setting(precision="float32"))
SHARED = tuple(Setting(overlap=overlap) for overlap in OVERLAPS)
STAGGERED = tuple(Setting(windows="staggered", overlap=overlap) for overlap in OVERLAPS)
MOVED = tuple(Setting(windows="moved", overlap=overlap) for overlap in OVERLAPS[1:])
AVERAGES = (Setting("fast"), *(Setting("fast", "staggered", overlap) for overlap in OVERLAPS))
WAYS = {
    "peer": PEER,
    "shared": SHARED,
    "staggered": STAGGERED,
    "moved": MOVED,
    "averages": AVERAGES,
    "fast": (Setting("fast", "staggered"),),
}


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratio`` is of the seconds of the members with shared windows at 0.5."""

    name: str
    seconds: float
    ratio: float
    pixel_ap: float | None
    sample_ap: float | None


class Moving(Predictor):
    """A predictor that can move the whole grid of windows of each member, and keeps its last mean map."""

    moves = False
    mean: MeanMap

    def _refine(self, mean: MeanMap) -> tuple[Array3D, float]:
        self.mean = mean
        return super()._refine(mean)

    def _member(
        self, number: int, body: Tensor, air: float | None, overlap: float, *arguments: Any
    ) -> tuple[Tensor, float, float]:
        if not self.moves:
            return super()._member(number, body, air, overlap, *arguments)
        window = self.manifest.window
        step = max(1, round(window * (1 - overlap)))
        before = [int(number * share % 1 * step) for share in STAGGER]
        after = [(window - b - n) % step for b, n in zip(before, body.shape, strict=True)]
        around = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        larger = functional.pad(body, around, value=float(body.min()) if air is None else air)
        scores, empty, seconds = super()._member(number, larger, air, overlap, *arguments)
        inner = tuple(slice(b, b + n) for b, n in zip(before, body.shape, strict=True))
        return scores[inner], empty, seconds


def compare(
    scans: list[Path],
    recipe: Recipe,
    weights: Path | None,
    settings: Sequence[Setting],
    unrefined: bool = False,
) -> list[Row]:
    """Judge all settings on all cases."""
    predictors = {
        (precision, networks): Moving.load(recipe.region, weights, precision=precision, speed=networks)
        for precision, networks in {(setting.precision, setting.networks) for setting in settings}
    }
    seconds: dict[str, list[float]] = defaultdict(list)

    def score(made: Made) -> dict[str, Scored]:
        scored = {}
        for setting in settings:
            predictor = predictors[setting.precision, setting.networks]
            predictor.moves = setting.windows == "moved"
            predictor.place_windows(setting.overlap, setting.windows == "staggered", setting.margin)
            result = predictor.predict(made.image)
            made_of = {str(setting): (result.working, result.sample_score)}
            if unrefined:
                made_of[f"{setting}, unrefined"] = predictor.mean.refined(smoothing=0, context=0)
            for name, (working, sample) in made_of.items():
                seconds[name].append(result.seconds)
                scored[name] = Scored(working, result.grid, sample)
        return scored

    index, judged = judge_cases(scans, recipe, score, objects=False)
    total = {name: sum(taken) for name, taken in seconds.items()}
    base = total[str(EXACT)]
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
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=list(WAYS),
        default=["staggered", "averages"],
        help="beside --speed exact; peer, which takes longest: the whole grid, and float32; fast: that"
        " speed alone",
    )
    parser.add_argument("--unrefined", action="store_true", help="judge the maps before their refinement too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    split = read_split(options.split, options.region)
    scans = judge_scans(find_scans(options.scans), split, "set_aside")[: options.limit]
    recipe = one_each(options.region, options.seed, "seen", len(scans))
    settings = dict.fromkeys([EXACT, *(setting for way in options.ways for setting in WAYS[way])])
    if reduced_precision(torch.device("cpu")) is None and not torch.cuda.is_available():
        settings.pop(PEER[1], None)  # which EXACT is, then
    rows = compare(scans, recipe, options.weights, list(settings), options.unrefined)
    print(f"| networks, windows | seconds | of {EXACT} | pixel AP | sample AP |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.seconds:.1f} | {row.ratio:.2f} | {row.pixel_ap:.4f} | {row.sample_ap:.4f} |"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
