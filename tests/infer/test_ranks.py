"""Real processes under torchrun; and the shares of ranks that are threads on one real store."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from torch.distributed import PrefixStore, TCPStore

from mood_infer.challenge import Mode, Region
from mood_infer.errors import UserError
from mood_infer.job import Job, Watcher, sole_run
from mood_infer.predictor import Predictor
from mood_infer.ranks import RankShare, Share, join
from mood_infer.volume import PARTIAL_PREFIX

ROOT = Path(__file__).resolve().parents[2]
RANKS = 3


@pytest.fixture
def shares() -> Iterator[list[RankShare]]:
    store = TCPStore("localhost", 0, is_master=True)
    yield [RankShare(PrefixStore("test", store), rank, RANKS) for rank in range(RANKS)]


def test_without_a_launcher_all_is_ours() -> None:
    share = join()
    assert type(share) is Share and share.record_name == "run.json"
    scans = [Path(name) for name in "abc"]
    assert list(share.order(scans)) == [0, 1, 2] and all(map(share.take, scans))


def test_each_scan_is_taken_once_and_none_waits_behind_a_slow_or_dead_rank(shares: list[RankShare]) -> None:
    scans = [Path(name) for name in "abcdef"]
    slow, quick, other = (share.order(scans) for share in shares)
    assert shares[0].take(scans[next(slow)])  # a
    assert next(slow) == 1  # read ahead, and then nothing more
    taken = [scans[index].name for index in quick if shares[1].take(scans[index])]
    assert taken == ["c", "d", "e", "f", "b"]
    assert not shares[0].take(scans[1])
    assert list(slow) == list(other) == []


def test_one_does_what_is_to_be_done_once(shares: list[RankShare]) -> None:
    done: list[int] = []
    for number, share in enumerate(shares):
        share.once(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == [0]


def test_who_leaves_waits_for_the_others(shares: list[RankShare]) -> None:
    leaving = [Thread(target=share.leave, daemon=True) for share in shares]
    for thread in leaving[:-1]:
        thread.start()
    leaving[0].join(1)
    assert all(thread.is_alive() for thread in leaving[:-1])
    leaving[-1].start()
    for thread in leaving:
        thread.join(10)
    assert not any(thread.is_alive() for thread in leaving)


def test_a_job_leaves_others_their_scans(
    shares: list[RankShare], weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scans = [make_scan(tmp_path / "in" / f"{name}.nii.gz", (20, 20, 20)) for name in "abcd"]
    predictor = Predictor.load(Region.BRAIN, weights, "cpu")
    (tmp_path / "out").mkdir()
    assert shares[0].take(scans[1])
    begun: list[tuple[int, int]] = []

    class Recorder(Watcher):
        def begins(self, scan: Path, index: int, count: int) -> None:
            begun.append((index, count))

    outcomes = Job(predictor, Mode.SAMPLE, tmp_path / "out").run(scans, Recorder(), shares[1])
    assert [outcome.scan.name[0] for outcome in outcomes] == ["a", "c", "d"]
    assert begun == [(0, 4), (2, 4), (3, 4)]
    assert {path.name[0] for path in (tmp_path / "out").iterdir()} == {"a", "c", "d"}


def test_the_first_rank_holds_the_output_folder_until_all_have_left(
    shares: list[RankShare], tmp_path: Path
) -> None:
    may_end = [Event() for _ in shares]

    def work(share: RankShare, end: Event) -> None:
        with sole_run(tmp_path, share):
            end.wait(20)

    ranks = [Thread(target=work, args=pair, daemon=True) for pair in zip(shares, may_end, strict=True)]
    for rank in ranks:
        rank.start()
    shares[0]._wait("once", 1)
    partial = tmp_path / f"{PARTIAL_PREFIX}of-a-rank"
    partial.touch()
    for count, end in enumerate(may_end[:-1], start=1):
        end.set()
        shares[0]._wait("ended", count)
        time.sleep(0.05)  # one that did not wait for the others would let go now
        with pytest.raises(UserError, match="another run"), sole_run(tmp_path, Share()):
            pass
    assert partial.exists()
    may_end[-1].set()
    for rank in ranks:
        rank.join(20)
    with sole_run(tmp_path, Share()):
        assert not partial.exists()


def command(scans: Path, output: Path, weights: Path, *more: object) -> list[str]:
    words = ["-m", "mood_infer", "predict", scans, output, "--region", "brain", "--mode", "pixel"]
    return [str(word) for word in (*words, "--weights", weights, "--device", "cpu", "--threads", 1, *more)]


def torchrun(*more: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(words: list[str]) -> tuple[int, str]:
    process = start(words)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def scans(make_scan: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(16):
        make_scan(folder / f"{seed:02}.nii.gz", (60, 60, 60), seed)
    return folder


@pytest.fixture(scope="module")
def alone(scans: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The maps that one process writes."""
    output = tmp_path_factory.mktemp("alone")
    code, errors = finish([sys.executable, *command(scans, output, weights)])
    assert code == 0, errors
    return maps(output)


@pytest.mark.slow
def test_three_ranks_share_a_folder_and_a_bad_scan_ends_none_of_them(
    scans: Path, weights: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in scans.iterdir():
        (mixed / path.name).symlink_to(path)
    (mixed / "00-bad.nii.gz").write_text("no scan")
    words = [*torchrun(), *command(mixed, tmp_path / "out", weights, "--report", tmp_path / "report")]
    code, errors = finish(words)
    assert code == 1
    assert maps(tmp_path / "out") == alone
    assert errors.count(": done in ") == 16 and errors.count("failed: 00-bad.nii.gz: not a readable") == 1
    assert len([line for line in errors.splitlines() if line.endswith(" failed")]) == RANKS
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        *(f"{name}.png" for name in alone),
        *(f"run-{rank}.json" for rank in range(RANKS)),
    }
    found = [
        (Path(scan["scan"]).name, scan["state"])
        for rank in range(RANKS)
        for scan in json.loads((tmp_path / "report" / f"run-{rank}.json").read_text())["scans"]
    ]
    assert sorted(found) == sorted([("00-bad.nii.gz", "failed"), *((name, "done") for name in alone)])


@pytest.mark.slow
def test_several_machines_are_refused(scans: Path, weights: Path, tmp_path: Path) -> None:
    """Two launchers that meet are two machines to the ranks."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test"]
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meeting,
        *command(scans, tmp_path / "out", weights),
    ]
    launchers = [start(words), start(words)]
    told = [launcher.communicate(timeout=120)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [1, 1]
    assert all("torchrun runs on 2 machines" in errors for errors in told)
    # one of them may find that the other, which kept their store, has ended before it
    assert any("exitcode  : 2" in errors for errors in told)
    assert not maps(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_is_killed(
    restarts: int, scans: Path, weights: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """What was done stays and is whole; the launcher's restart, or a run by hand, does the rest."""
    output = tmp_path / "out"
    words = [*torchrun(f"--max-restarts={restarts}"), *command(scans, output, weights)]
    launcher = start(words)
    deadline = time.monotonic() + 200
    while not (output.is_dir() and len(maps(output)) >= 3):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == RANKS
    done = maps(output)
    os.kill(int(children[1]), 9)
    _, errors = launcher.communicate(timeout=300)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    if restarts:
        assert launcher.returncode == 0, errors
        assert maps(output) == alone
    else:
        assert launcher.returncode == 1
        assert done.items() <= maps(output).items() and len(maps(output)) < len(alone)
        assert maps(output).items() <= alone.items()
    code, errors = finish(words)
    assert code == 0, errors
    assert {path.name for path in output.iterdir()} == set(alone)  # no half-written file either
    assert maps(output) == alone
    assert errors.count(": skipped, ") == sum(name in alone for name in before)
    assert all((output / name).stat().st_mtime_ns == old for name, old in before.items() if name in alone)
