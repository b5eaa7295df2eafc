"""Ten members from one command: what starts from what, what is exported, and what a rerun leaves alone."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.weights import read_manifest, verify_member
from mood_train.checkpoint import CHECKPOINT_NAME
from mood_train.config import EnsembleConfig, Preset, RunConfig, load_preset
from mood_train.ensemble import plan_ensemble, train_ensemble
from mood_train.export import export_member
from mood_train.run import Material, Means
from mood_train.start import read_start


def _recipe(preset: Preset, **ensemble: object) -> Preset:
    steps = {"base_steps": 2, "hard_steps": 1, "smooth_steps": 1, **ensemble}
    return preset.model_copy(update={"ensemble": EnsembleConfig(**steps)})  # type: ignore[arg-type]


@pytest.fixture()
def material(tmp_path: Path) -> Material:
    """Six small brains of six subjects."""
    data = tmp_path / "data"
    data.mkdir()
    line = np.arange(40) - 20.0
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    ball = x**2 + y**2 + z**2 < 18**2
    for number in range(6):
        level = 0.2 + 0.1 * number
        image = np.where(ball, level, 0).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), data / f"sub-{number:02d}.nii.gz")
    return Material.find(data, tmp_path / "split.json", Region.BRAIN, 0, tmp_path / "cache")


def test_the_papers_members_are_ten_from_scratch() -> None:
    jobs = plan_ensemble(load_preset("reference"), Region.BRAIN, 5, 5)
    assert [(job.config.fold, job.config.edges) for job in jobs] == [
        (fold, edges) for fold in range(5) for edges in ("hard", "smooth")
    ]
    assert all(job.start is None and job.is_member for job in jobs)
    assert [job.config.seed for job in jobs] == list(range(5, 15))
    assert {job.config.preset.optimiser.steps for job in jobs} == {35_000}
    assert {job.config.preset.optimiser.max_lr for job in jobs} == {1e-3}


def test_a_base_comes_first_and_smooth_members_start_from_hard_ones(tiny_preset: Preset) -> None:
    recipe = _recipe(tiny_preset, smooth_from_hard=True, member_max_lr=2e-4)
    jobs = plan_ensemble(recipe, Region.BRAIN, 0, 2)
    starts = {job.name: job.start for job in jobs}
    assert list(starts.items()) == [
        ("base-hard", None),
        ("fold0-hard", Path("base-hard") / CHECKPOINT_NAME),
        ("fold0-smooth", Path("fold0-hard") / CHECKPOINT_NAME),
        ("fold1-hard", Path("base-hard") / CHECKPOINT_NAME),
        ("fold1-smooth", Path("fold1-hard") / CHECKPOINT_NAME),
    ]
    base, hard, smooth, *_ = (job.config for job in jobs)
    assert base.fold is None and base.preset.optimiser == tiny_preset.optimiser.model_copy(
        update={"steps": 2}
    )
    assert smooth.preset.optimiser.max_lr == 2e-4 and smooth.started_from == "fold0-hard/checkpoint.pt"
    assert len({job.config.seed for job in jobs}) == len(jobs)
    assert hard.preset.anomalies == tiny_preset.anomalies
    given = Path("/somewhere/brain/member.safetensors")
    first = plan_ensemble(_recipe(tiny_preset), Region.BRAIN, 0, 1, given)[0]
    assert first.start == given and first.config.started_from == "brain/member.safetensors"
    assert first.config.preset.optimiser.max_lr == tiny_preset.optimiser.max_lr
    with pytest.raises(UserError, match="ensemble"):
        plan_ensemble(tiny_preset.model_copy(update={"ensemble": None}), Region.BRAIN, 0, 1)


def test_members_start_from_bases_or_from_what_takes_their_place(tiny_preset: Preset) -> None:
    recipe = _recipe(tiny_preset, smooth_base_steps=3, member_max_lr=2e-4)
    jobs = plan_ensemble(recipe, Region.BRAIN, 0, 1)
    bases = [Path(name) / CHECKPOINT_NAME for name in ("base-hard", "base-smooth")]
    assert [(job.name, job.start, job.is_member) for job in jobs] == [
        ("base-hard", None, False),
        ("base-smooth", bases[0], False),
        ("fold0-hard", bases[0], True),
        ("fold0-smooth", bases[1], True),
    ]
    rates = [job.config.preset.optimiser.max_lr for job in jobs]
    assert rates == [tiny_preset.optimiser.max_lr] * 2 + [2e-4] * 2
    given = [Path(f"/somewhere/brain/{edges}.safetensors") for edges in ("hard", "smooth")]
    jobs = plan_ensemble(recipe, Region.BRAIN, 0, 1, *given)
    assert [(job.name, job.start) for job in jobs] == [("fold0-hard", given[0]), ("fold0-smooth", given[1])]
    assert [job.config.started_from for job in jobs] == ["brain/hard.safetensors", "brain/smooth.safetensors"]


def test_an_ensemble_goes_on_where_it_was_cut_off(
    tiny_preset: Preset, material: Material, tmp_path: Path
) -> None:
    jobs = plan_ensemble(_recipe(tiny_preset, smooth_from_hard=True), Region.BRAIN, 0, 2)
    weights, runs, lines = tmp_path / "weights", tmp_path / "runs", list[str]()

    def go(stop_after: int | None = None) -> bool:
        asked = iter(range(1000))
        return train_ensemble(
            jobs,
            material,
            runs,
            lambda checkpoint: export_member(checkpoint, weights, "balls", "CC0"),
            lambda: stop_after is not None and next(asked) >= stop_after,
            Means(),
            lines.append,
        )

    assert not go(stop_after=4)
    assert "stopped at step" in lines[-1]
    begun = {path.parent.name: path.read_bytes() for path in runs.glob(f"*/{CHECKPOINT_NAME}")}
    assert go()
    manifest = read_manifest(weights / "brain")
    names = [f"tiny-fold{fold}-{edges}.safetensors" for fold in range(2) for edges in ("hard", "smooth")]
    assert [member.file for member in manifest.members] == names
    assert [member.steps for member in manifest.members] == [3, 4, 3, 4]  # what they started from counts
    assert all(verify_member(weights / "brain", member) is None for member in manifest.members)
    assert (runs / "base-hard" / CHECKPOINT_NAME).read_bytes() == begun["base-hard"]
    jobs = plan_ensemble(_recipe(tiny_preset, smooth_from_hard=True), Region.BRAIN, 7, 2)
    with pytest.raises(UserError, match="seed 0"):
        go()  # what is finished there is another ensemble
    left = material.split.folds[1]
    seen = {scan.name for scan in material.training(1, jobs[3].config.place)}
    assert seen and not seen & {*left, *material.split.set_aside}


def test_only_a_base_of_all_folds_may_start_another_fold(
    tiny_preset: Preset, material: Material, tmp_path: Path
) -> None:
    jobs = plan_ensemble(_recipe(tiny_preset), Region.BRAIN, 0, 2)
    train_ensemble(jobs[:2], material, tmp_path / "runs", lambda path: path, lambda: False, Means(), print)
    of_base, of_fold0 = (tmp_path / "runs" / name / CHECKPOINT_NAME for name in ("base-hard", "fold0-hard"))
    other: RunConfig = jobs[3].config
    assert read_start(of_base, other).steps == 2
    with pytest.raises(UserError, match="left out fold 0, not 1"):
        read_start(of_fold0, other)
    abdomen = other.model_copy(update={"region": Region.ABDOM})
    assert read_start(of_fold0, abdomen).fold == 0


def test_a_start_that_fits_no_later_fold_is_told_before_the_first_is_trained(
    tiny_preset: Preset, material: Material, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    means = (lambda path: path, lambda: False, Means(), print)
    train_ensemble(plan_ensemble(_recipe(tiny_preset), Region.BRAIN, 0, 2)[:2], material, runs, *means)
    of_fold0 = runs / "fold0-hard" / CHECKPOINT_NAME
    jobs = plan_ensemble(_recipe(tiny_preset), Region.BRAIN, 0, 2, of_fold0, of_fold0)
    assert [job.config.fold for job in jobs] == [0, 0, 1, 1]
    with pytest.raises(UserError, match="left out fold 0, not 1"):
        train_ensemble(jobs, material, tmp_path / "more", *means)
    assert not (tmp_path / "more").exists()


def test_an_exported_member_may_start_another(
    tiny_preset: Preset, material: Material, tmp_path: Path
) -> None:
    place = tiny_preset.regions[Region.BRAIN].model_copy(
        update={"upsample": False, "smoothing": 3.0, "context": 9.0, "smooth_weight": 0.5}
    )
    preset = tiny_preset.model_copy(update={"regions": tiny_preset.regions | {Region.BRAIN: place}})
    jobs = plan_ensemble(_recipe(preset, base_steps=0), Region.BRAIN, 0, 1)
    runs = tmp_path / "runs"
    train_ensemble(
        jobs[:1],
        material,
        runs,
        lambda checkpoint: export_member(checkpoint, tmp_path / "weights", "balls", "CC0"),
        lambda: False,
        Means(),
        print,
    )
    member = tmp_path / "weights" / "brain" / "tiny-fold0-hard.safetensors"
    manifest = read_manifest(member.parent)
    assert (manifest.spacing, manifest.upsample) == (place.spacing, False)
    assert (manifest.smoothing, manifest.context, manifest.smooth_weight) == (3.0, 9.0, 0.5)
    start = read_start(member, jobs[1].config)
    trained = read_start(runs / "fold0-hard" / CHECKPOINT_NAME, jobs[1].config)
    assert (start.fold, start.steps) == (trained.fold, trained.steps) == (0, 1)
    for name, tensor in trained.state.items():
        assert np.allclose(start.state[name], tensor, rtol=1e-3, atol=1e-6), name
    with pytest.raises(UserError, match="not in the manifest"):
        read_start(member.with_name("other.safetensors"), jobs[1].config)
