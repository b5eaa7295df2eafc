"""What a training run is: a typed, validated preset read from TOML."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mood_infer.challenge import Region
from mood_infer.errors import UserError
from mood_infer.intensity import IntensityRule
from mood_infer.network import NetworkConfig
from mood_train.anomalies.shapes import ShapeKind

Edges = Literal["hard", "smooth"]
Settings = TypeVar("Settings", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RegionConfig(_Section):
    """What differs between regions.

    Attributes:
        intensity: rule that takes raw scans to [0,1].
        spacing: of the working grid, in mm.
        upsample: whether axes along which a scan is coarser than that are brought to it, as in the paper;
            otherwise they stay as they are.
        bins: for each n the scans are shown with n x n voxels of a slice averaged into one, as few scans
            are few spacings; 1 shows them as they are, others are held in memory, 3 bytes a voxel.
        body_above: intensity in [0,1) above which a voxel is body, before holes are filled.
        body_is_filled: keep the largest component and fill its holes slice by slice (CT); otherwise the
            voxels above the level are the body as they are (skull-stripped MR).
        anomalies_in_body: make anomalies only in body voxels (paper, section 2.1: brain, voxels > 0).
        gain: three patches in ten are multiplied by 1 - gain to 1 + gain, so that a scanner's scale, where
            the unit is arbitrary, is no anomaly.
        place_rate: odds of each change of place of a normal patch: flips, quarter turns, zoom, small turns.
        zoom: largest zoom of a normal patch, in or out, less 1: few scans are few sizes of patients.
        intensity_rate: odds of each change of intensity of a normal patch: noise, bias field, blur, contrast.
        noise: standard deviation of that noise, at most.
        curve_rate: odds that the intensities of a normal patch go through a random rising curve, as contrast
            agents brighten some tissues more than others.
        smoothing: of the maps at inference, sigma of a Gaussian in mm.
        context: at inference each score is weighed by those around it, to this sigma in mm.
        smooth_weight: of smooth members' maps in the mean at inference, where hard ones' have the weight 1.
    """

    intensity: IntensityRule
    spacing: float = Field(gt=0)
    upsample: bool = True
    bins: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    body_above: float = Field(ge=0, lt=1)
    body_is_filled: bool
    anomalies_in_body: bool
    gain: float = Field(default=0.0, ge=0, lt=1)
    place_rate: float = Field(default=0.1, ge=0, le=1)
    zoom: float = Field(default=0.1, ge=0, lt=1)
    intensity_rate: float = Field(default=0.1, ge=0, le=1)
    noise: float = Field(default=0.01, ge=0, lt=1)
    curve_rate: float = Field(default=0.0, ge=0, le=1)
    smoothing: float = Field(default=0.0, ge=0)
    context: float = Field(default=0.0, ge=0)
    smooth_weight: float = Field(default=1.0, gt=0)


class AnomalyConfig(_Section):
    """How synthetic anomalies are drawn (paper, section 2.1).

    Sizes are shares of the training window's shortest side in mm, which on a cubic working grid all are.

    Attributes:
        rate: share of the training patches that get any.
        max_count: anomalies a patch, drawn from 1 to this many.
        min_size, max_size: bounds of a shape's side or diameter; max_size is the foreign patch's.
        bank_size: foreign patches in the memory bank.
        other_share: share of the foreign patches from other subjects.
        own_share: share that are the image itself at the very place, always shifted, noisy or turned; what
            these two leave comes from another place of the same scan, flipped at random.
        shapes: odds of each kind of shape.
        alpha_min: the blending factor is drawn from this to 1.
        poisson_share: share of the anomalies blended by their gradients; the rest linearly.
        smooth_kernels: sizes of the smoothed edges, one drawn at random (1: a hard edge); in working voxels,
            by their shortest side.
    """

    rate: float = Field(default=0.9, ge=0, le=1)
    max_count: int = Field(default=1, ge=1)
    min_size: float = Field(default=0.0625, gt=0, lt=1)
    max_size: float = Field(default=0.8, gt=0, lt=1)
    bank_size: int = Field(default=50, ge=1)
    other_share: float = Field(default=1.0, ge=0, le=1)
    own_share: float = Field(default=0.0, ge=0, le=1)
    shapes: dict[ShapeKind, float] = {"cuboid": 1.0, "sphere": 1.0, "walk": 1.0}
    alpha_min: float = Field(default=0.3, ge=0, le=1)
    poisson_share: float = Field(default=0.0, ge=0, le=1)
    smooth_kernels: tuple[int, ...] = (1, 1, 1, 1, 3, 3, 5, 7)

    @model_validator(mode="after")
    def _check(self) -> "AnomalyConfig":
        if self.min_size > self.max_size:
            raise ValueError("min_size must not exceed max_size")
        if self.other_share + self.own_share > 1:
            raise ValueError("other_share and own_share must not exceed 1 together")
        if any(size < 1 or size % 2 == 0 for size in self.smooth_kernels):
            raise ValueError("smooth_kernels must be odd")
        return self


class PatchConfig(_Section):
    """How training patches are cut and augmented.

    Attributes:
        window: side in voxels; the same window is used at inference.
        margin: side of the crop that is augmented, as a multiple of the window.
        min_body: share of the crop that should be body; the best of some draws is taken.
    """

    window: int = Field(gt=0)
    margin: float = Field(default=1.25, ge=1)
    min_body: float = Field(default=0.0, ge=0, le=1)


class OptimiserConfig(_Section):
    """AdamW under a one-cycle schedule (paper, section 3.1.1).

    Attributes:
        steps: optimiser steps of the whole schedule.
        batch: patches a step and process.
        shown: how often each sample is shown; 1: never again. More where a GPU waits for samples.
        max_lr: peak learning rate.
        weight_decay: of AdamW.
        positive_weight: of the loss where there is an anomaly; above 1 a network learns to find the few such
            voxels sooner, and scores stand higher.
        ema_decay: of an exponential moving average of the weights, which is then what is exported; 0: none.
    """

    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    shown: int = Field(default=1, ge=1)
    max_lr: float = Field(gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    positive_weight: float = Field(default=1.0, ge=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)


class EnsembleConfig(_Section):
    """How the ten members of a region follow from one another (paper, section 3.1.1: each from scratch).

    Attributes:
        base_steps: of one network with hard edges on all folds, from which the members start; 0: none.
        smooth_base_steps: of one with smoothed edges on all folds, which starts from that one, and from which
            the members with smoothed edges start; 0: none.
        hard_steps: of each member with hard edges.
        smooth_steps: of each member with smoothed edges.
        smooth_from_hard: start it from the hard member of its fold, where there is no smooth base.
        member_max_lr: peak learning rate of members that start from another network.
    """

    base_steps: int = Field(default=0, ge=0)
    smooth_base_steps: int = Field(default=0, ge=0)
    hard_steps: int = Field(gt=0)
    smooth_steps: int = Field(gt=0)
    smooth_from_hard: bool = False
    member_max_lr: float = Field(default=1e-3, gt=0)


class Preset(_Section):
    """A whole recipe, region by region."""

    name: str
    network: NetworkConfig
    patches: PatchConfig
    anomalies: AnomalyConfig
    optimiser: OptimiserConfig
    ensemble: EnsembleConfig | None = None
    regions: dict[Region, RegionConfig]

    @model_validator(mode="after")
    def _check(self) -> "Preset":
        if self.patches.window % self.network.divisor:
            raise ValueError(f"window {self.patches.window} is not a multiple of {self.network.divisor}")
        return self


class RunConfig(_Section):
    """Everything that decides what a run computes; a resumed run must have the same.

    Attributes:
        preset: the recipe.
        region: which of its regions.
        edges: hard, or smooth as the preset's smooth_kernels say.
        fold: left out of the training; None trains on all folds.
        seed: of every random draw.
        max_minutes: the schedule ends after this many minutes if the steps are not done before.
        started_from: file the first weights came from, if any.
    """

    preset: Preset
    region: Region
    edges: Edges
    fold: int | None = Field(default=0, ge=0)
    seed: int = 0
    max_minutes: float | None = Field(default=None, gt=0)
    started_from: str | None = None

    def with_optimiser(self, **changes: float) -> "RunConfig":
        """The same run with other settings of the optimiser."""
        optimiser = self.preset.optimiser.model_copy(update=changes)
        return self.model_copy(update={"preset": self.preset.model_copy(update={"optimiser": optimiser})})

    @property
    def place(self) -> RegionConfig:
        """The region's part of the preset."""
        return self.preset.regions[self.region]


def load_preset(name_or_path: str, region: Region | None = None) -> Preset:
    """Read a preset shipped with the package by name, or any TOML file by path.

    Raises:
        UserError: there is none, a field is wrong, or it has no recipe for ``region``; the text names it.
    """
    folder = resources.files("mood_train.presets")
    shipped = sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))
    source = folder / f"{name_or_path}.toml" if name_or_path in shipped else Path(name_or_path)
    try:
        text = source.read_text()
    except OSError as error:
        names = ", ".join(shipped)
        raise UserError(f"{name_or_path}: no such preset; give one of {names}, or a TOML file.") from error
    preset = parse_toml(text, name_or_path, Preset)
    if region is not None and region not in preset.regions:
        raise UserError(f"{name_or_path}: has no recipe for {region.value}; give another preset.")
    return preset


def parse_toml(text: str, name: str, kind: type[Settings]) -> Settings:
    """Check the text of a TOML file called ``name`` and make settings of it.

    Raises:
        UserError: it is not TOML, or a field is wrong; the text names it.
    """
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name}: not valid TOML ({error}); mend the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise UserError(f"{name}: {field}: {first['msg']}; mend the file.") from error
