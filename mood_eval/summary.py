"""From what was counted in each case to the numbers of a report."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from mood_eval.average_precision import (
    ScoreCounts,
    area_under_roc,
    average_precision,
    best_dice,
    code_values,
    merge,
)
from mood_eval.objects import CaseObjects, recall_at, sizes_and_found
from mood_eval.ranking import Spread, bootstrap, bootstrap_gains
from mood_eval.validation_set import Case, Index

SIZE_NAMES = ("small", "middle", "large")


@dataclass(frozen=True)
class Judged:
    """What one prediction gave.

    Attributes:
        name: of the case.
        anomalous: whether it holds an anomaly.
        pixels: counts of its voxels, if there was a map to judge.
        sample: its score, if there was one.
        objects: its objects, if they were looked for.
    """

    name: str
    anomalous: bool
    pixels: ScoreCounts | None
    sample: float | None
    objects: CaseObjects | None = None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Interval(_Record):
    """Mean over bootstrapped lists, of scans where these are known, and the 95 % interval."""

    mean: float
    low: float
    high: float


class SizeGroup(_Record):
    """A third of the anomalies, by volume.

    Attributes:
        from_ml: smallest volume in it.
        to_ml: largest volume in it.
        pixel_ap: of its cases and the healthy ones.
        found: share found as objects at one false object a scan.
    """

    from_ml: float
    to_ml: float
    pixel_ap: float
    found: float | None = None


class FamilySummary(_Record):
    """The numbers for one family of anomalies together with the healthy cases.

    Attributes:
        cases: how many were judged, healthy ones included.
        pixel_ap: average precision over all voxels of all cases.
        sample_ap: average precision over the cases.
        pixel_interval: of ``pixel_ap``.
        sample_interval: of ``sample_ap``.
        auroc: of the voxels.
        dice: best Dice coefficient of all voxels together.
        dice_threshold: where it is reached.
        per_type: pixel average precision of each type's cases and the healthy ones.
        by_size: the same by volume.
        recall: share of anomalies found as objects, by false objects a scan.
    """

    cases: int
    pixel_ap: float | None = None
    sample_ap: float | None = None
    pixel_interval: Interval | None = None
    sample_interval: Interval | None = None
    auroc: float | None = None
    dice: float | None = None
    dice_threshold: float | None = None
    per_type: dict[str, float] = {}
    by_size: dict[str, SizeGroup] = {}
    recall: dict[str, float] = {}


class Summary(FamilySummary):
    """A report's numbers: those of the paper's types, and beside them those of the unseen family.

    Attributes:
        unseen: the second family with the healthy cases; its cases are in none of the other numbers. Where
            a set holds no case of the paper's types, the other numbers are those of the unseen family.
        warnings: predictions that were missing, misshapen or not numbers, one sentence each.
    """

    unseen: FamilySummary | None = None
    warnings: tuple[str, ...] = ()


def summarise(
    judged: Sequence[Judged],
    index: Index | None,
    warnings: Sequence[str] = (),
    runs: int = 1000,
    list_size: int | None = None,
) -> Summary:
    """The numbers of all judged cases.

    Args:
        judged: the cases.
        index: tells types, families and volumes; without it all cases are one family of unnamed types.
        warnings: passed on.
        runs: bootstrapped lists.
        list_size: cases a list; see :func:`mood_eval.ranking.draw_lists`.
    """
    if index is None:
        whole = _family(judged, {}, runs, list_size)
        return Summary(**dict(whole), warnings=tuple(warnings))
    known = {case.name: case for case in index.cases}
    main, *second = (_family(part, known, runs, list_size) for part in _families(judged, known))
    return Summary(**dict(main), unseen=second[0] if second else None, warnings=tuple(warnings))


def pixel_gains(
    judged: Sequence[Judged], others: Mapping[str, Sequence[Judged]], index: Index, runs: int = 1000
) -> dict[str, Interval]:
    """How much higher a method's pixel AP is than that of others, over the same lists.

    Args:
        judged: the cases as the one scored them, all with their pixels.
        others: name of each other to the cases as it did, in the same order.
        index: of the cases; those of the family of a summary's main numbers are taken.
        runs: bootstrapped lists.
    """
    known = {case.name: case for case in index.cases}
    ours = _families(judged, known)[0]
    theirs = {name: _pixels(_families(cases, known)[0]) for name, cases in others.items()}
    spreads = bootstrap_gains(_pixels(ours), theirs, runs, scans=_sources(ours, known))
    return {name: _interval(spread) for name, spread in spreads.items()}


def _pixels(judged: Sequence[Judged]) -> list[ScoreCounts]:
    return [one.pixels for one in judged if one.pixels is not None]


def _families(judged: Sequence[Judged], known: Mapping[str, Case]) -> list[Sequence[Judged]]:
    """The cases of each family there is, with the healthy ones, the paper's first."""
    families: list[Sequence[Judged]] = [
        [one for one in judged if known[one.name].family in ("healthy", family)]
        for family in ("seen", "unseen")
        if any(known[one.name].family == family for one in judged)
    ]
    return families or [judged]


def _family(
    judged: Sequence[Judged], known: dict[str, Case], runs: int, list_size: int | None
) -> FamilySummary:
    numbers: dict[str, object] = {"cases": len(judged)}
    pixels = _pixels(judged)
    if pixels:
        scans = _sources([one for one in judged if one.pixels is not None], known)
        total, dice = merge(pixels), best_dice(merge(pixels))
        numbers |= {
            "pixel_ap": average_precision(total),
            "pixel_interval": _interval(bootstrap(pixels, runs, list_size, scans=scans)),
            "auroc": area_under_roc(total),
            "dice": dice.dice,
            "dice_threshold": dice.threshold,
            "per_type": {
                kind: _pixel_ap(judged, {case.name for case in known.values() if case.kind == kind})
                for kind in sorted({known[one.name].kind for one in judged if one.anomalous and known})
            },
            "by_size": _by_size(judged, known),
        }
    samples = _sample_counts(judged)
    if samples:
        numbers["sample_ap"] = average_precision(merge(samples))
        scans = _sources([one for one in judged if one.sample is not None], known)
        numbers["sample_interval"] = _interval(bootstrap(samples, runs, list_size, scans=scans))
    objects = [one.objects for one in judged if one.objects is not None]
    if objects:
        numbers["recall"] = {str(rate): recall for rate, recall in recall_at(objects).items()}
    return FamilySummary.model_validate(numbers)


def _sources(judged: Sequence[Judged], known: Mapping[str, Case]) -> list[str] | None:
    return [known[one.name].source for one in judged] if known else None


def _pixel_ap(judged: Sequence[Judged], names: Collection[str]) -> float:
    """Of the anomalous cases of these names and of all healthy ones."""
    chosen = [one.pixels for one in judged if not one.anomalous or one.name in names]
    return average_precision(merge(pixels for pixels in chosen if pixels is not None))


def _by_size(judged: Sequence[Judged], known: dict[str, Case]) -> dict[str, SizeGroup]:
    volume = {one.name: known[one.name].volume_ml for one in judged if one.anomalous and known}
    names = sorted(volume, key=volume.__getitem__)
    if len(names) < len(SIZE_NAMES):
        return {}
    objects = [one.objects for one in judged if one.objects is not None]
    sizes, found = sizes_and_found(objects) if objects else (np.zeros(0), np.zeros(0, bool))
    groups, above = {}, 0.0
    for title, part in zip(SIZE_NAMES, np.array_split(np.array(names), len(SIZE_NAMES)), strict=True):
        to = volume[part[-1]]
        inside = found[(sizes > above) & (sizes <= to * (1 + 1e-9))]
        groups[title] = SizeGroup(
            from_ml=volume[part[0]],
            to_ml=to,
            pixel_ap=_pixel_ap(judged, set(part.tolist())),
            found=float(inside.mean()) if inside.size else None,
        )
        above = to * (1 + 1e-9)
    return groups


def _sample_counts(judged: Sequence[Judged]) -> list[ScoreCounts]:
    scored = [(one.sample, one.anomalous) for one in judged if one.sample is not None]
    return count_samples([sample for sample, _ in scored], [anomalous for _, anomalous in scored])


def count_samples(samples: ArrayLike, anomalous: ArrayLike) -> list[ScoreCounts]:
    """Counts of the sample scores' ranks: unlike voxels, the challenge compares them at full precision.

    Args:
        samples: (cases,) scores.
        anomalous: (cases,) boolean.
    """
    _, ranks = np.unique(samples, return_inverse=True)
    return [
        ScoreCounts.of(np.array([value], np.float16), np.array([truth], bool))
        for value, truth in zip(code_values()[ranks], np.asarray(anomalous), strict=True)
    ]


def _interval(spread: Spread) -> Interval:
    return Interval(mean=spread.mean, low=spread.low, high=spread.high)
