"""The schedule, the loss, the network, and a resume that goes on bit for bit."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mood_infer.errors import UserError
from mood_infer.network import NetworkConfig, build_network
from mood_infer.weights import Manifest, load_member, read_manifest, write_manifest
from mood_train import export as export_module
from mood_train import replay as replay_module
from mood_train import trainer as trainer_module
from mood_train.checkpoint import CHECKPOINT_NAME, read_checkpoint, write_checkpoint
from mood_train.config import RunConfig, load_preset
from mood_train.data import CachedScan
from mood_train.export import export_member
from mood_train.replay import KEPT, Replay
from mood_train.start import read_start
from mood_train.trainer import (
    Trainer,
    anomaly_loss,
    keep_small_levels_in_float32,
    one_cycle,
    settle_norms,
)


def _with_steps(config: RunConfig, steps: int, **optimiser: object) -> RunConfig:
    changed = config.preset.optimiser.model_copy(update={"steps": steps, **optimiser})
    return config.model_copy(update={"preset": config.preset.model_copy(update={"optimiser": changed})})


def test_one_cycle_is_torchs() -> None:
    total = 200
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=total + 1)
    for step in range(total + 1):
        # torch counts the rise in whole steps and one less: allow one step's difference
        near = [one_cycle(np.clip((step + shift) / total, 0, 1), 1e-3) for shift in (-1, 0, 1)]
        rates, betas = zip(*near, strict=True)
        group = optimiser.param_groups[0]
        assert min(rates) - 1e-9 <= group["lr"] <= max(rates) + 1e-9
        assert min(betas) - 1e-9 <= group["betas"][0] <= max(betas) + 1e-9
        optimiser.step()
        if step < total:
            schedule.step()
    assert one_cycle(0.3, 1e-3) == pytest.approx((1e-3, 0.85))


def test_norms_settle_on_the_medians_whatever_one_batch_holds() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm3d(2)
    network = torch.nn.Sequential(norm)
    norm.running_var.fill_(1e6)  # what an odd last batch leaves
    batches = [torch.randn(4, 2, 8, 8, 8) * 3 + 5 for _ in range(9)]
    odd = torch.full((4, 2, 8, 8, 8), 1e3)
    settle_norms(network, [*batches, odd])
    means = np.array([batch.mean((0, 2, 3, 4)).numpy() for batch in [*batches, odd]])
    variances = np.array([batch.var((0, 2, 3, 4)).numpy() for batch in [*batches, odd]])
    lower = np.sort(means, axis=0)[4], np.sort(variances, axis=0)[4]  # of ten, the lower middle one
    assert norm.running_mean.numpy() == pytest.approx(lower[0], rel=1e-4)
    assert norm.running_var.numpy() == pytest.approx(lower[1], rel=1e-4)
    assert norm.momentum == 0.1 and network.training


def test_loss_weighs_the_outputs_8_4_2_1_against_the_soft_label() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 1, 4, 4, 4), torch.rand(2, 1, 4, 4, 4)
    probability = logits.double().sigmoid()
    each = -(label[:, None] * probability.log() + (1 - label[:, None]) * (1 - probability).log())
    by_output = each.mean(dim=(0, 2, 3, 4, 5))
    expected = (by_output * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum() / 15
    assert anomaly_loss(logits, label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_positives_weigh_as_told() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 1, 4, 4, 4)
    label = torch.where(torch.rand(1, 1, 4, 4, 4) > 0.7, torch.rand(1, 1, 4, 4, 4), 0.0)
    inside = label[0, 0] > 0
    probability = logits.double().sigmoid()
    each = -(label[:, None] * probability.log() + (1 - label[:, None]) * (1 - probability).log())
    by_output = (each * torch.where(inside, 5.0, 1.0)).mean(dim=(0, 2, 3, 4, 5))
    expected = (by_output * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum() / 15
    assert anomaly_loss(logits, label, 5.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_reference_preset_is_the_papers() -> None:
    preset = load_preset("reference")
    network = build_network(preset.network)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(31.19e6, rel=1e-3)
    assert (preset.patches.window, preset.optimiser.steps, preset.optimiser.max_lr) == (160, 35_000, 1e-3)
    assert round(preset.anomalies.max_size * 160) == 128 and round(preset.anomalies.min_size * 160) == 10


def test_outputs_come_from_falling_resolutions(tiny_run: RunConfig) -> None:
    network = build_network(tiny_run.preset.network).train()
    outputs = network(torch.rand(1, 1, 32, 32, 32))[0, :, 0]
    for level in range(1, 4):
        blocks = outputs[level].reshape(*(n for side in (32 >> level,) * 3 for n in (side, 1 << level)))
        assert torch.all(blocks.amax(dim=(1, 3, 5)) == blocks.amin(dim=(1, 3, 5)))


@pytest.mark.parametrize(("ema", "shown"), [(0.0, 1), (0.9, 1), (0.0, 2)])
def test_a_resumed_run_ends_as_an_unbroken_one(
    scans: list[CachedScan],
    tiny_run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ema: float,
    shown: int,
) -> None:
    for module in (trainer_module, replay_module):  # so that some are forgotten
        monkeypatch.setattr(module, "KEPT", 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    config = _with_steps(tiny_run, 6, ema_decay=ema, shown=shown)
    Trainer(config, scans, [], whole).fit()
    first = Trainer(config, scans, [], broken)
    assert not first.fit(stop=lambda: first.step == 3).finished
    second = Trainer(config, scans, [], broken)
    assert second.step == 3
    assert second.fit().finished
    ours, theirs = read_checkpoint(whole / CHECKPOINT_NAME), read_checkpoint(broken / CHECKPOINT_NAME)
    for name, tensor in ours.network.items():
        assert torch.equal(tensor, theirs.network[name]), name
    for number, state in ours.optimiser["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, theirs.optimiser["state"][number][name])
    assert (ours.ema is not None) == bool(ema)
    for name, tensor in (ours.ema or {}).items():
        assert torch.equal(tensor, theirs.ema[name])  # type: ignore[index]


@pytest.mark.parametrize("shown", [1, 2])
def test_a_finished_run_is_left_as_it_is_and_an_unsettled_one_settles(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path, tmp_path: Path, shown: int
) -> None:
    config = _with_steps(tiny_run, 4, shown=shown)
    result = Trainer(config, scans, scans[:2], out).fit()
    path = out / CHECKPOINT_NAME
    before, checkpoint = path.read_bytes(), read_checkpoint(path)
    assert result.finished and Trainer(config, scans, scans[:2], out).fit() == result
    assert path.read_bytes() == before
    # as killed between the last step and the end; older versions did not say
    torch.save({name: value for name, value in vars(checkpoint).items() if name != "finished"}, path)
    with pytest.raises(UserError, match="not finished"):
        export_member(path, tmp_path / "weights", "balls", "CC0")
    assert Trainer(config, scans, [], out).fit().finished
    settled = read_checkpoint(path)
    for name, tensor in checkpoint.network.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, settled.network[name]), name
    assert Trainer(_with_steps(config, 5, shown=shown), scans, [], out).fit().step == 5
    assert read_checkpoint(path).finished


def test_a_copy_of_a_network_computes_with_its_own_kernels() -> None:
    """The moving average is such a copy, and its norms are measured by running it."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1))
    keep_small_levels_in_float32(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    for side in (1, 4):
        image = torch.ones(1, 1, side, side, side)
        assert not twin(image).any() and network(image).all()


def test_what_is_shown_again_are_the_last_samples_image_and_label_alike() -> None:
    replay = Replay(seed=4, rank=0)
    rng = np.random.default_rng(0)
    batches = torch.from_numpy(rng.random((KEPT + 3, 2, 1, 4, 4, 4)).astype(np.float16)).float()
    for batch in batches:
        replay.add(batch, 1 - batch)
    assert len(replay) == KEPT
    torch.testing.assert_close(torch.stack(list(replay.images())), batches[3:], atol=0, rtol=0)
    known = {tuple(sample.flatten().sort().values.tolist()): sample for sample in batches[3:].flatten(0, 1)}
    mirrored, drawn = 0, set()
    for step in range(300):
        image, label = replay.draw(step)
        torch.testing.assert_close(label, 1 - image, atol=1e-3, rtol=0)
        for sample in image:
            key = tuple(sample.flatten().sort().values.tolist())
            drawn.add(key)
            mirrored += any(torch.equal(sample, known[key].flip(axes)) for axes in ([1], [1, 2], [1, 3]))
    assert len(drawn) > 0.95 * len(known)
    assert 0.38 < mirrored / 600 < 0.6
    for one, other in zip(replay.draw(7), replay.draw(7), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(replay.draw(7)[0], replay.draw(8)[0])


def test_each_sample_is_shown_as_often_as_told(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path
) -> None:
    config = _with_steps(tiny_run, 7, shown=3)
    trainer = Trainer(config, scans, [], out)
    batches = trainer._batches()
    shown = [next(batches)[0] for _ in range(7)]
    fresh = [torch.stack([trainer._dataset[2 * n + i][0] for i in range(2)]) for n in range(3)]
    for n in range(3):  # steps 0, 3 and 6 show new ones; one that is shown again went through half precision
        assert torch.equal(shown[3 * n], fresh[n])
    for step in (1, 2, 4, 5):
        made = torch.cat(fresh[: step // 3 + 1]).half().float()
        sums = {round(float(sample.double().sum()), 3) for sample in made}
        assert {round(float(sample.double().sum()), 3) for sample in shown[step]} <= sums


@pytest.mark.parametrize(("side", "levels"), [(16, 5), (32, 5), (64, 6)])
def test_gradients_do_not_depend_on_what_lay_in_memory(side: int, levels: int) -> None:
    """Memory full of NaN was once read by the 16-bit gradient of the levels of 2 x 2 x 2 voxels."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(widths=(4,) * levels))
    network.train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    keep_small_levels_in_float32(network)
    image = torch.rand(2, 1, side, side, side)
    label = (torch.rand_like(image) > 0.9).float()
    runs = []
    for _ in range(3):
        litter = [torch.full((size,), torch.nan) for size in (10**3, 10**4, 10**5, 10**6)]
        del litter
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image)
        anomaly_loss(logits.float(), label).backward()
        runs.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, other in pairwise(runs):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_lowers_the_loss(scans: list[CachedScan], tiny_run: RunConfig, out: Path) -> None:
    config = _with_steps(tiny_run, 60, max_lr=2e-2)
    trainer = Trainer(config, scans, [], out)
    losses: list[float] = []
    step = trainer._train_step

    def spy(batch: list[torch.Tensor], progress: float) -> torch.Tensor:
        loss = step(batch, progress)
        losses.append(loss.item())
        return loss

    trainer._train_step = spy  # type: ignore[method-assign]
    assert trainer.fit().finished
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert float(torch.tensor(1e-40) * 1) > 0  # what is not training keeps its small numbers


def test_the_autocast_outlives_a_checkpoint(scans: list[CachedScan], tiny_run: RunConfig, out: Path) -> None:
    trainer = Trainer(_with_steps(tiny_run, 1), scans, [], out)
    kinds: list[torch.dtype] = []
    first = trainer._plain.get_submodule("input_block.conv2.conv")
    first.register_forward_hook(lambda _module, _inputs, output: kinds.append(output.dtype))
    for _ in range(2):
        trainer._network(torch.rand(1, 1, 32, 32, 32))
        trainer._save()
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
    assert kinds == [expected[trainer._accelerator.mixed_precision]] * 2


def test_numbers_that_are_not_finite_are_never_saved(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path
) -> None:
    trainer = Trainer(_with_steps(tiny_run, 4), scans, [], out)
    assert not trainer.fit(stop=lambda: trainer.step == 2).finished
    good = (out / CHECKPOINT_NAME).read_bytes()
    step = trainer._train_step

    def spoil(batch: list[torch.Tensor], progress: float) -> torch.Tensor:
        loss = step(batch, progress)
        next(trainer._plain.parameters()).data[0] = torch.nan  # as a bad gradient would, behind a sound loss
        return loss

    trainer._train_step = spoil  # type: ignore[method-assign]
    with pytest.raises(UserError, match="finite"):
        trainer.fit()
    assert (out / CHECKPOINT_NAME).read_bytes() == good


def test_time_ends_the_schedule(scans: list[CachedScan], tiny_run: RunConfig, out: Path) -> None:
    config = _with_steps(tiny_run, 100_000).model_copy(update={"max_minutes": 0.02})
    result = Trainer(config, scans, [], out).fit()
    assert result.finished and 1 <= result.step < 1000


def test_a_checkpoint_of_another_run_is_refused(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path
) -> None:
    config = _with_steps(tiny_run, 1)
    Trainer(config, scans, [], out).fit()
    with pytest.raises(UserError, match="seed 3"):
        Trainer(config.model_copy(update={"seed": 9}), scans, [], out)
    with pytest.raises(UserError, match="other scans"):
        Trainer(config, scans[:2], [], out)
    checkpoint = read_checkpoint(out / CHECKPOINT_NAME)
    older = checkpoint.config[:-1] + ', "gone": 0.5}'
    write_checkpoint(out / CHECKPOINT_NAME, replace(checkpoint, config=older))
    with pytest.raises(UserError, match="whose setting gone this version cannot take"):
        Trainer(config, scans, [], out)
    with pytest.raises(UserError, match="whose setting gone this version cannot take"):
        export_member(out / CHECKPOINT_NAME, out / "weights", "balls", "CC0")
    (out / CHECKPOINT_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint"):
        Trainer(config, scans, [], out)


def _train_and_export(config: RunConfig, scans: list[CachedScan], out: Path, weights: Path) -> Path:
    Trainer(config, scans, [], out).fit()
    return export_member(out / CHECKPOINT_NAME, weights, "balls", "CC0")


def test_export_keeps_the_network_and_says_where_it_comes_from(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path, tmp_path: Path
) -> None:
    path = _train_and_export(_with_steps(tiny_run, 2), scans, out, tmp_path / "weights")
    manifest = read_manifest(path.parent)
    (member,) = manifest.members
    assert (member.steps, member.edges, member.fold, member.licence) == (2, "smooth", None, "CC0")
    assert (manifest.window, manifest.spacing, manifest.overlap) == (32, tiny_run.place.spacing, 0.5)
    loaded = load_member(path.parent, manifest, member)
    trained = read_checkpoint(out / CHECKPOINT_NAME).network
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point():
            exact = "running" in name
            assert torch.equal(tensor, trained[name] if exact else trained[name].half().float()), name


def test_scores_of_normal_scans_stay_as_long_as_the_members_do(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path, tmp_path: Path
) -> None:
    run = _with_steps(tiny_run, 1)
    folder = _train_and_export(run, scans, out, tmp_path / "w").parent
    known = read_manifest(folder).model_copy(update={"normal_scores": (0.1, 0.2)})
    write_manifest(folder, known)
    _train_and_export(run, scans, out, tmp_path / "w")
    assert read_manifest(folder) == known
    (out / CHECKPOINT_NAME).unlink()
    _train_and_export(run.model_copy(update={"seed": 9}), scans, out, tmp_path / "w")
    assert read_manifest(folder).normal_scores == ()


def test_exports_at_once_all_get_into_the_manifest(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = []
    for fold in range(4):
        config = _with_steps(tiny_run, 1).model_copy(update={"fold": fold})
        checkpoints.append(out / str(fold) / CHECKPOINT_NAME)
        checkpoints[-1].parent.mkdir()
        Trainer(config, scans, [], checkpoints[-1].parent).fit()

    def read_slowly(folder: Path) -> Manifest:
        manifest = read_manifest(folder)
        time.sleep(0.1)
        return manifest

    monkeypatch.setattr(export_module, "read_manifest", read_slowly)
    with ThreadPoolExecutor() as pool:
        files = list(pool.map(lambda one: export_member(one, tmp_path, "balls", "CC0").name, checkpoints))
    folder = tmp_path / tiny_run.region
    assert [member.file for member in read_manifest(folder).members] == files


def test_what_does_not_fit_the_weights_leaves_them_as_they_are(
    scans: list[CachedScan], tiny_run: RunConfig, out: Path, tmp_path: Path
) -> None:
    path = _train_and_export(_with_steps(tiny_run, 1), scans, out, tmp_path / "w")
    manifest = read_manifest(path.parent)
    write_manifest(path.parent, manifest.model_copy(update={"spacing": 9.0}))
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    path.write_bytes(b"another network's")
    before[path.name] = b"another network's"
    with pytest.raises(UserError, match="another network, grid or rule"):
        export_member(out / CHECKPOINT_NAME, tmp_path / "w", "balls", "CC0")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_start_from_takes_the_weights_and_counts_their_steps(
    scans: list[CachedScan], tiny_run: RunConfig, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    Trainer(_with_steps(tiny_run, 2), scans, [], first).fit()
    trainer = Trainer(_with_steps(tiny_run, 1), scans, [], second)
    trainer.start_from(read_start(first / CHECKPOINT_NAME, tiny_run))
    trainer.fit()
    member = read_manifest(export_member(second / CHECKPOINT_NAME, tmp_path / "w", "balls", "CC0").parent)
    assert member.members[0].steps == 3
