"""All ten members of a region, one after another: five folds, hard and smoothed (paper, section 3.1.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_train.checkpoint import CHECKPOINT_NAME
from mood_train.config import Edges, Preset, RunConfig
from mood_train.run import Material, Means, is_finished, is_main, train
from mood_train.start import read_start, start_name

BASE, SMOOTH_BASE = "base-hard", "base-smooth"


@dataclass(frozen=True)
class Job:
    """One run of an ensemble.

    Attributes:
        name: of its folder.
        config: what it computes.
        start: what its first weights come from, if anything: a checkpoint, relative to the folder of the
            runs, or a file given from outside, absolute.
    """

    name: str
    config: RunConfig
    start: Path | None

    @property
    def is_member(self) -> bool:
        """Whether it goes into the ensemble; the bases do not."""
        return self.config.fold is not None


def plan_ensemble(
    preset: Preset,
    region: Region,
    seed: int,
    folds: int,
    first: Path | None = None,
    first_smooth: Path | None = None,
) -> list[Job]:
    """The runs of a region in the order in which they follow from one another, each with its own seed.

    Args:
        preset: the recipe; its ``ensemble`` says what starts from what.
        region: brain or abdom.
        seed: of the first run.
        folds: number of folds.
        first: what the base, or each member where there is none, starts from, if anything.
        first_smooth: what the smooth members start from; given, ``first`` and this take the bases' place.

    Raises:
        UserError: the preset does not say how to make an ensemble.
    """
    recipe = preset.ensemble
    if recipe is None:
        raise UserError(
            f"preset {preset.name} has no [ensemble] section; add one, or train with mood-train fit."
        )
    jobs: list[Job] = []

    def add(name: str, fold: int | None, edges: Edges, steps: int, start: Path | None) -> Path:
        config = RunConfig(
            preset=preset,
            region=region,
            edges=edges,
            fold=fold,
            seed=seed + len(jobs),
            started_from=start_name(start) if start else None,
        )
        own_rate = start is None or fold is None  # a base learns at the preset's, whatever it starts from
        changes = {"steps": steps} | ({} if own_rate else {"max_lr": recipe.member_max_lr})
        jobs.append(Job(name, config.with_optimiser(**changes), start))
        return Path(name) / CHECKPOINT_NAME

    base, smooth_base = first, first_smooth
    if recipe.base_steps and not first_smooth:
        base = add(BASE, None, "hard", recipe.base_steps, first)
    if recipe.smooth_base_steps and not first_smooth:
        smooth_base = add(SMOOTH_BASE, None, "smooth", recipe.smooth_base_steps, base)
    for fold in range(folds):
        hard = add(f"fold{fold}-hard", fold, "hard", recipe.hard_steps, base)
        start = smooth_base or (hard if recipe.smooth_from_hard else base)
        add(f"fold{fold}-smooth", fold, "smooth", recipe.smooth_steps, start)
    return jobs


def train_ensemble(
    jobs: list[Job],
    material: Material,
    runs: Path,
    export: Callable[[Path], Path],
    stop: Callable[[], bool],
    means: Means,
    report: Callable[[str], None],
) -> bool:
    """Do the jobs that are not done yet, and export each member as it is finished.

    Args:
        jobs: as :func:`plan_ensemble` gives them.
        material: the scans.
        runs: folder with a folder a job; what is finished there is not done again.
        export: takes a checkpoint and returns the file it was exported to.
        stop: asked before each step whether to leave off.
        means: what the runs have to work with.
        report: is told one line a job.

    Returns:
        Whether all jobs are done.

    Raises:
        UserError: scans, split or checkpoints do not fit.
    """
    for job in jobs:  # a start that does not fit is told before hours are spent
        if job.start and job.start.is_absolute() and not (runs / job.name / CHECKPOINT_NAME).exists():
            read_start(job.start, job.config)
    main = is_main()
    tell = report if main else lambda _: None
    for job in jobs:
        out = runs / job.name
        if not is_finished(out, job.config):
            start = runs / job.start if job.start else None
            result = train(job.config, material, out, start, stop, means)
            if not result.finished:
                tell(f"{job.name}: stopped at step {result.step}")
                return False
            tell(f"{job.name}: {result.step} steps")
        if job.is_member and main:
            tell(f"{job.name}: {export(out / CHECKPOINT_NAME)}")
    return True
