import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer

from mood_infer import cli
from mood_infer.challenge import Mode, Region
from mood_infer.volume import PARTIAL_PREFIX

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [(mode, region) for mode in (Mode.PIXEL, Mode.SAMPLE) for region in Region]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line in this process and returns its exit code and all it printed."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers belong to the test runner here

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mood-infer", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out + streams.err

    return call


@pytest.fixture
def scans(make_scan: Callable[..., Path], tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        make_scan(tmp_path / "scans" / f"{name}.nii.gz", (24, 20, 30), seed)
    return tmp_path / "scans"


def options(weights: Path, region: str = "brain", mode: str = "pixel") -> tuple[object, ...]:
    return ("--region", region, "--mode", mode, "--weights", weights, "--device", "cpu", "--threads", 1)


def test_all_done_is_0_and_a_rerun_skips(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder"
    code, text = run("predict", scans, output, *options(weights))
    assert code == 0
    assert re.search(r"^a\.nii\.gz: done in [\d.]+ s, sample score 0\.\d{4}$", text, re.M)
    assert text.splitlines()[0] == "scans: 2, networks: 2, on: cpu"
    assert text.splitlines()[-1] == "2 done, 0 skipped, 0 failed"
    code, text = run("predict", scans, output, *options(weights))
    assert code == 0 and text.splitlines()[-1] == "0 done, 2 skipped, 0 failed"
    code, text = run("predict", scans, output, *options(weights), "--overwrite")
    assert code == 0 and text.splitlines()[-1] == "2 done, 0 skipped, 0 failed"


def test_a_single_file(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    code, _ = run("predict", scans / "b.nii.gz", tmp_path / "out", *options(weights, "abdom", "sample"))
    assert code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.nii.gz.txt"]


def test_a_memory_limit_refuses_by_name(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    code, text = run("predict", scans, tmp_path / "out", *options(weights), "--max-memory", 0.1)
    assert code == 1
    needs = "it takes up to 0.5 GB of memory, and 0.1 GB are allowed; crop it or allow more."
    assert f"failed: a.nii.gz: {needs}" in text
    code, text = run("predict", scans, tmp_path / "out", *options(weights), "--max-memory", 1)
    assert code == 0 and text.splitlines()[-1] == "2 done, 0 skipped, 0 failed"


def test_speed_and_time_limit_reach_the_record(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    hurry = ("--speed", "fast", "--time-limit", 0, "--report", tmp_path / "report")
    code, text = run("predict", scans, tmp_path / "out", *options(weights), *hurry)
    assert code == 0
    assert "a.nii.gz: warning: because of the time limit of 0 s only 1 of 2 members were used" in text
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert record["settings"]["speed"] == "fast" and record["settings"]["time_limit"] == "0.0"
    assert record["weights"]["digest"].endswith("-fast")
    assert [scan["members"] for scan in record["scans"]] == [["member0.safetensors"]] * 2
    assert [scan["complete"] for scan in record["scans"]] == [False] * 2
    run("predict", scans, tmp_path / "out", *options(weights), *hurry)
    again = json.loads((tmp_path / "report" / "run.json").read_text())["scans"]
    assert again == [scan | {"state": "skipped"} for scan in record["scans"]]
    assert all(scan["warnings"] for scan in again)


def test_a_record_that_cannot_be_written_costs_no_result(
    run: Run, scans: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "report" / "run.json").mkdir(parents=True)
    code, text = run("predict", scans, tmp_path / "out", *options(weights), "--report", tmp_path / "report")
    assert code == 2 and "2 done, 0 skipped, 0 failed" in text
    assert re.search(r"run\.json: cannot be written \(.+\); give another report folder\.", text)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.nii.gz", "b.nii.gz"}


def test_some_failed_is_1(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    (scans / "bad[1].nii.gz").write_text("no scan")
    code, text = run("predict", scans, tmp_path / "out", *options(weights), "--report", tmp_path / "report")
    assert code == 1
    assert "failed: bad[1].nii.gz: not a readable NIfTI file; convert it to .nii.gz or remove it.\n" in text
    assert "2 done, 0 skipped, 1 failed" in text and "Traceback" not in text
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "a.nii.gz.png",
        "b.nii.gz.png",
        "run.json",
    }


def test_without_matplotlib_a_report_is_the_record_alone(
    run: Run, scans: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import fails
    code, text = run("predict", scans, tmp_path / "out", *options(weights), "--report", tmp_path / "report")
    assert code == 0
    assert text.count("warning: no pictures are drawn: pictures need matplotlib; install it") == 1
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["run.json"]
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert [scan["state"] for scan in record["scans"]] == ["done", "done"]


def test_an_empty_folder_is_0_and_says_so(run: Run, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, text = run("predict", tmp_path / "empty", tmp_path / "out", *options(weights))
    assert code == 0 and "nothing to do" in text


def test_a_scan_with_a_name_in_capitals_is_told_of(
    run: Run, weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    make_scan(folder / "a.nii.gz").rename(folder / "A.NII.GZ")
    code, text = run("predict", folder, tmp_path / "out", *options(weights))
    assert code == 0 and "A.NII.GZ: not taken for a scan; let its name end in .nii or .nii.gz." in text


def test_scans_behind_links_are_not_replaced(
    run: Run, weights: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    store, folder = tmp_path / "store", tmp_path / "scans"
    store.mkdir()
    folder.mkdir()
    (folder / "a.nii.gz").symlink_to(make_scan(store / "key.nii.gz"))
    for output in (folder, store):
        code, text = run("predict", folder, output, *options(weights))
        assert code == 2 and "would replace the scans" in text


def test_usage_errors_are_2(run: Run, scans: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("taken")
    cases: list[tuple[tuple[object, ...], str]] = [
        (
            ("predict", tmp_path / "none", tmp_path / "out", *options(weights)),
            "there is no such file or folder",
        ),
        (("predict", tmp_path / "file", tmp_path / "out", *options(weights)), "not named like a scan"),
        (("predict", scans, tmp_path / "file", *options(weights)), "output folder"),
        (("predict", scans, scans, *options(weights)), "would replace the scans"),
        (("predict", scans, scans, *options(weights, mode="both")), "would replace the scans"),
        (("predict", scans, tmp_path / "out", *options(weights, region="knee")), "knee"),
        (("predict", scans), "OUTPUT"),
        (
            ("predict", scans, tmp_path / "out", *options(weights), "--report", tmp_path / "file"),
            "report folder",
        ),
        (("predict", scans, tmp_path / "out", *options(weights), "--time-limit", -1), "time-limit"),
        (("dream",), "dream"),
    ]
    for arguments, words in cases:
        code, text = run(*arguments)
        assert code == 2 and words in text and "Traceback" not in text


def test_refused_weights_are_3_before_any_scan_is_read(run: Run, weights: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(weights, tmp_path / "weights"))
    with (spoilt / "brain" / "member1.safetensors").open("r+b") as stream:
        stream.write(b"\x00")
    (tmp_path / "scan.nii").write_text("would be named if it was read")
    code, text = run("predict", tmp_path / "scan.nii", tmp_path / "out", *options(spoilt))
    assert code == 3 and "member1.safetensors" in text and "scan.nii" not in text
    code, text = run("weights", "--weights", spoilt)
    assert code == 3
    assert [line.count("damaged") for line in text.splitlines() if "│ member" in line] == [0, 1, 0, 0]
    code, text = run("weights", "--weights", weights)
    assert code == 0 and text.count(" ok ") == 4
    code, text = run("weights", "--weights", tmp_path)
    assert code == 3 and text.count("no manifest") == 1
    code, text = run("weights", "--weights", weights / "brain")
    assert code == 0 and text.count(" ok ") == 2 and "brain: " in text and "abdom: " not in text
    shutil.copytree(weights / "abdom", tmp_path / "own" / "abdom")
    code, text = run("weights", "--weights", tmp_path / "own")
    assert code == 0 and text.count(" ok ") == 2 and "abdom: " in text and "brain: " not in text
    (tmp_path / "own" / "brain").mkdir()
    code, text = run("weights", "--weights", tmp_path / "own")
    assert code == 3 and text.count(" ok ") == 2 and text.count("no manifest") == 1
    shutil.copy(weights / "abdom" / "manifest.json", tmp_path / "own" / "brain")
    code, text = run("weights", "--weights", tmp_path / "own")
    assert code == 3 and "weights for abdom" in text


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mood-infer', 'predict', '--help']\n"
        "from mood_infer.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'numpy', 'nibabel'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Exit codes" in result.stdout


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | more


def test_sigterm_ends_soon_and_leaves_no_half_file(
    make_scan: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    for seed in range(40):
        make_scan(tmp_path / "scans" / f"{seed:02}.nii.gz", (72, 72, 72), seed)
    output = tmp_path / "out"
    command = ["predict", tmp_path / "scans", output, *options(weights), "--report", tmp_path / "report"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mood_infer", *map(str, command)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 3
    assert process.returncode == 143
    assert b"Traceback" not in errors
    written = sorted(output.iterdir())
    assert 1 <= len(written) < 40
    for path in written:
        assert not path.name.startswith(PARTIAL_PREFIX)
        assert np.isfinite(np.asarray(nib.load(path).dataobj)).all()
    recorded = json.loads((tmp_path / "report" / "run.json").read_text())["scans"]
    assert [Path(scan["scan"]).name for scan in recorded] == [path.name for path in written]


SLOW_DISK = """
import sys, time
from mood_infer import cli, job
from mood_infer.volume import write_atomically

def fill(partial):
    while True:
        partial.write_bytes(b"half")
        time.sleep(0.3)

job.write_map = lambda path, *_: write_atomically(path, fill)
cli.main()
"""


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
    ids=["term", "term-term", "int-term"],
)
def test_signals_while_the_last_scan_is_written_leave_no_half_file(
    signals: tuple[signal.Signals, ...], scans: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ["predict", scans / "a.nii.gz", output, *options(weights), "--report", tmp_path / "report"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, *map(str, command)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in output.glob(f"{PARTIAL_PREFIX}*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)  # nothing is left to score: the main thread waits for the writer
    begin = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + signals[0]
    assert b"Traceback" not in errors
    assert list(output.iterdir()) == []
    assert not (tmp_path / "report" / "run.json").exists()


@pytest.mark.parametrize(("mode", "region"), SCRIPTS)
def test_the_scripts_are_posix_executable_and_name_their_task(mode: Mode, region: Region) -> None:
    script = ROOT / f"run_{mode}_{region}.sh"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert f"--region {region} --mode {mode}" in text and "--time-limit 500" in text
    subprocess.run(["sh", "-n", script], check=True)
    usage = subprocess.run([script, "only-one"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2 and usage.stderr.startswith("usage: ")


@pytest.mark.parametrize(("mode", "region"), [SCRIPTS[0], SCRIPTS[3]])
def test_the_scripts_from_elsewhere_by_relative_paths(
    mode: Mode, region: Region, scans: Path, weights: Path, tmp_path: Path
) -> None:
    relative = os.path.relpath(ROOT / f"run_{mode}_{region}.sh", tmp_path)
    result = subprocess.run(
        ["sh", relative, "scans", "out", "--weights", weights],
        cwd=tmp_path,
        env=environment(HOME="/nonexistent"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    suffix = ".txt" if mode is Mode.SAMPLE else ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{n}.nii.gz{suffix}" for n in "ab"}


def test_predicting_does_not_import_matplotlib_and_does_not_spoil_it() -> None:
    """Its import wants a folder to write to, which a read-only container lacks."""
    code = "import sys, mood_infer.job\nassert 'matplotlib' not in sys.modules\nimport matplotlib.figure"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(("extra", "limit"), [((), "500.0"), (("--time-limit", "7"), "7.0")])
def test_the_run_scripts_limit_the_time_unless_told(
    extra: tuple[str, ...], limit: str, scans: Path, weights: Path, tmp_path: Path
) -> None:
    words = [ROOT / "run_sample_brain.sh", scans, tmp_path / "out", "--weights", weights, "--device", "cpu"]
    words += ["--report", tmp_path / "report", *extra]
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run(list(map(str, words)), env=environment, check=True, capture_output=True)
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert record["settings"]["time_limit"] == limit


def test_the_readme_s_jobs_are_commands_of_ours(scans: Path, tmp_path: Path) -> None:
    """For Slurm and for Kubernetes, whose job is YAML with all that an indexed one needs."""
    yaml = pytest.importorskip("yaml")
    page = (ROOT / "README.md").read_text().split("## Several GPUs, several machines")[1]
    slurm, kubernetes = (textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", page, re.M)[1:3])
    job = yaml.safe_load(kubernetes)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    assert "backoffLimitPerIndex" in spec and "backoffLimit" not in spec  # a bad part ends no other
    (container,), (volume,) = pod["containers"], pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt"}]
    shell, _, line = container["command"]
    assert shell == "sh" and subprocess.run(["sh", "-n", "-c", slurm], check=True)
    predict = typer.main.get_command(cli.app).commands["predict"]
    for command in (line, slurm.splitlines()[-1]):
        launcher, words = shlex.split(command)[:-1], shlex.split(command.split("-m mood_infer predict")[1])
        assert "--standalone" in launcher
        words[:2] = str(scans), str(tmp_path)
        assert predict.make_context("predict", words).params["region"] == Region.BRAIN
