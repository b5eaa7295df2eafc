"""The training loop (paper, sections 2.3 and 3.1.1): the same command on a CPU, a GPU, or many."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.tensorboard import SummaryWriter

from mood_infer.errors import UserError
from mood_infer.network import build_network
from mood_train.anomalies.generator import AnomalyGenerator
from mood_train.checkpoint import (
    CHECKPOINT_NAME,
    Checkpoint,
    check_same_run,
    read_checkpoint,
    write_checkpoint,
)
from mood_train.config import RunConfig
from mood_train.data import CachedScan, data_digest
from mood_train.origin import code_version, hardware
from mood_train.replay import KEPT, Batch, Replay
from mood_train.start import Start

OUTPUT_WEIGHTS = (8.0, 4.0, 2.0, 1.0)  # full resolution first
WARM_UP = 0.3  # share of the schedule in which the learning rate rises
START_DIVISOR, END_DIVISOR = 25.0, 25.0e4
HIGH_BETA1, LOW_BETA1 = 0.95, 0.85
CHECKPOINT_SECONDS = 120.0
CHECKPOINTS_AT_LEAST = 20  # in a run whose time is set, so that a short one that is killed can go on too
LOG_EVERY = 50  # steps
PICTURES_EVERY = 500  # steps
HELD_OUT_PATCHES = 32
SMALL = 2  # voxels along an axis
GO_ON = "the same command goes on from the last checkpoint, a lower --max-lr starts anew elsewhere"


def one_cycle(progress: float, max_lr: float) -> tuple[float, float]:
    """Learning rate and AdamW's beta1 at a share of the schedule (Smith & Topin 2019, cosine form).

    A function of the share, not a stateful scheduler, so that a schedule can also end where time ends.

    Args:
        progress: share of the schedule done, in [0,1].
        max_lr: the peak.
    """
    if progress < WARM_UP:
        return _cosine(max_lr / START_DIVISOR, max_lr, progress / WARM_UP), _cosine(
            HIGH_BETA1, LOW_BETA1, progress / WARM_UP
        )
    share = (progress - WARM_UP) / (1 - WARM_UP)
    return _cosine(max_lr, max_lr / END_DIVISOR, share), _cosine(LOW_BETA1, HIGH_BETA1, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))


def anomaly_loss(logits: Tensor, label: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Voxel-wise cross-entropy against the soft label, over the four outputs at 8:4:2:1 (paper, section 2.3).

    Args:
        logits: (N, 4, 1, X, Y, Z), the full-resolution output first.
        label: (N, 1, X, Y, Z), the blending factor in [0,1].
        positive_weight: weight of the voxels whose label is above 0.
    """
    voxels = torch.where(label > 0, positive_weight, 1.0)
    losses = [
        functional.binary_cross_entropy_with_logits(output, label, weight=voxels)
        for output in logits.unbind(1)
    ]
    weights = torch.tensor(OUTPUT_WEIGHTS, device=logits.device)
    return (torch.stack(losses) * weights).sum() / weights.sum()


def keep_small_levels_in_float32(network: nn.Module) -> None:
    """Leave convolutions over at most 2 x 2 x 2 voxels out of the autocast, whatever the window.

    On some processors the 16-bit gradient of their weights takes in memory that was never written:
    runs differ, and now and then one becomes NaN. Those levels cost next to nothing.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            # a method, so that a copy of the network calls its own convolutions
            module.forward = MethodType(_guarded, module)  # type: ignore[method-assign]


def _guarded(convolution: nn.Conv3d, features: Tensor) -> Tensor:
    forward = nn.Conv3d.forward
    if min(features.shape[2:]) > SMALL:
        return forward(convolution, features)
    with torch.autocast(features.device.type, enabled=False):
        return forward(convolution, features.float())


SETTLING_BATCHES = 100
SETTLING_FROM = 10**9  # samples that no training comes to


@torch.no_grad()
def settle_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set mean and variance of each batch norm to the medians of what it meets over some batches.

    Args:
        network: left in training.
        batches: (N, 1, W, W, W) each, images as in training.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the statistics are then those of the last batch alone
    network.train()
    met = []
    for batch in batches:
        network(batch.to(memory_format=torch.channels_last_3d))
        met.append(
            [
                (norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone())
                for norm in norms
            ]
        )
    for norm, momentum, statistics in zip(norms, momenta, zip(*met, strict=True), strict=True):
        means, variances = zip(*statistics, strict=True)
        norm.get_buffer("running_mean").copy_(torch.stack(means).median(0).values)
        norm.get_buffer("running_var").copy_(torch.stack(variances).median(0).values)
        norm.momentum = momentum


class SampleDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples by number; the same number gives the same sample in every process."""

    def __init__(self, generator: AnomalyGenerator) -> None:
        """Serve the samples of a generator."""
        self._generator = generator

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """(image, label), each (1, W, W, W) float32."""
        image, label = self._generator.pair(number)
        return torch.from_numpy(image[None]), torch.from_numpy(label[None])


def sample_numbers(first_step: int, batch: int, rank: int, world: int) -> Iterator[int]:
    """The samples of a rank from a batch on, without end: each has batch x world of them, none twice."""
    step = first_step
    while True:
        start = (step * world + rank) * batch
        yield from range(start, start + batch)
        step += 1


@dataclass(frozen=True)
class Result:
    """What a finished (or stopped) run reached.

    Attributes:
        step: optimiser steps done.
        finished: whether the schedule was run to its end.
        held_out_ap: voxel AP on synthetic anomalies in the fold left out; None without one.
    """

    step: int
    finished: bool
    held_out_ap: float | None


class Trainer:
    """One run: a network, its data, and where it writes."""

    def __init__(
        self,
        config: RunConfig,
        scans: list[CachedScan],
        held_out: list[CachedScan],
        out: Path,
        workers: int = 0,
        precision: str | None = None,
    ) -> None:
        """Set up, and go on from ``out/checkpoint.pt`` if there is one.

        Args:
            config: what the run computes.
            scans: of the training folds.
            held_out: of the fold left out, to watch by; may be empty.
            out: folder for the checkpoint and TensorBoard's files.
            workers: processes that make samples; 0 makes them in this one.
            precision: of the autocast: no, bf16 or fp16; by default bf16 where the device has it.

        Raises:
            UserError: the checkpoint is of another run.
        """
        self._config, self._out, self._workers = config, out, workers
        self._accelerator = Accelerator(mixed_precision=precision or _native_precision())
        self._data_sha256, self._data_count = data_digest(scans), len(scans)
        self._dataset = SampleDataset(AnomalyGenerator(scans, config))
        watched = config.model_copy(update={"seed": config.seed + 1})
        self._held_out = AnomalyGenerator(held_out, watched) if _enough(held_out, config) else None
        torch.manual_seed(config.seed)
        network = build_network(config.preset.network)
        keep_small_levels_in_float32(network)
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        recipe = config.preset.optimiser
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=recipe.max_lr, weight_decay=recipe.weight_decay
        )
        self._network, self._optimiser = self._accelerator.prepare(network, optimiser)
        average = get_ema_multi_avg_fn(recipe.ema_decay)
        self._ema = (
            AveragedModel(self._plain, multi_avg_fn=average, use_buffers=True) if recipe.ema_decay else None
        )
        self._step, self._seconds, self._steps_before, self._minutes_before = 0, 0.0, 0, 0.0
        self._finished = False
        self._replay = Replay(config.seed, self._accelerator.process_index)
        if (out / CHECKPOINT_NAME).exists():
            self._resume()

    @property
    def _plain(self) -> nn.Module:
        # without the wrapper, unwrapping would end the autocast of the very network that trains
        network: nn.Module = self._accelerator.unwrap_model(self._network, keep_fp32_wrapper=True)
        return network

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._step

    def start_from(self, start: Start) -> None:
        """Take first weights from another network, unless this run has begun already."""
        if self._step == 0:
            self._plain.load_state_dict(start.state)
            self._steps_before, self._minutes_before = start.steps, start.minutes

    def fit(self, stop: Callable[[], bool] = lambda: False) -> Result:
        """Train to the end of the schedule, or until ``stop`` says so; a checkpoint is left either way.

        A finished run is left as it is, unless it is given more steps or time.

        Raises:
            UserError: the loss is not finite; nothing of that is saved.
        """
        with _flushed_denormals():
            return self._fit(stop)

    def _fit(self, stop: Callable[[], bool]) -> Result:
        main = self._accelerator.is_main_process
        if self._finished and self._progress() >= 1:
            return Result(self._step, True, self._watch() if main else None)
        self._finished = False
        batches = self._batches()
        writer = SummaryWriter(str(self._out / "tensorboard")) if main else None
        limit = self._config.max_minutes or math.inf
        save_after = min(CHECKPOINT_SECONDS, 60 * limit / CHECKPOINTS_AT_LEAST)
        last_saved, progress_bar = time.monotonic(), _progress_bar(enabled=main)
        task = progress_bar.add_task("", total=1.0, loss=math.nan, rate=0.0, step=self._step)
        self._network.train()
        with progress_bar:
            while (progress := self._progress()) < 1 and not self._any(stop()):
                began = time.monotonic()
                loss = self._train_step(next(batches), progress).item()
                if self._any(not self._is_sound(loss)):
                    raise UserError(f"{self._out}: step {self._step} gave no finite numbers; {GO_ON}.")
                seconds = time.monotonic() - began
                self._seconds += seconds
                self._step += 1
                if self._step % LOG_EVERY == 0 and writer:
                    progress_bar.update(
                        task, completed=progress, loss=loss, rate=1 / seconds, step=self._step
                    )
                    self._log(writer, loss, 1 / seconds, progress)
                if time.monotonic() - last_saved > save_after:
                    self._save()
                    last_saved = time.monotonic()
        self._finished = self._progress() >= 1
        if self._finished:
            self._settle_norms()
        self._save()
        self._accelerator.wait_for_everyone()  # what comes next may read the checkpoint, on every rank
        precision = self._watch() if self._finished and main else None
        if writer:
            if precision is not None:
                writer.add_scalar("held-out AP", precision, self._step)
            writer.close()
        return Result(self._step, self._finished, precision)

    def _settle_norms(self) -> None:
        """Measure the statistics of the norms anew, for the parameters as they ended.

        The running means that training leaves hang on its last batches, and one odd batch among them has
        left a network that found everything in training and nothing in evaluation.
        """
        for network in (self._network, self._ema):
            if network is not None:
                settle_norms(network, self._settling_images())

    def _settling_images(self) -> Iterator[Tensor]:
        """Images as in training; those that are kept to be shown again serve as well as new ones."""
        if len(self._replay):
            yield from self._replay.images()
            return
        recipe = self._config.preset.optimiser
        count = min(SETTLING_BATCHES, recipe.steps) * recipe.batch
        samples = Subset(self._dataset, range(SETTLING_FROM, SETTLING_FROM + count))
        for image, _ in DataLoader(samples, batch_size=recipe.batch, num_workers=self._workers):
            yield image.to(self._accelerator.device)

    def _progress(self) -> float:
        share = self._step / self._config.preset.optimiser.steps
        if self._config.max_minutes is not None:
            share = max(share, self._seconds / 60 / self._config.max_minutes)
        return self._highest(share)

    def _highest(self, value: float) -> float:
        """The largest value of all ranks: they must leave the loop at the same step."""
        if self._accelerator.num_processes == 1:
            return value
        own = torch.tensor([value], device=self._accelerator.device)
        return float(self._accelerator.gather(own).max())

    def _any(self, flag: bool) -> bool:
        return self._highest(float(flag)) > 0

    def _is_sound(self, loss: float) -> bool:
        """Whether the loss and all that would be saved are finite."""
        state = self._plain.state_dict().values()
        # one question for all of them: each answer would be waited for
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in state])
        return math.isfinite(loss) and bool(finite.all())

    def _batches(self) -> Iterator[Batch]:
        """What each step from the next one on learns from; fresh samples, or some of the last ones again.

        The last ones are there at once, not with the first step: what settles the norms may come before it.
        """
        shown = self._config.preset.optimiser.shown
        made = -(-self._step // shown)
        first = max(0, made - KEPT) if shown > 1 else made
        fresh = self._fresh(first)
        for _ in range(made - first):  # a run that goes on has seen these
            self._replay.add(*next(fresh))
        return self._shown(fresh, shown)

    def _shown(self, fresh: Iterator[Batch], shown: int) -> Iterator[Batch]:
        for step in itertools.count(self._step):
            if step % shown:
                yield self._replay.draw(step)
                continue
            batch = next(fresh)
            if shown > 1:
                self._replay.add(*batch)
            yield batch

    def _fresh(self, first: int) -> Iterator[Batch]:
        batch, device = self._config.preset.optimiser.batch, self._accelerator.device
        numbers = sample_numbers(
            first, batch, self._accelerator.process_index, self._accelerator.num_processes
        )
        loader = DataLoader(
            self._dataset,
            batch_size=batch,
            sampler=numbers,
            num_workers=self._workers,
            pin_memory=device.type == "cuda",
        )
        for image, label in loader:
            yield image.to(device, non_blocking=True), label.to(device, non_blocking=True)

    def _train_step(self, batch: Batch, progress: float) -> Tensor:
        recipe = self._config.preset.optimiser
        lr, beta1 = one_cycle(progress, recipe.max_lr)
        for group in self._optimiser.param_groups:
            group["lr"], group["betas"] = lr, (beta1, 0.999)
        image, label = batch
        logits = self._network(image.to(memory_format=torch.channels_last_3d))
        loss = anomaly_loss(logits, label, recipe.positive_weight)
        self._accelerator.backward(loss)
        self._optimiser.step()
        self._optimiser.zero_grad()
        if self._ema:
            self._ema.update_parameters(self._plain)
        return loss.detach()

    def _log(self, writer: Any, loss: float, rate: float, progress: float) -> None:
        writer.add_scalar("loss", loss, self._step)
        writer.add_scalar("steps per second", rate, self._step)
        writer.add_scalar("learning rate", self._optimiser.param_groups[0]["lr"], self._step)
        if self._step % PICTURES_EVERY == 0:
            image, label = self._dataset[self._step]
            pair = torch.cat([image, label], dim=1)[..., image.shape[-1] // 2]
            writer.add_image("image and label", pair, self._step)
        with (self._out / "log.txt").open("a") as log:
            log.write(f"step {self._step} loss {loss:.4f} {rate:.2f} steps/s {100 * progress:.0f} %\n")

    def _watch(self) -> float | None:
        """AP over the voxels of fixed samples from the fold left out, against label > 0."""
        if self._held_out is None:
            return None
        model = build_network(self._config.preset.network).to(self._accelerator.device).eval()
        model.load_state_dict(self._ema.module.state_dict() if self._ema else self._plain.state_dict())
        scores, labels = [], []
        with torch.inference_mode():
            for number in range(HELD_OUT_PATCHES):
                image, label = self._held_out.pair(number)
                window = torch.from_numpy(image[None, None]).to(self._accelerator.device)
                scores.append(model(window).float().sigmoid().cpu().numpy().ravel())
                labels.append((label > 0).ravel())
        return float(average_precision_score(np.concatenate(labels), np.concatenate(scores)))

    def _save(self) -> None:
        if not self._accelerator.is_main_process:
            return
        write_checkpoint(
            self._out / CHECKPOINT_NAME,
            Checkpoint(
                config=self._config.model_dump_json(),
                data_sha256=self._data_sha256,
                data_count=self._data_count,
                code_version=code_version(),
                hardware=hardware(),
                step=self._step,
                seconds=self._seconds,
                steps_before=self._steps_before,
                minutes_before=self._minutes_before,
                network=self._plain.state_dict(),
                optimiser=self._optimiser.state_dict(),
                ema=self._ema.state_dict() if self._ema else None,
                finished=self._finished,
            ),
        )

    def _resume(self) -> None:
        path = self._out / CHECKPOINT_NAME
        checkpoint = read_checkpoint(path)
        check_same_run(path, checkpoint, self._config, self._data_sha256)
        self._plain.load_state_dict(checkpoint.network)
        self._optimiser.load_state_dict(checkpoint.optimiser)
        if self._ema and checkpoint.ema:
            self._ema.load_state_dict(checkpoint.ema)
        self._step, self._seconds, self._finished = checkpoint.step, checkpoint.seconds, checkpoint.finished
        self._steps_before, self._minutes_before = checkpoint.steps_before, checkpoint.minutes_before


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Gradients far below any use made steps on a CPU take twice as long; what comes after is not touched."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _native_precision() -> str:
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def _enough(scans: list[CachedScan], config: RunConfig) -> bool:
    subjects = {scan.subject for scan in scans}
    return len(subjects) > 1 or (len(subjects) == 1 and config.preset.anomalies.other_share == 0)


def _progress_bar(enabled: bool) -> Progress:
    columns = (
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.4f}  {task.fields[rate]:.2f} steps/s"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns)
    bar.disable = not (enabled and bar.console.is_terminal)
    return bar
