import errno
import fcntl
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from mood_infer import job as job_module
from mood_infer import predictor as predictor_module
from mood_infer.challenge import Mode, Region, find_scans
from mood_infer.errors import ScanError, UserError
from mood_infer.job import Job, Outcome, State, Watcher, sole_run
from mood_infer.predictor import Predictor
from mood_infer.ranks import Share
from mood_infer.report import Report
from mood_infer.volume import PARTIAL_PREFIX, Volume, read_volume, write_atomically, write_map


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(Region.BRAIN, weights, "cpu")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def states(outcomes: list[Outcome]) -> dict[str, State]:
    return {outcome.scan.name: outcome.state for outcome in outcomes}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_mixed_folder(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    source = tmp_path / "scans"
    for name in (
        "b.nii.gz",
        "a.nii",
        "d.nii.gz",
        ".hidden.nii.gz",
        "inner/deep.nii.gz",
        "folder.nii.gz/x.nii.gz",
    ):
        make_scan(source / name)
    (source / "c.nii.gz").write_text("no scan")
    (source / "notes.txt").write_text("no scan either")
    scans = find_scans(source)
    assert [scan.name for scan in scans] == ["a.nii", "b.nii.gz", "c.nii.gz", "d.nii.gz"]
    outcomes = Job(predictor, Mode.PIXEL, output).run(scans)
    assert [outcome.state for outcome in outcomes] == [State.DONE, State.DONE, State.FAILED, State.DONE]
    assert outcomes[2].error is not None and outcomes[2].error.startswith(
        "c.nii.gz: not a readable NIfTI file;"
    )
    assert names(output) == {"a.nii", "b.nii.gz", "d.nii.gz"}
    for outcome in outcomes:
        if outcome.state is State.DONE:
            scan, result = nib.load(outcome.scan), nib.load(output / outcome.scan.name)
            scores = np.asarray(result.dataobj)
            assert scores.shape == scan.shape and scores.dtype == np.float32
            assert 0 <= scores.min() < scores.max() <= 1
            highest = np.sort(scores, axis=None)[-100:].mean()
            assert outcome.sample_score == pytest.approx(highest, abs=2**-12)  # half a step of float16
    sample = output.parent / "sample"
    sample.mkdir()
    again = Job(predictor, Mode.SAMPLE, sample).run(scans)
    assert names(sample) == {"a.nii.txt", "b.nii.gz.txt", "d.nii.gz.txt"}
    for pixel, outcome in zip(outcomes, again, strict=True):
        assert outcome.sample_score == pixel.sample_score
        if outcome.sample_score is not None:
            first, second = (sample / f"{outcome.scan.name}.txt").read_text().splitlines()
            assert float(first) == pytest.approx(outcome.sample_score, abs=1e-8)
            assert second.endswith(predictor.digest)


def test_both_at_once_are_the_same_bytes(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    scans = [make_scan(tmp_path / f"{name}.nii.gz", (24, 20, 30), ord(name)) for name in "ab"]
    apart = {}
    for mode in (Mode.PIXEL, Mode.SAMPLE):
        folder = tmp_path / mode
        folder.mkdir()
        Job(predictor, mode, folder).run(scans)
        apart |= {path.name: path.read_bytes() for path in folder.iterdir()}
    Job(predictor, Mode.BOTH, output).run(scans)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == apart and len(apart) == 4


DEGENERATE: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "zeros": (np.zeros((40, 33, 20), np.float32), np.eye(4)),
    "constant": (np.full((20, 20, 20), 700, np.int16), np.eye(4)),
    "negative": (np.full((20, 20, 20), -5, np.float32), np.eye(4)),
    "all-nan": (np.full((20, 20, 20), np.nan, np.float32), np.eye(4)),
    "one-voxel": (np.ones((1, 1, 1), np.float32), np.eye(4)),
    "one-plane": (np.random.default_rng(0).random((40, 40, 1)).astype(np.float32), np.eye(4)),
    "thick": (np.random.default_rng(0).random((40, 40, 7)).astype(np.float32), np.diag([1, 1, 5, 1])),
    "huge-values": (np.random.default_rng(0).random((20, 20, 20)) * 1e300, np.eye(4)),
    "some-inf": (np.where(np.random.default_rng(0).random((20, 20, 20)) > 0.5, np.inf, 0.5), np.eye(4)),
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", [*DEGENERATE, "singular", "zero-pixdim"])
def test_degenerate_scans_give_finite_results_and_warnings(
    name: str, mode: Mode, predictor: Predictor, tmp_path: Path, output: Path
) -> None:
    array, affine = DEGENERATE.get(name, (np.random.default_rng(1).random((20, 24, 18)), np.eye(4)))
    path = tmp_path / f"{name}.nii"
    nib.save(nib.Nifti1Image(array, affine), path)
    content = bytearray(path.read_bytes())
    if name == "singular":
        content[280:328] = bytes(48)
    if name == "zero-pixdim":
        content[80:92] = bytes(12)
    path.write_bytes(content)
    (outcome,) = Job(predictor, mode, output).run([path])
    assert outcome.state is State.DONE
    assert outcome.warnings
    if mode is not Mode.SAMPLE:
        scores = np.asarray(nib.load(output / path.name).dataobj)
        assert scores.shape == array.shape and np.isfinite(scores).all()
        assert scores.min() >= 0 and scores.max() <= 1
    if mode is not Mode.PIXEL:
        assert 0 <= float((output / f"{path.name}.txt").read_text().splitlines()[0]) <= 1


@pytest.mark.parametrize("mode", Mode)
def test_what_is_whole_is_not_redone(
    mode: Mode,
    predictor: Predictor,
    make_weights: Callable[..., Path],
    make_scan: Callable[..., Path],
    tmp_path: Path,
    output: Path,
) -> None:
    scans = [
        make_scan(tmp_path / "in" / f"{name}.nii.gz", (20, 20, 20), seed) for seed, name in enumerate("abc")
    ]
    job = Job(predictor, mode, output)
    assert set(states(job.run(scans)).values()) == {State.DONE}
    targets = sorted(output.iterdir())
    assert len(targets) == 3 * (2 if mode is Mode.BOTH else 1)
    target = [path for path in targets if path.name.startswith("b")][-1]

    def times() -> list[int]:
        return [path.stat().st_mtime_ns for path in targets]

    def run(job: Job = job) -> list[State]:
        return [outcome.state for outcome in job.run(scans)]

    before = times()
    assert run() == [State.SKIPPED] * 3
    assert times() == before
    content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])  # a copy that was cut short
    assert run() == [State.SKIPPED, State.DONE, State.SKIPPED]
    assert target.read_bytes() == content
    future = max(times()) + 10**9
    os.utime(scans[0], ns=(future, future))  # a scan that changed since
    assert run() == [State.DONE, State.SKIPPED, State.SKIPPED]
    os.utime(scans[0], ns=(0, 0))  # another scan of an older date, moved here in its place
    assert run() == [State.DONE, State.SKIPPED, State.SKIPPED]
    assert run() == [State.SKIPPED] * 3
    assert run(Job(predictor, mode, output, overwrite=True)) == [State.DONE] * 3
    other = Predictor.load(Region.BRAIN, make_weights(tmp_path / "other", seed=7), "cpu")
    assert other.digest != predictor.digest
    assert run(Job(other, mode, output)) == [State.DONE] * 3
    assert target.read_bytes() != content
    assert run(Job(other, mode, output)) == [State.SKIPPED] * 3


def test_a_link_that_leads_elsewhere_now_is_another_scan(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    stored = [make_scan(tmp_path / "store" / f"{seed}.nii.gz", (20, 20, 20), seed) for seed in range(2)]
    scan, job = tmp_path / "a.nii.gz", Job(predictor, Mode.PIXEL, output)
    scan.symlink_to(stored[0])
    job.run([scan])
    first = (output / scan.name).read_bytes()
    assert states(job.run([scan])) == {scan.name: State.SKIPPED}
    scan.unlink()
    scan.symlink_to(stored[1])  # as old as the first
    assert states(job.run([scan])) == {scan.name: State.DONE}
    assert (output / scan.name).read_bytes() != first


def test_a_damaged_scan_keeps_no_result_of_what_it_was(
    predictor: Predictor,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans = [make_scan(tmp_path / f"{name}.nii.gz", (20, 20, 20)) for name in "ab"]
    Job(predictor, Mode.BOTH, output).run(scans)
    content = scans[0].read_bytes()
    scans[0].write_bytes(content[: len(content) // 2])
    outcomes = Job(predictor, Mode.SAMPLE, output).run(scans)
    assert [outcome.state for outcome in outcomes] == [State.FAILED, State.SKIPPED]
    assert names(output) == {"b.nii.gz", "b.nii.gz.txt"}
    scans[1].chmod(0o600)  # a change that says nothing of the voxels
    with largest_file(100):  # what fails for another reason keeps what is there
        (failed,) = Job(predictor, Mode.PIXEL, output).run(scans[1:])
    assert failed.state is State.FAILED and names(output) == {"b.nii.gz", "b.nii.gz.txt"}

    def refuse(path: Path) -> None:
        raise ScanError(path, "not readable", "ask") from PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(job_module, "read_volume", refuse)
    (failed,) = Job(predictor, Mode.PIXEL, output).run(scans[1:])
    assert failed.state is State.FAILED and names(output) == {"b.nii.gz", "b.nii.gz.txt"}


def test_a_picture_that_fails_fails_no_scan(
    predictor: Predictor,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Report, "add", refuse)
    report = Report(tmp_path / "report").open()
    (outcome,) = Job(predictor, Mode.PIXEL, output, report=report).run([make_scan(tmp_path / "a.nii.gz")])
    assert outcome.state is State.DONE and outcome.error is None
    assert outcome.warnings == ("no picture was written: MemoryError",)


def test_a_map_of_another_shape_is_redone(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    scan = make_scan(tmp_path / "a.nii", (20, 20, 20))
    job = Job(predictor, Mode.PIXEL, output)
    job.run([scan])
    make_scan(scan, (20, 20, 24))
    os.utime(scan, ns=(0, 0))
    assert states(job.run([scan])) == {"a.nii": State.DONE}
    assert nib.load(output / "a.nii").shape == (20, 20, 24)


def test_leftovers_of_a_killed_run_go_and_nothing_else(output: Path) -> None:
    (output / f"{PARTIAL_PREFIX}abc-a.nii.gz").write_text("half")
    (output / "other.txt").write_text("kept")
    with sole_run(output, Share()):
        assert names(output) == {"other.txt"}


def test_two_runs_do_not_share_an_output_folder(output: Path) -> None:
    partial = output / f"{PARTIAL_PREFIX}abc-a.nii.gz"
    with sole_run(output, Share()):
        partial.write_text("half")
        with pytest.raises(UserError, match="another run writes there"), sole_run(output, Share()):
            pass
        assert partial.exists()
    with sole_run(output, Share()):
        assert not partial.exists()


def test_a_file_system_without_locks_keeps_nobody_out(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_run(output, Share()), sole_run(output, Share()):
        pass


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk looks like to a program: writing beyond some bytes fails."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_full_disk_is_named_and_leaves_no_half_file(
    suffix: str, predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    scans = [
        make_scan(tmp_path / f"large{suffix}", (40, 40, 40)),
        make_scan(tmp_path / f"small{suffix}", (5, 5, 5)),
    ]
    with largest_file(20_000):
        large, small = Job(predictor, Mode.PIXEL, output).run(scans)
    assert large.state is State.FAILED and small.state is State.DONE
    assert large.error is not None and large.error.startswith(
        f"large{suffix}: cannot be written (File too large);"
    )
    assert names(output) == {f"small{suffix}"}


def test_an_output_that_cannot_be_written_is_found_before_the_prediction(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    class Counter(Watcher):
        windows = 0

        def advances(self, windows: int, of: int) -> None:
            self.windows = windows

    scan = make_scan(tmp_path / "a.nii.gz")
    (output / "a.nii.gz").mkdir()
    counter = Counter()
    (taken,) = Job(predictor, Mode.PIXEL, output).run([scan], counter)
    assert taken.state is State.FAILED and "a folder has that name" in str(taken.error)
    (gone,) = Job(predictor, Mode.PIXEL, tmp_path / "gone").run([scan], counter)
    assert gone.state is State.FAILED and "No such file or directory" in str(gone.error)
    assert counter.windows == 0


def test_too_little_memory_fails_one_scan_only(
    predictor: Predictor, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    """A header that asks for more voxels than any memory holds."""
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "vast.nii").write_bytes(header.binaryblock + bytes(400))
    scans = [tmp_path / "vast.nii", make_scan(tmp_path / "b.nii", (20, 20, 20))]
    vast, fine = Job(predictor, Mode.SAMPLE, output).run(scans)
    assert vast.state is State.FAILED and fine.state is State.DONE
    assert str(vast.error).startswith("vast.nii: ")


def test_a_lack_of_host_memory_while_scoring_fails_in_words(
    predictor: Predictor,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own error, of more bytes than any machine has."""
    monkeypatch.setattr(predictor_module, "slide", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    (outcome,) = Job(predictor, Mode.PIXEL, output).run([make_scan(tmp_path / "a.nii.gz")])
    assert outcome.error == (
        "a.nii.gz: there is not enough memory for it; crop it or use a machine with more memory."
    )
    assert not names(output)


def test_the_watcher_sees_everything(
    weights: Path, make_scan: Callable[..., Path], tmp_path: Path, output: Path
) -> None:
    predictor = Predictor.load(Region.BRAIN, weights, "cpu", precision="float32")
    seen: list[tuple[object, ...]] = []

    class Recorder(Watcher):
        def begins(self, scan: Path, index: int, count: int) -> None:
            seen.append(("begins", scan.name, index, count))

        def advances(self, windows: int, of: int) -> None:
            seen.append((windows, of))

        def ends(self, outcome: Outcome) -> None:
            seen.append(("ends", outcome.state))

    scan = make_scan(tmp_path / "a.nii", (40, 20, 20))
    Job(predictor, Mode.SAMPLE, output).run([scan], Recorder())
    assert seen[0] == ("begins", "a.nii", 0, 1) and seen[-1] == ("ends", State.DONE)
    assert seen[1:-1] == [(2, 4), (4, 4)]  # a pair for each of two members


@pytest.mark.parametrize("mode", Mode)
def test_what_the_time_limit_cut_short_is_not_whole(
    mode: Mode,
    predictor: Predictor,
    weights: Path,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    output: Path,
) -> None:
    scans = [make_scan(tmp_path / "a.nii.gz")]
    hurried = Job(Predictor.load(Region.BRAIN, weights, "cpu", time_limit=0), mode, output)
    (first,) = hurried.run(scans)
    assert first.state is State.DONE and first.members == ("member0.safetensors",)
    assert "because of the time limit of 0 s only 1 of 2 members were used" in first.warnings
    assert [outcome.state for outcome in hurried.run(scans)] == [State.SKIPPED]  # it would be no better
    unlimited = Job(Predictor.load(Region.BRAIN, weights, "cpu"), mode, output)
    assert not unlimited._serves(hurried._cut_short())
    ample = Job(Predictor.load(Region.BRAIN, weights, "cpu", time_limit=1e6), mode, output)
    (second,) = ample.run(scans)
    assert second.state is State.DONE and second.members == ("member0.safetensors", "member1.safetensors")
    for job in (ample, hurried, Job(predictor, mode, output)):  # a whole one serves all
        assert [outcome.state for outcome in job.run(scans)] == [State.SKIPPED]
    fast = Job(Predictor.load(Region.BRAIN, weights, "cpu", speed="fast"), mode, output)
    assert [outcome.state for outcome in fast.run(scans)] == [State.DONE]


class Stages(Watcher):
    """Lets tests hold a scan in a stage: ``on`` is called with each stage's name and scan as it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on: Callable[[str, str], None]) -> None:
        self._on = on

        def read(path: Path) -> Volume:
            on("read", path.name)
            return read_volume(path)

        def write(path: Path, *arguments: Any) -> None:
            on("write", path.name)
            write_map(path, *arguments)

        monkeypatch.setattr(job_module, "read_volume", read)
        monkeypatch.setattr(job_module, "write_map", write)

    def begins(self, scan: Path, index: int, count: int) -> None:
        self._scan = scan.name

    def advances(self, windows: int, of: int) -> None:
        if windows == 1:
            self._on("score", self._scan)


@pytest.fixture
def four(make_scan: Callable[..., Path], tmp_path: Path) -> list[Path]:
    return [make_scan(tmp_path / "in" / f"{name}.nii.gz", (24, 20, 30), ord(name)) for name in "abcd"]


def one_by_one(predictor: Predictor, scans: list[Path], folder: Path) -> dict[str, bytes]:
    """What jobs of one scan each write: with nothing before or after it, nothing runs at the same time."""
    folder.mkdir()
    for scan in scans:
        Job(predictor, Mode.PIXEL, folder).run([scan])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_reading_and_writing_are_hidden_behind_scoring(
    predictor: Predictor, four: list[Path], tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scan's scoring waits until the next was read and the last is being written, which waits for it."""
    begun = {(stage, scan.name): Event() for stage in ("read", "score", "write") for scan in four}
    order: list[tuple[str, str]] = []
    late: list[tuple[str, str]] = []
    follower = {scan.name: after.name for scan, after in pairwise(four)}
    leader = {after: scan for scan, after in follower.items()}

    def on(stage: str, scan: str) -> None:
        order.append((stage, scan))
        begun[stage, scan].set()
        awaited = {
            "read": [("score", leader.get(scan))],
            "score": [("read", follower.get(scan)), ("write", leader.get(scan))],
            "write": [("score", follower.get(scan))],
        }
        for other, name in awaited[stage]:
            if name is not None and not begun[other, name].wait(20):
                late.append((stage, scan))

    outcomes = Job(predictor, Mode.PIXEL, output).run(four, Stages(monkeypatch, on))
    assert not late
    assert [outcome.state for outcome in outcomes] == [State.DONE] * 4
    # never more than one waits: c is read after the scoring of b has begun, a written before that of c
    place = {step: number for number, step in enumerate(order)}
    for before, scan, after in zip(four, four[1:], four[2:], strict=False):
        assert place["read", after.name] > place["read", scan.name]
        assert place["write", before.name] < place["score", after.name]
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in output.iterdir()} == one_by_one(
        predictor, four, tmp_path / "single"
    )


def test_no_more_than_one_scan_waits_each_way(
    predictor: Predictor, four: list[Path], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a is scored, b may be read but not c; c is not scored before a is written."""
    c_read, a_written = Event(), Event()
    seen: list[tuple[str, bool]] = []

    def on(stage: str, scan: str) -> None:
        if (stage, scan) == ("read", "c.nii.gz"):
            c_read.set()
        if (stage, scan) == ("score", "a.nii.gz"):
            seen.append(("c read", c_read.wait(0.3)))
        if (stage, scan) == ("write", "a.nii.gz"):
            seen.append(("c scored", a_written.wait(0.3)))
        if (stage, scan) == ("score", "c.nii.gz"):
            a_written.set()

    Job(predictor, Mode.PIXEL, output).run(four, Stages(monkeypatch, on))
    assert sorted(seen) == [("c read", False), ("c scored", False)]
    assert c_read.is_set() and a_written.is_set()


@pytest.mark.parametrize("stage", ["read", "write"])
def test_what_fails_in_a_thread_hurts_its_scan_alone(
    stage: str,
    predictor: Predictor,
    four: list[Path],
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = one_by_one(predictor, four, tmp_path / "single")
    ends: list[str] = []

    def on(at: str, scan: str) -> None:
        if (at, scan) == (stage, "b.nii.gz"):
            raise OSError(28, "No space left on device")
        if (at, scan) == (stage, "c.nii.gz"):
            raise MemoryError

    stages = Stages(monkeypatch, on)
    monkeypatch.setattr(stages, "ends", lambda outcome: ends.append(outcome.scan.name))
    a, b, c, d = Job(predictor, Mode.PIXEL, output).run(four, stages)
    assert a.state is d.state is State.DONE and b.state is c.state is State.FAILED
    assert ends == [scan.name for scan in four]
    assert c.error == (
        "c.nii.gz: there is not enough memory for it; crop it or use a machine with more memory."
    )
    assert "No space left on device" in str(b.error) and str(b.error).startswith("b.nii.gz: ")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        name: content for name, content in whole.items() if name[0] in "ad"
    }


@pytest.mark.parametrize("where", ["scoring the next", "starting to write"])
def test_a_signal_ends_the_threads_too_and_no_half_file_stays(
    where: str, predictor: Predictor, four: list[Path], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Event()

    def endless(path: Path, *_: Any) -> None:
        def fill(partial: Path) -> None:
            with partial.open("wb") as stream:
                while True:
                    stream.write(bytes(1000))
                    writing.set()
                    time.sleep(0.001)

        write_atomically(path, fill)

    def on(stage: str, scan: str) -> None:
        if (stage, scan) == ("score", "b.nii.gz"):
            assert writing.wait(20)
            raise SystemExit(143)  # as the command's signal handler

    class Interrupted(job_module._Background):
        def start(self) -> None:
            writes = self.passage.anomalies is not None
            super().start()
            if writes:
                assert writing.wait(20)
                raise SystemExit(143)

    if where == "starting to write":
        monkeypatch.setattr(job_module, "_Background", Interrupted)
    stages = Stages(monkeypatch, on)
    monkeypatch.setattr(job_module, "write_map", endless)
    begin = time.monotonic()
    with pytest.raises(SystemExit):
        Job(predictor, Mode.PIXEL, output).run(four, stages)
    assert time.monotonic() - begin < 5
    threads = [thread for thread in threading.enumerate() if isinstance(thread, job_module._Background)]
    assert all(thread.done.is_set() for thread in threads)
    assert names(output) == set()


def test_a_thread_that_is_stopped_before_its_start_does_nothing(tmp_path: Path) -> None:
    called: list[object] = []
    thread = job_module._Background(called.append, job_module._Passage(tmp_path, 0, tmp_path))
    begin = time.monotonic()
    job_module._stop(thread)
    assert time.monotonic() - begin < job_module.PATIENCE / 2  # there is nothing to wait for
    thread.start()
    assert thread.done.wait(20) and not called
