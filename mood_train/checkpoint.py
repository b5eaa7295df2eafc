"""Checkpoints: all that a run needs to go on, written atomically; no object is unpickled.

On a CPU it goes on bit for bit. A GPU rounds as it likes, the scale of float16's gradients is found anew, and
another number of ranks deals other samples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mood_infer.errors import UserError
from mood_infer.volume import write_atomically
from mood_train.config import RunConfig

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        config: of the run, as JSON.
        data_sha256: over the training scans.
        data_count: number of training scans.
        code_version: of this software, as it trained.
        hardware: it trained on.
        step: optimiser steps done.
        seconds: wall time spent in training.
        steps_before: steps behind the weights this run started from.
        minutes_before: wall time behind them.
        network: parameters and statistics.
        optimiser: state of AdamW.
        ema: averaged parameters and statistics, or None.
        finished: the schedule is done and the norms have settled.
    """

    config: str
    data_sha256: str
    data_count: int
    code_version: str
    hardware: str
    step: int
    seconds: float
    steps_before: int
    minutes_before: float
    network: dict[str, Any]
    optimiser: dict[str, Any]
    ema: dict[str, Any] | None
    finished: bool = False  # what older versions wrote does not say


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically."""
    write_atomically(path, lambda file: torch.save(vars(checkpoint), file))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no checkpoint; train first with mood-train fit.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path}: not a checkpoint of this software; remove it to start anew.") from error


def run_config(path: Path, checkpoint: Checkpoint) -> RunConfig:
    """The configuration in a checkpoint.

    Raises:
        UserError: another version wrote it, which had other settings; the text names one.
    """
    try:
        return RunConfig.model_validate_json(checkpoint.config)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: written by version {checkpoint.code_version}, whose setting {setting} this version "
            "cannot take; use that version, or train anew."
        ) from error


def check_same_run(path: Path, checkpoint: Checkpoint, config: RunConfig, data_sha256: str) -> None:
    """Refuse to go on with another configuration or other data; more time or steps are allowed.

    Raises:
        UserError: something that decides what the run computes has changed; the text names it.
    """
    before = run_config(path, checkpoint)
    for name in ("region", "edges", "fold", "seed", "started_from"):
        if getattr(before, name) != getattr(config, name):
            value = getattr(before, name)
            raise UserError(f"{path}: was made with {name} {value}; give the same, or another --out.")
    if before.with_optimiser(steps=config.preset.optimiser.steps).preset != config.preset:
        raise UserError(f"{path}: was made with another preset; give the same, or another --out.")
    if checkpoint.data_sha256 != data_sha256:
        raise UserError(f"{path}: was made with other scans; give the same, or another --out.")
