"""Runs containers, as the challenge does or harder."""

import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Harder than the challenge's own command line, which has only the first.
HARD = ("--read-only", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges")
HARD += ("--pids-limit=256", "--memory=6g", "--user=12345:12345")


@dataclass(frozen=True)
class Ended:
    """What a container left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Running:
    """A container in the background."""

    name: str
    process: subprocess.Popen[str]

    def signal(self, command: str) -> float:
        """``docker stop`` or ``docker kill``; returns how many seconds it took."""
        begin = time.monotonic()
        subprocess.run(["docker", command, self.name], check=True, capture_output=True)
        return time.monotonic() - begin

    def wait(self) -> Ended:
        """Wait until it has ended."""
        out, err = self.process.communicate(timeout=600)
        return Ended(self.process.returncode, out, err)


@dataclass(frozen=True)
class Image:
    """An image that can be run."""

    name: str

    def run(
        self, *command: str, mounts: Sequence[str] = (), options: Sequence[str] = (), check: bool = False
    ) -> Ended:
        """Run a command in a new container to its end; with ``check`` it must end with 0."""
        ended = self.start(*command, mounts=mounts, options=options).wait()
        assert not check or ended.code == 0, ended.err
        return ended

    def start(self, *command: str, mounts: Sequence[str] = (), options: Sequence[str] = ()) -> Running:
        """Run a command in a new container in the background."""
        name = f"mood-test-{uuid.uuid4().hex[:12]}"
        volumes = [f"--volume={mount}" for mount in mounts]
        line = ["docker", "run", "--rm", "--name", name, *options, *volumes, self.name, *command]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return Running(name, process)

    def predict(
        self,
        data: Path,
        out: Path,
        *,
        weights: Path | None = None,
        mode: str = "pixel",
        region: str = "brain",
        options: Sequence[str] = HARD,
        read_only_data: bool = True,
    ) -> Running:
        """Start a run script as the challenge does, in the background."""
        mounts = [f"{data}:/mnt/data{':ro' if read_only_data else ''}", f"{out}:/mnt/pred"]
        if weights is not None:
            mounts.append(f"{weights}:/weights:ro")
            # tiny networks are slower on many threads, and some tests run two containers at a time
            options = [*options, "--env=OMP_NUM_THREADS=1"]
        script = f"/workspace/run_{mode}_{region}.sh"
        return self.start("sh", script, "/mnt/data", "/mnt/pred", mounts=mounts, options=options)


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too, sorted."""
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition: Callable[[], bool], container: Running, seconds: float = 240) -> None:
    """Wait until a condition holds while a container runs."""
    end = time.monotonic() + seconds
    while not condition():
        if container.process.poll() is not None:
            pytest.fail(f"the container ended too early: {container.wait().err}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
