"""Rules for the score of a scan, against numbers by hand and scikit-learn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from mood_eval.baselines import Baselines
from mood_eval.members import Remembering
from mood_eval.sample_rules import FUSED, HISTOGRAM, PAPER, RULES, compare_rules, is_told, table_of
from mood_eval.validation_set import HEALTHY, Case, Recipe, make_cases, plan_cases
from mood_infer.challenge import Region, find_scans
from mood_infer.errors import UserError
from mood_infer.predictor import Predictor


def test_rules_by_hand() -> None:
    scores = np.arange(1000, dtype=np.float32).reshape(10, 10, 10) / 1000
    assert RULES["mean of the top 1"](scores) == pytest.approx(0.999)
    assert RULES["mean of the top 10"](scores) == pytest.approx(0.9945)
    assert RULES[PAPER](scores) == pytest.approx(0.9495)
    assert RULES["mean of the top 10000"](scores) == pytest.approx(0.4995)
    assert RULES["share above 0.25"](scores) == pytest.approx(0.749)


def cases_of(anomalous: NDArray[np.bool_], scans: int) -> list[Case]:
    """Cases of so many scans in turn."""
    kinds = [("noise", "seen") if truth else (HEALTHY, HEALTHY) for truth in anomalous]
    return [
        Case(name=f"{n}", kind=kind, family=family, source=f"{n % scans}", number=n)
        for n, (kind, family) in enumerate(kinds)
    ]


def test_the_table_is_scikit_learn_s_on_each_half() -> None:
    random = np.random.default_rng(0)
    anomalous = random.random(80) < 0.6
    told = np.arange(80) % 8 % 2 == 1
    scores = {PAPER: random.random(80), "better": anomalous + 0.5 * random.random(80)}
    table = table_of(scores, cases_of(anomalous, 8))
    for name, row in table.rows.items():
        for half, value in ((told, row.told_on), (~told, row.chosen_on)):
            assert value == pytest.approx(average_precision_score(anomalous[half], scores[name][half]))
    better = table.rows["better"]
    assert better.told_on == 1 and 0 < better.low < better.gain < better.high
    assert table.rows[PAPER].gain == table.rows[PAPER].low == table.rows[PAPER].high == 0


def test_no_scan_is_in_both_halves_and_whole_scans_are_drawn() -> None:
    random = np.random.default_rng(1)
    anomalous = np.arange(120) % 3 > 0
    cases = cases_of(anomalous, 10)
    told = is_told(cases)
    sources = [
        {case.source for case, kept in zip(cases, told, strict=True) if bool(kept) is of}
        for of in (True, False)
    ]
    assert not sources[0] & sources[1] and len(sources[0]) == len(sources[1]) == 5
    # cases of a scan that are copies of one another tell no more than one of them
    few = cases_of(anomalous[:30], 10)
    copies = [case.model_copy(update={"name": f"{case.name}-{n}"}) for n in range(4) for case in few]
    scores = {PAPER: random.random(30), "else": random.random(30)}
    once = table_of(scores, few).rows["else"]
    often = table_of({name: np.tile(values, 4) for name, values in scores.items()}, copies).rows["else"]
    assert (once.low, once.high) == pytest.approx((often.low, often.high))
    assert once.low < once.high


def test_one_scan_cannot_be_halved(scans: Path, weights: Path) -> None:
    recipe = Recipe(Region.BRAIN, 0, {HEALTHY: 1, "noise": 1})
    paths = find_scans(scans)[:1]
    predictor = Remembering.load(Region.BRAIN, weights, "cpu")
    with pytest.raises(UserError, match="two scans or more"):
        compare_rules(paths, recipe, predictor, Baselines.fit(paths, Region.BRAIN, [HISTOGRAM]))


def test_every_case_is_scored_by_every_rule(
    scans: Path, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    """By the map before its context weighs it, as a scan's own score is."""
    weights = make_weights(tmp_path, smoothing=1.5, context=6.0)
    paths = find_scans(scans)
    recipe = Recipe(Region.BRAIN, 2, {HEALTHY: 3, "noise": 3, "shift": 3})
    predictor = Remembering.load(Region.BRAIN, weights, "cpu")
    baselines = Baselines.fit(paths, Region.BRAIN, [HISTOGRAM])
    plain = make_weights(tmp_path / "plain", smoothing=1.5)
    table = compare_rules(paths, recipe, predictor, baselines)
    assert list(table.rows) == [*RULES, FUSED] and table.cases == 3
    plan = plan_cases(paths, recipe)
    made = [
        one
        for source in paths
        for one in make_cases(source, [case for path, case in plan if path == source], recipe)
    ]
    told = is_told([one.case for one in made])
    assert sorted(one.case.kind for one, kept in zip(made, told, strict=True) if kept) == [
        HEALTHY,
        "noise",
        "shift",
    ]
    truth = np.array([bool(one.label.any()) for one in made])
    plainly = Predictor.load(Region.BRAIN, weights, "cpu")
    values = np.array([plainly.predict(one.image).sample_score for one in made])
    assert table.rows[PAPER].told_on == pytest.approx(average_precision_score(truth[told], values[told]))
    before = Predictor.load(Region.BRAIN, plain, "cpu")
    highest = np.array([before.predict(one.image).working.max() for one in made])
    told_on = table.rows["mean of the top 1"].told_on
    assert told_on == pytest.approx(average_precision_score(truth[told], highest[told]))
    fused = values + [baselines.score(one)[HISTOGRAM].sample for one in made]
    assert table.rows[FUSED].chosen_on == pytest.approx(average_precision_score(truth[~told], fused[~told]))
