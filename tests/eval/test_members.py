"""Each member and their mean on the same cases."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from mood_eval.average_precision import ScoreCounts, average_precision, best_dice, merge
from mood_eval.members import ENSEMBLE, Remembering, evaluate_members
from mood_eval.objects import find_objects, recall_at
from mood_eval.validation_set import HEALTHY, Made, Recipe, make_cases, plan_cases
from mood_infer.challenge import Region, find_scans
from mood_infer.predictor import Predictor
from mood_infer.weights import read_manifest, write_manifest

RECIPE = Recipe(Region.BRAIN, 2, {HEALTHY: 2, "noise": 2, "shift": 1})


def _all_cases(scans: list[Path]) -> list[Made]:
    plan = plan_cases(scans, RECIPE)
    return [
        made
        for source in scans
        for made in make_cases(source, [case for path, case in plan if path == source], RECIPE)
    ]


def test_rows_are_what_each_predictor_gives(scans: Path, weights: Path) -> None:
    paths = find_scans(scans)
    seen: list[tuple[int, int]] = []
    table = evaluate_members(paths, RECIPE, weights, "cpu", lambda _, at, of: seen.append((at, of)))
    assert seen == [(n, 5) for n in range(1, 6)]
    files = ["fold0-hard.safetensors", "fold1-hard.safetensors"]
    assert list(table.rows) == [*files, ENSEMBLE]
    cases = _all_cases(paths)
    assert sorted(case.name for case in table.index.cases) == [case.name for case in table.index.cases]
    for name, members in ((files[0], files[:1]), (files[1], files[1:]), (ENSEMBLE, None)):
        predictor = Predictor.load(Region.BRAIN, weights, "cpu", members)
        maps = [predictor.predict(made.image) for made in cases]
        total = merge(ScoreCounts.of(one.scores, made.label) for one, made in zip(maps, cases, strict=True))
        row = table.rows[name]
        # the ensemble's mean is taken in another order: a score may round to the next float16
        assert row.pixel_ap == pytest.approx(average_precision(total), rel=1e-3 if members is None else 1e-12)
        assert row.dice_threshold == pytest.approx(best_dice(total).threshold, rel=2e-3)
        truths, samples = [made.label.any() for made in cases], [one.sample_score for one in maps]
        assert row.sample_ap == pytest.approx(average_precision_score(truths, samples))
        assert set(row.per_type) == {"noise", "shift"} and row.cases == 5
        voxel_ml = 3 * 3 * 4 / 1000
        objects = [
            find_objects(one.scores, made.label, voxel_ml) for one, made in zip(maps, cases, strict=True)
        ]
        assert row.recall == {str(rate): value for rate, value in recall_at(objects).items()}
        sizes = sorted(case.volume_ml for case in table.index.cases if case.volume_ml)
        assert [group.to_ml for group in row.by_size.values()] == sizes  # three anomalies, one a size


def test_members_of_one_kind_of_edges_have_a_row_where_that_is_a_choice(
    scans: Path, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_weights(tmp_path / "weights", count=3, smooth=[2], spacing=3.0)
    manifest = read_manifest(folder / "brain")
    table = evaluate_members(find_scans(scans), RECIPE, folder, "cpu")
    files = [member.file for member in manifest.members]
    assert list(table.rows) == [*files, "hard members", ENSEMBLE]
    write_manifest(folder / "brain", manifest.with_members(manifest.members[:2]))
    pair = evaluate_members(find_scans(scans), RECIPE, folder, "cpu")
    assert pair.rows[ENSEMBLE] == table.rows["hard members"]


def test_each_mean_is_of_the_members_themselves(
    scans: Path, make_weights: Callable[..., Path], tmp_path: Path
) -> None:
    """The ensemble's row, after that of the hard members, is what the ensemble gives."""
    settings = {"spacing": 3.0, "smoothing": 4.0, "context": 9.0, "smooth_weight": 0.25}
    folder = make_weights(tmp_path / "weights", count=3, smooth=[2], **settings)
    paths = find_scans(scans)
    row = evaluate_members(paths, RECIPE, folder, "cpu").rows[ENSEMBLE]
    cases, predictor = _all_cases(paths), Predictor.load(Region.BRAIN, folder, "cpu")
    maps = [predictor.predict(made.image) for made in cases]
    total = merge(ScoreCounts.of(one.scores, made.label) for one, made in zip(maps, cases, strict=True))
    assert row.pixel_ap == pytest.approx(average_precision(total), rel=1e-3)
    assert row.dice_threshold == pytest.approx(best_dice(total).threshold, rel=2e-3)


def test_fast_judges_the_averages(scans: Path, make_weights: Callable[..., Path], tmp_path: Path) -> None:
    """Two hard twins, and a smooth member, on windows of their own."""
    folder = make_weights(tmp_path / "weights", count=3, smooth=[2])
    manifest = read_manifest(folder / "brain")
    first, second, soft = manifest.members
    shutil.copy(folder / "brain" / first.file, folder / "brain" / second.file)
    twin = second.model_copy(update={"sha256": first.sha256})
    write_manifest(folder / "brain", manifest.with_members((first, twin, soft)))
    paths = find_scans(scans)
    table = evaluate_members(paths, RECIPE, folder, "cpu", speed="fast")
    predictor = Predictor.load(Region.BRAIN, folder, "cpu", speed="fast")
    files = [member.file for member in predictor.manifest.members]
    assert len(files) == 2 and list(table.rows) == [*files, ENSEMBLE]
    cases = _all_cases(paths)
    maps = [predictor.predict(made.image) for made in cases]
    total = merge(ScoreCounts.of(one.scores, made.label) for one, made in zip(maps, cases, strict=True))
    assert table.rows[ENSEMBLE].pixel_ap == pytest.approx(average_precision(total), rel=1e-3)
    assert table.weights == predictor.digest != read_manifest(folder / "brain").digest()


def test_cases_of_a_scan_share_its_windows_and_forget_those_of_an_anomaly(
    scans: Path, make_weights: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    score = Predictor._score

    def count(self: Predictor, network: nn.Module, windows: Tensor) -> Tensor:
        scored.append(len(windows))
        return score(self, network, windows)

    monkeypatch.setattr(Predictor, "_score", count)
    source = find_scans(scans)[0]
    recipe = Recipe(Region.BRAIN, 2, {HEALTHY: 1, "noise": 7})
    cases = sorted(plan_cases([source], recipe), key=lambda pair: pair[1].kind)
    predictor = Remembering.load(Region.BRAIN, make_weights(tmp_path / "weights", spacing=1.5), "cpu")
    computed, held = [], []
    for made in make_cases(source, [case for _, case in cases], recipe):
        scored.clear()
        predictor.score_case(made)
        computed.append(sum(scored))
        known = [*predictor._shared.values(), *predictor._recent.values(), *predictor._before.values()]
        held.append(len(known))
        # each by itself, so that what is forgotten is freed
        assert all(one.untyped_storage().nbytes() == 4 * 32**3 for one in known)
    healthy, *anomalous = computed
    assert min(anomalous) > 0 and max(anomalous) < healthy / 2
    # the healthy scan's, and of the last case and the one before what these alone have
    assert max(held) <= healthy + 2 * max(anomalous)
    assert sum(computed) > 1.5 * max(held)


def test_table_as_text(scans: Path, weights: Path) -> None:
    table = evaluate_members(find_scans(scans), RECIPE, weights, "cpu")
    precisions, details, gains = table.markdown().split("\n\n")
    head, rule, *rows = precisions.splitlines()
    assert head == "|  | pixel AP | noise | shift | sample AP |"
    assert rule == "| --- | --- | --- | --- | --- |"
    for name, row in zip(table.rows, rows, strict=True):
        numbers = table.rows[name]
        values = [numbers.pixel_ap, numbers.per_type["noise"], numbers.per_type["shift"], numbers.sample_ap]
        assert row == f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"

    head, rule, *rows = details.splitlines()
    volumes = sorted(case.volume_ml for case in table.index.cases if case.volume_ml)
    names = ("small", "middle", "large")  # three anomalies, one a size
    thirds = [f"{n}, {volume:.3g}-{volume:.3g} mL" for n, volume in zip(names, volumes, strict=True)]
    rates = [f"found at {rate}" for rate in (0.1, 0.5, 1.0, 2.0)]
    intervals = [f"{name} AP, {end}" for name in ("pixel", "sample") for end in ("low", "high")]
    columns = [*(f"AP, {third}" for third in thirds), *(f"found, {third}" for third in thirds), *rates]
    columns = intervals + columns
    assert head == "|  | " + " | ".join(columns) + " |"
    for name, row in zip(table.rows, rows, strict=True):
        groups, recall = table.rows[name].by_size.values(), table.rows[name].recall
        both = (table.rows[name].pixel_interval, table.rows[name].sample_interval)
        assert all(one.low <= one.mean <= one.high for one in both)
        values = [end for one in both for end in (one.low, one.high)]
        values += (
            [group.pixel_ap for group in groups] + [group.found for group in groups] + [*recall.values()]
        )
        assert row == f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"

    head, rule, *rows = gains.splitlines()
    assert head == "|  | the ensemble's gain | from | to |"
    others = [name for name in table.rows if name != ENSEMBLE]
    for name, row in zip(others, rows, strict=True):
        gain = table.gains[name]
        assert row == f"| {name} | {gain.mean:.3f} | {gain.low:.3f} | {gain.high:.3f} |"
        intervals = table.rows[ENSEMBLE].pixel_interval, table.rows[name].pixel_interval
        assert gain.mean == pytest.approx(intervals[0].mean - intervals[1].mean)  # the same lists


def test_both_families_stand_side_by_side(scans: Path, weights: Path) -> None:
    recipe = Recipe(Region.BRAIN, 2, {HEALTHY: 1, "shift": 1, "blur": 1})
    table = evaluate_members(find_scans(scans), recipe, weights, "cpu")
    head, _, row, *_ = table.markdown().splitlines()
    columns = ["pixel AP", "shift", "sample AP"]
    assert (
        head
        == "|  | "
        + " | ".join([*columns, *(f"unseen: {name}" for name in ("pixel AP", "blur", "sample AP"))])
        + " |"
    )
    summary = next(iter(table.rows.values()))
    assert summary.unseen is not None and row.split(" | ")[4] == f"{summary.unseen.pixel_ap:.3f}"
