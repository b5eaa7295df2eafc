"""Where a run was made: which code, which machine."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from mood_infer import __version__


@cache
def code_version() -> str:
    """Version of this software, with the commit where there is a checkout; -dirty if that was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = _output([*git, "rev-parse", "--short=12", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", "."])
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit}{'-dirty' if changed else ''}"


def hardware() -> str:
    """The accelerator's name, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
