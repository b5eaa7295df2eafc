"""Judging that is cut off, goes on and is shared gives what judging at once gives."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mood_eval.members import MemberTable, evaluate_members
from mood_eval.validation_set import HEALTHY, Case, Recipe
from mood_eval.verdicts import KeptVerdicts
from mood_infer.challenge import Region, find_scans
from mood_infer.errors import UserError

RECIPE = Recipe(Region.BRAIN, 2, {HEALTHY: 3, "noise": 3, "shift": 2})


class StoppedError(Exception):
    """As a signal would."""


def assert_alike(one: MemberTable, other: MemberTable) -> None:
    """But for scores that round to the float16 beside, because windows come in other batches."""
    assert (one.index, one.weights, list(one.rows)) == (other.index, other.weights, list(other.rows))
    for name, row in one.rows.items():
        expected = other.rows[name]
        assert row.cases == expected.cases and list(row.recall) == list(expected.recall)
        assert row.pixel_ap == pytest.approx(expected.pixel_ap, rel=1e-3)
        assert row.per_type == pytest.approx(expected.per_type, rel=1e-2)
        assert [group.to_ml for group in row.by_size.values()] == [
            group.to_ml for group in expected.by_size.values()
        ]


def test_it_goes_on_where_it_was_cut_off(scans: Path, weights: Path, tmp_path: Path) -> None:
    paths, keep = find_scans(scans), tmp_path / "keep"
    at_once = evaluate_members(paths, RECIPE, weights, "cpu")
    cases = sum(RECIPE.counts.values())
    seen: list[int] = []

    def stop_after_three(_: Case, number: int, of: int) -> None:
        assert of == cases
        seen.append(number)
        if len(seen) == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        evaluate_members(paths, RECIPE, weights, "cpu", stop_after_three, keep)
    assert len(list(keep.glob("case_*"))) == 3
    resumed = evaluate_members(paths, RECIPE, weights, "cpu", lambda _, at, of: seen.append(at), keep)
    assert_alike(resumed, at_once)
    assert sorted(seen[4:]) == list(range(4, cases + 1))
    assert evaluate_members(paths, RECIPE, weights, "cpu", lambda *_: pytest.fail("again"), keep) == resumed


def test_what_is_kept_of_other_scans_is_refused(scans: Path, weights: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    paths = find_scans(shutil.copytree(scans, tmp_path / "scans"))
    evaluate_members(paths, RECIPE, weights, "cpu", keep=keep)
    other = Recipe(Region.BRAIN, 3, RECIPE.counts)
    for chosen, recipe in ((paths, other), (paths[::-1], RECIPE)):
        with pytest.raises(UserError, match="name another folder"):
            evaluate_members(chosen, recipe, weights, "cpu", keep=keep)
    shutil.copy(paths[1], paths[0])
    with pytest.raises(UserError, match="name another folder"):
        evaluate_members(paths, RECIPE, weights, "cpu", keep=keep)


@pytest.mark.slow
def test_several_processes_share_the_scans_and_one_may_die(
    scans: Path, weights: Path, tmp_path: Path
) -> None:
    keep = tmp_path / "keep"
    command = [sys.executable, "-m", "mood_eval", "members", scans, "--region", "brain", "--each", "9"]
    command += ["--weights", weights, "--keep", keep, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the same sums, in the same order
    alone = [*map(str, command[:-4]), "--device", "cpu", "--json", str(tmp_path / "alone.json")]
    subprocess.run(alone, check=True, env=environment)
    running = [
        subprocess.Popen(
            [*map(str, command), "--json", str(tmp_path / f"{number}.json")],
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for number in range(3)
    ]
    while not list(keep.glob("case_*")):
        time.sleep(0.05)
    running[0].send_signal(signal.SIGKILL)
    said = [one.communicate()[1] for one in running]
    assert [one.returncode for one in running] == [-signal.SIGKILL, 0, 0]
    expected = MemberTable.model_validate_json((tmp_path / "alone.json").read_text())
    for number in (1, 2):
        assert_alike(MemberTable.model_validate_json((tmp_path / f"{number}.json").read_text()), expected)
    judged = [set(re.findall(r"in (sub-\d+)", words)) for words in said]
    assert not judged[1] & judged[2] and judged[1] | judged[2]


def test_nobody_takes_what_another_has_and_what_is_given_up_is_taken(tmp_path: Path) -> None:
    scans = [Path(name) for name in "abc"]
    one, other = (KeptVerdicts(tmp_path, {"seed": 1}).share(scans) for _ in range(2))
    assert next(one) == scans[0]
    assert [next(other), next(other)] == scans[1:]
    one.close()  # as if its process had died
    assert next(other) == scans[0]
