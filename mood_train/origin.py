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
    """Version of this software, with the last commit that changed it where there is a checkout.

    It ends with -dirty if files of it were changed since.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    code = [f":/{package}" for package in ("mood_infer", "mood_train", "mood_eval")]
    try:
        commit = _output([*git, "log", "-1", "--format=%h", "--abbrev=12", "--", *code])
        changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", *code])
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{commit}{'-dirty' if changed else ''}" if commit else __version__


def hardware() -> str:
    """The accelerator's name, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
