"""Ablations: what a file asks for, what is trained and judged, and what a rerun leaves alone."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mood_eval.ablation import (
    Bench,
    Plan,
    RowResult,
    StoppedError,
    read_plan,
    run_ablation,
    run_configs,
    unsmoothed_ap,
)
from mood_eval.ablation_report import draw_figure, render_table
from mood_eval.average_precision import ScoreCounts, average_precision, merge
from mood_eval.cli import main
from mood_eval.summary import FamilySummary, Judged, Summary
from mood_eval.validation_set import HEALTHY, Case, Index, Recipe, make_cases, plan_cases
from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.intensity import QuartileRule
from mood_infer.predictor import Predictor
from mood_infer.weights import read_manifest
from mood_train.config import load_preset
from mood_train.run import Material

SHIPPED = Path(__file__).parents[2] / "docs" / "ablation.toml"
TINY = """
name = "tiny"
network = { widths = [4, 4, 4, 4, 4] }
patches = { window = 16, min_body = 0.1 }
anomalies = { bank_size = 4, max_count = 2, smooth_kernels = [1, 3] }
optimiser = { steps = 99, batch = 2, max_lr = 1e-3 }
ensemble = { hard_steps = 1, smooth_steps = 1 }
[regions.brain]
spacing = 4.0
intensity = { name = "mr-quartiles" }
body_above = 0.0
body_is_filled = false
anomalies_in_body = true
"""
ROWS = """
preset = "{preset}"
steps = 2
anomalies = {{ max_size = 0.4 }}
[rows.both]
mean_of = ["hard", "smooth"]
[rows.hard]
edges = "hard"
[rows.smooth]
edges = "smooth"
anomalies = {{ poisson_share = 1.0, other_share = 0.0 }}
[rows.sparse]
mean_of = ["hard"]
overlap = 0.0
[rows.average]
baseline = "mean-scan"
"""


def test_the_shipped_rows_differ_in_what_they_say_alone() -> None:
    plan = read_plan(SHIPPED)
    configs = run_configs(plan, Region.BRAIN)
    assert (plan.steps, plan.fold) == (1000, 0) and len(plan.rows) == 17
    compact = load_preset("compact")
    for name, config in configs.items():
        same = {field: getattr(compact, field) for field in ("name", "anomalies", "optimiser", "regions")}
        assert config.preset.model_copy(update=same) == compact
        changes = {"smooth_weight": 1.0, "context": 0.0}
        plain = compact.regions[Region.BRAIN].model_copy(update=changes)
        assert config.preset.regions[Region.BRAIN] == plain
        assert config.preset.optimiser == compact.optimiser.model_copy(update={"steps": 1000})
        assert (config.seed, config.fold, config.preset.name) == (0, 0, name)
    anomalies = {name: config.preset.anomalies for name, config in configs.items()}
    assert all(one.own_share == 0 for one in anomalies.values())
    cuboids = {name for name, one in anomalies.items() if set(one.shapes) == {"cuboid"}}
    assert cuboids == {"cuboids-hard", "cuboids-smooth", "fpi", "pii", "cutpaste"}
    assert {name for name, one in anomalies.items() if one.max_size == 0.8} == {
        "size-80-hard",
        "size-80-smooth",
    }
    assert {name for name, one in anomalies.items() if one.poisson_share == 1} == {"pii", "nsa"}
    assert {name for name, one in anomalies.items() if one.other_share == 0} == {"cutpaste", "nsa"}
    assert anomalies["cutpaste"].alpha_min == 1 and set(anomalies["nsa"].shapes) == {"sphere", "walk"}
    assert {name for name, config in configs.items() if config.edges == "smooth"} == {
        "cuboids-smooth",
        "complex-smooth",
        "size-80-smooth",
    }


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("", "rows: "),
        ("[rows.a]\n", "give one of edges, mean_of and baseline"),
        ("[rows.a]\nedges = 'hard'\nbaseline = 'mean-scan'", "give one of edges, mean_of and baseline"),
        ("[rows.a]\nedges = 'soft'", "rows.a.edges"),
        ("[rows.a]\nbaseline = 'luck'", "there is no baseline luck; choose among intensity-histogram"),
        ("[rows.a]\nbaseline = 'mean-scan'\noverlap = 0.5", "a baseline has no windows"),
        ("[rows.a]\nmean_of = ['b']", "a: b is no row with edges"),
        ("[rows.a]\nedges = 'hard'\noverlap = 1.0", "rows.a.overlap"),
        ("[rows.a]\nmean_of = ['a']\nanomalies = { rate = 1.0 }", "anomalies belong to a row with edges"),
        ("[rows.'a/b']\nedges = 'hard'", "String should match pattern"),
        ("[rows.a]\nedges = 'hard'\nanomalies = { rat = 1.0 }", "row a: rat: Extra inputs"),
        ("[rows.a]\nedges = 'hard'\nanomalies = { max_size = 0.01 }", "row a: anomalies: .*must not exceed"),
        ("steps", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(rows: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text('preset = "compact"\n' + rows)
    with pytest.raises(UserError, match=text):
        run_configs(read_plan(path), Region.BRAIN)


def test_a_preset_without_the_region_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text('preset = "compact-wide"\n[rows.a]\nedges = "hard"\n')
    assert run_configs(read_plan(path), Region.ABDOM)["a"].place.spacing == 1.2
    with pytest.raises(UserError, match="compact-wide: has no recipe for brain; give another preset"):
        run_configs(read_plan(path), Region.BRAIN)


@pytest.fixture(scope="module")
def bench(five_scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two networks' worth of training scans, two that are set aside, one left out."""
    folder = tmp_path_factory.mktemp("ablation")
    names = [f"brain/sub-0{number}.nii.gz" for number in range(1, 6)]
    split = {"brain": {"set_aside": names[:2], "folds": [names[2:3], names[3:4], names[4:]]}}
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "tiny.toml").write_text(TINY)
    (folder / "rows.toml").write_text(ROWS.format(preset=folder / "tiny.toml"))
    material = Material.find(five_scans, folder / "split.json", Region.BRAIN, 0, folder / "cache")
    recipe = Recipe(Region.BRAIN, 0, {HEALTHY: 2, "noise": 2, "noise_smooth": 1, "blur": 1})
    return Bench(material, material.paths[:2], recipe, folder / "out", "cpu")


def _run(
    bench: Bench, plan: Plan, stop_after: int = 10**6, counts: tuple[int, ...] = (3, 4, 5)
) -> tuple[dict[str, RowResult], list[str]]:
    lines: list[str] = []
    seen: list[dict[str, RowResult]] = []
    asked = iter(range(10**6))
    run_ablation(
        plan, bench, lambda: next(asked) >= stop_after, lines.append, lambda rows: seen.append({**rows})
    )
    assert tuple(len(rows) for rows in seen) == counts  # whenever there are more
    return seen[-1], lines


def _stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_ablation_from_end_to_end(bench: Bench) -> None:
    plan = read_plan(bench.out.parent / "rows.toml")
    # cut off in the second training, and once more while a row is judged: the same command goes on
    for stop_after in (3, 4):
        with pytest.raises(StoppedError):
            _run(bench, plan, stop_after)
    assert not list((bench.out / "rows").glob("*"))
    results, lines = _run(bench, plan)
    assert [line for line in lines if line.endswith("training")] == []  # both had been trained before
    assert list(results) == ["both", "hard", "smooth", "sparse", "average"]
    # networks in common at the same overlap: one pass
    passes = [line.split(":")[0] for line in lines if ": 6/6 " in line]
    assert passes == ["both, hard, smooth", "sparse", "average"]

    # nothing is redone: not a step and not a case may be asked for, and no file is touched
    stamps = _stamps(bench.out)
    again, lines = _run(bench, plan, stop_after=0, counts=(5,))
    assert again == results and lines == []
    manifest = read_manifest(bench.out / "weights" / "brain")
    assert sorted(member.file for member in manifest.members) == [
        "hard-fold0-hard.safetensors",
        "smooth-fold0-smooth.safetensors",
    ]
    assert [member.steps for member in manifest.members] == [2, 2]
    assert _stamps(bench.out) == stamps

    # one row more is one row judged
    (bench.out / "rows" / "sparse.json").unlink()
    again, lines = _run(bench, plan, counts=(4, 5))
    assert again == results and {line.split(":")[0] for line in lines} == {"sparse"}

    # the numbers are those of the exported networks, averaged
    plan_of_cases = plan_cases(list(bench.judged), bench.recipe)
    cases = [
        made
        for source in bench.judged
        for made in make_cases(source, [case for path, case in plan_of_cases if path == source], bench.recipe)
        if made.case.family != "unseen"
    ]
    predictor = Predictor.load(Region.BRAIN, bench.out / "weights", "cpu")
    maps = [predictor.predict(made.image).scores for made in cases]
    total = merge(ScoreCounts.of(one, made.label) for one, made in zip(maps, cases, strict=True))
    # windows come in other batches there, so that a few scores may round to the float16 beside it
    assert results["both"].summary.pixel_ap == pytest.approx(average_precision(total), rel=1e-6)
    assert set(results["both"].summary.per_type) == {"noise", "noise_smooth"}
    unseen = results["both"].summary.unseen
    assert unseen is not None and set(unseen.per_type) == {"blur"}
    assert len({result.summary.pixel_ap for result in results.values()}) == 5

    # what was made from other settings is never passed off as this row
    changed = plan.model_copy(update={"anomalies": {"max_size": 0.5}})
    with pytest.raises(UserError, match=r"both\.json: made from other settings or scans"):
        _run(bench, changed)
    for path in (bench.out / "rows").glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="was made with another preset"):
        _run(bench, changed)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The command takes the signals over; the test run wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("own_signals")
def test_the_command_writes_table_and_figure(
    bench: Bench, five_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.toml"
    rows.write_text(f'preset = "{bench.out.parent / "tiny.toml"}"\nsteps = 1\n[rows.one]\nedges = "hard"\n')
    arguments = [
        "ablation",
        "--config",
        rows,
        "--data",
        five_scans,
        "--region",
        "brain",
        "--out",
        tmp_path / "out",
    ]
    arguments += ["--split", bench.material.split_file, "--part", "held_out", "--family", "seen", "--seed", 3]
    monkeypatch.setattr(sys, "argv", ["mood-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    result = RowResult.model_validate_json((tmp_path / "out/rows/one.json").read_text())
    assert result.summary.cases == 8 and result.summary.unseen is None  # the one scan left out, once healthy
    assert (tmp_path / "out/ablation.md").read_text() == render_table({"one": result})
    assert (tmp_path / "out/ablation.png").read_bytes().startswith(b"\x89PNG")


def test_what_training_needs_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mood_train.run", None)  # as its import fails without accelerate
    arguments = ["--config", "x", "--data", tmp_path, "--region", "brain", "--split", "x", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["mood-eval", "ablation", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "mood_train.run is missing; install it: scripts/setup.sh train,eval." in capsys.readouterr().err


def _result(start: float) -> RowResult:
    unseen = FamilySummary(
        cases=3, pixel_ap=start + 0.05, sample_ap=start + 0.06, per_type={"blur": start + 0.07}
    )
    types = {"noise": start + 0.02, "noise_smooth": start + 0.03}
    summary = Summary(cases=4, pixel_ap=start, sample_ap=start + 0.04, per_type=types, unseen=unseen)
    return RowResult(made_from="x", unsmoothed_ap=start + 0.01, summary=summary)


def test_the_table_has_every_number_in_its_column() -> None:
    table = render_table({"one": _result(0.1), "two": _result(0.5)})
    head = "|  | pixel AP | unsmoothed | noise | noise smooth | sample AP | unseen | unseen sample AP |"
    assert table.splitlines() == [
        head,
        "| " + " | ".join(["---"] * 8) + " |",
        "| one | 0.100 | 0.110 | 0.120 | 0.130 | 0.140 | 0.150 | 0.160 |",
        "| two | 0.500 | 0.510 | 0.520 | 0.530 | 0.540 | 0.550 | 0.560 |",
    ]


def test_the_figure_has_a_bar_a_row_in_a_panel_a_type() -> None:
    figure = draw_figure({"one": _result(0.1), "two": _result(0.5)})
    panels = {
        (axes.get_title(), number // 4): [bar.get_width() for bar in axes.patches]
        for number, axes in enumerate(figure.axes)
        if axes.get_title()
    }
    assert panels == {
        ("pixel AP", 0): pytest.approx([0.1, 0.5]),
        ("unsmoothed", 0): pytest.approx([0.11, 0.51]),
        ("noise", 0): pytest.approx([0.12, 0.52]),
        ("noise smooth", 0): pytest.approx([0.13, 0.53]),
        ("pixel AP", 1): pytest.approx([0.15, 0.55]),
        ("blur", 1): pytest.approx([0.17, 0.57]),
    }
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["one", "two"] and figure.axes[0].yaxis_inverted()  # the first row on top


def test_the_unsmoothed_ap_leaves_smoothed_and_unseen_cases_out() -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "a": HEALTHY,
        "b": "noise",
        "c": "noise_smooth",
        "d": "blur",
        "e": "uniform_smooth",
        "f": "shift",
    }
    families = {HEALTHY: "healthy", "blur": "unseen"}
    cases, judged = [], []
    for name, kind in kinds.items():
        family = families.get(kind, "seen")
        cases.append(Case(name=name, kind=kind, family=family, source="s", number=1))  # type: ignore[arg-type]
        labels = rng.random(50) < (0 if kind == HEALTHY else 0.3)
        counts = ScoreCounts.of(rng.random(50).astype(np.float32), labels)
        judged.append(Judged(name, kind != HEALTHY, counts, 0.5))
    index = Index(
        region=Region.BRAIN,
        seed=0,
        spacing=None,
        intensity=QuartileRule(),
        healthy_repeats=False,
        cases=tuple(cases),
    )
    wanted = merge(judged[number].pixels for number in (0, 1, 5))
    assert unsmoothed_ap(judged, index) == average_precision(wanted)
    assert unsmoothed_ap([judged[0], judged[2]], index) is None
