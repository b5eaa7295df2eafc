"""First weights of a run: another run's checkpoint, or a member as it was exported."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.network import NetworkConfig
from mood_infer.weights import load_member, read_manifest
from mood_train.checkpoint import read_checkpoint, run_config
from mood_train.config import RunConfig
from mood_train.export import trained_state


@dataclass(frozen=True)
class Start:
    """A trained network that another one starts from.

    Attributes:
        network: its widths.
        region: it was trained on.
        fold: left out of its training; None if it saw all.
        state: parameters and statistics.
        steps: that were spent on it, in all.
        minutes: that were spent on it, in all.
    """

    network: NetworkConfig
    region: Region
    fold: int | None
    state: dict[str, Tensor]
    steps: int
    minutes: float


def start_name(path: Path) -> str:
    """What a manifest calls a network that was started from: its folder and its file."""
    return f"{path.parent.name}/{path.name}"


def read_start(path: Path, config: RunConfig) -> Start:
    """Read first weights for a run.

    Another region is allowed: edges and textures are learnt in any. A network trained on all folds is allowed
    too: what starts from it has seen every fold, and its manifest entry names where it started.

    Args:
        path: a checkpoint, or a safetensors file beside its manifest.
        config: of the run that is to start from it.

    Raises:
        UserError: it cannot be read, is another network, or left out another fold; the text says which.
    """
    start = _from_member(path) if path.suffix == ".safetensors" else _from_checkpoint(path)
    if start.network != config.preset.network:
        raise UserError(f"{path}: weights of another network; start from one of the same.")
    if start.region is config.region and None not in (config.fold, start.fold) and start.fold != config.fold:
        raise UserError(f"{path}: left out fold {start.fold}, not {config.fold}; start from another.")
    return start


def _from_checkpoint(path: Path) -> Start:
    checkpoint = read_checkpoint(path)
    config = run_config(path, checkpoint)
    return Start(
        network=config.preset.network,
        region=config.region,
        fold=config.fold,
        state=trained_state(checkpoint),
        steps=checkpoint.steps_before + checkpoint.step,
        minutes=checkpoint.minutes_before + checkpoint.seconds / 60,
    )


def _from_member(path: Path) -> Start:
    manifest = read_manifest(path.parent)
    entries = [member for member in manifest.members if member.file == path.name]
    if not entries:
        raise UserError(f"{path}: not in the manifest beside it; start from a member that is.")
    (member,) = entries
    state = load_member(path.parent, manifest, member).state_dict()
    return Start(manifest.network, manifest.region, member.fold, state, member.steps, member.minutes)
