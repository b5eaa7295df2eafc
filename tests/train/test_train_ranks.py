"""Training on two ranks, as torchrun starts them, against what one process makes of all their samples."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from mood_infer.challenge import Region
from mood_infer.network import build_network
from mood_infer.weights import load_member, read_manifest
from mood_train.anomalies.generator import AnomalyGenerator
from mood_train.checkpoint import CHECKPOINT_NAME, read_checkpoint
from mood_train.config import RunConfig, load_preset
from mood_train.data import load_scans
from mood_train.trainer import HIGH_BETA1, SampleDataset, anomaly_loss

ROOT = Path(__file__).resolve().parents[2]
RANKS, BATCH = 2, 2
PRESET = f"""
name = "tiny"
network = {{ widths = [4, 4, 4, 4, 4] }}
patches = {{ window = 32, min_body = 0.3 }}
anomalies = {{ rate = 1.0, max_count = 2, bank_size = 8 }}
optimiser = {{ steps = 1, batch = {BATCH}, max_lr = 1e-3 }}
ensemble = {{ base_steps = 2, hard_steps = 1, smooth_steps = 1 }}
[regions.brain]
spacing = 1.0
intensity = {{ name = "mr-quartiles" }}
body_above = 0.0
body_is_filled = false
anomalies_in_body = true
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six subjects: balls of brightnesses of their own."""
    folder = tmp_path / "data"
    folder.mkdir()
    x, y, z = np.meshgrid(*[np.arange(40) - 20.0] * 3, indexing="ij")
    ball = x**2 + y**2 + z**2 < 18**2
    for number in range(6):
        image = np.where(ball, 0.2 + 0.1 * number + 0.02 * np.sin(x), 0).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"sub-{number:02d}.nii.gz")
    return folder


def _torchrun(data: Path, command: str, *more: object) -> str:
    preset = data.parent / "tiny.toml"
    preset.write_text(PRESET)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "-m", "mood_train"]
    options = ["--data", data, "--preset", preset, "--cache", data.parent / "cache", "--precision", "no"]
    words = [sys.executable, "-m", *launcher, command, *options, "--threads", 1, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _gradients(config: RunConfig, data: Path) -> dict[str, Tensor]:
    """The mean of the ranks' first gradients, each from samples of its own."""
    scans = load_scans(sorted(data.iterdir()), config.place, data.parent / "cache")
    samples = SampleDataset(AnomalyGenerator(scans, config))
    torch.manual_seed(config.seed)
    layout = torch.channels_last_3d  # in another, sums are rounded otherwise
    network = build_network(config.preset.network).train().to(memory_format=layout)  # type: ignore[call-overload]
    for rank in range(RANKS):
        pairs = [samples[number] for number in range(rank * BATCH, (rank + 1) * BATCH)]
        image, label = (torch.stack(part) for part in zip(*pairs, strict=True))
        (anomaly_loss(network(image.to(memory_format=layout)), label) / RANKS).backward()
    return {
        name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
    }


@pytest.mark.slow
def test_two_ranks_learn_from_the_mean_of_their_gradients(data: Path, tmp_path: Path) -> None:
    out, split = tmp_path / "run", tmp_path / "split.json"
    names = [path.name for path in sorted(data.iterdir())]
    halves = [names[:3], names[3:]]
    split.write_text(f'{{"brain": {{"set_aside": [], "folds": {halves}}}}}'.replace("'", '"'))
    weights = tmp_path / "weights"
    told = _torchrun(data, "fit", "--split", split, "--out", out, "--fold", -1, "--weights", weights)
    assert told.count("step 1") == 1
    checkpoint = read_checkpoint(out / CHECKPOINT_NAME)
    preset = load_preset(str(tmp_path / "tiny.toml"), Region.BRAIN)
    config = RunConfig(preset=preset, region=Region.BRAIN, edges="hard", fold=None)
    gradients = _gradients(config, data)
    assert len(gradients) == len(checkpoint.optimiser["state"])
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for state, expected in zip(checkpoint.optimiser["state"].values(), gradients.values(), strict=True):
        # AdamW's first moment after its first step
        first_moment = (1 - HIGH_BETA1) * expected
        torch.testing.assert_close(state["exp_avg"], first_moment, rtol=1e-3, atol=1e-5 * largest)
    (member,) = read_manifest(weights / "brain").members
    shipped = load_member(weights / "brain", read_manifest(weights / "brain"), member).state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in shipped.values())
    assert _torchrun(data, "fit", "--split", split, "--out", out, "--fold", -1).count("step 1") == 1


@pytest.mark.slow
def test_two_ranks_make_an_ensemble_and_say_so_once(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    told = _torchrun(data, "ensemble", "--out", tmp_path / "runs", "--weights", weights).splitlines()
    members = read_manifest(weights / "brain").members
    assert len(members) == 10 and len({member.sha256 for member in members}) == 10
    assert len(told) == len(set(told)) == 1 + 2 * len(members)
