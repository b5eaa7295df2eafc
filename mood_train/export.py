"""From a checkpoint to weights that mood_infer loads: one safetensors file and its manifest entry."""

import hashlib
from pathlib import Path

import torch

from mood_infer.errors import UserError
from mood_infer.locking import alone
from mood_infer.network import build_network
from mood_infer.volume import write_atomically
from mood_infer.weights import MANIFEST_NAME, Manifest, Member, encode_member, read_manifest, write_manifest
from mood_train.checkpoint import Checkpoint, read_checkpoint, run_config
from mood_train.config import RunConfig


def trained_state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Parameters and statistics to use: the moving average if the run kept one."""
    if checkpoint.ema is None:
        return checkpoint.network
    averaged = checkpoint.ema.items()
    return {name.removeprefix("module."): value for name, value in averaged if name.startswith("module.")}


def export_member(checkpoint_path: Path, weights: Path, data: str, licence: str) -> Path:
    """Add a trained network to ``weights/<region>``, in place of an earlier one of the same fold and edges.

    Several processes may do so at once. What does not fit the weights there leaves them as they are.

    Args:
        checkpoint_path: of the run.
        weights: folder with a folder a region.
        data: name of the training data, for the manifest.
        licence: of the training data.

    Returns:
        The safetensors file.

    Raises:
        UserError: no checkpoint, or one of an unfinished run; or the weights there already are of another
            network, grid or rule.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    if not checkpoint.finished:
        raise UserError(f"{checkpoint_path}: of a run that is not finished; go on with it, then export.")
    config = run_config(checkpoint_path, checkpoint)
    folder = weights / config.region.value
    folder.mkdir(parents=True, exist_ok=True)
    network = build_network(config.preset.network)
    network.load_state_dict(trained_state(checkpoint))
    fold = "all" if config.fold is None else str(config.fold)
    path = folder / f"{config.preset.name}-fold{fold}-{config.edges}.safetensors"
    content = encode_member(network)
    member = Member(
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        preset=config.preset.name,
        fold=config.fold,
        edges=config.edges,
        steps=checkpoint.steps_before + checkpoint.step,
        seed=config.seed,
        data=f"{data}, {checkpoint.data_count} scans",
        data_sha256=checkpoint.data_sha256,
        licence=licence,
        code_version=checkpoint.code_version,
        hardware=checkpoint.hardware,
        minutes=round(checkpoint.minutes_before + checkpoint.seconds / 60, 1),
        started_from=config.started_from,
    )
    # other processes add members too: each reads the manifest, and writes it with one more
    with alone(folder):
        manifest = _with_member(folder, config, member)
        write_atomically(path, lambda partial: partial.write_bytes(content))
        write_manifest(folder, manifest)
    return path


def check_destination(weights: Path, config: RunConfig) -> None:
    """Refuse, before hours are spent, a folder that :func:`export_member` would refuse after them.

    Args:
        weights: folder with a folder a region; may be missing.
        config: of a run to be exported there.

    Raises:
        UserError: the weights there already are of another network, grid or rule, or cannot be read.
    """
    _present(weights / config.region.value, config)


def _with_member(folder: Path, config: RunConfig, member: Member) -> Manifest:
    present = _present(folder, config)
    others = [other for other in present.members if other.file != member.file]
    # hard and smooth take turns, so that the first few members already are a balanced ensemble
    members = sorted([*others, member], key=lambda each: (-1 if each.fold is None else each.fold, each.edges))
    # the same ones again: what was measured with them still holds
    return present if tuple(members) == present.members else present.with_members(tuple(members))


def _present(folder: Path, config: RunConfig) -> Manifest:
    """What is there, or a manifest without members."""
    fresh = Manifest(
        region=config.region,
        network=config.preset.network,
        intensity=config.place.intensity,
        spacing=config.place.spacing,
        upsample=config.place.upsample,
        window=config.preset.patches.window,
        smoothing=config.place.smoothing,
        context=config.place.context,
        smooth_weight=config.place.smooth_weight,
        members=(),
    )
    if not (folder / MANIFEST_NAME).exists():
        return fresh
    present = read_manifest(folder)
    if present.with_members(()) != fresh:
        raise UserError(f"{folder}: holds weights of another network, grid or rule; export elsewhere.")
    return present
