"""Weights on disk: one folder a region, a manifest and one safetensors file a member.

Layout: ``weights/<region>/manifest.json`` beside ``<member>.safetensors`` in half precision. A file is
hashed before it is parsed, and nothing is ever unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from mood_infer.challenge import Region
from mood_infer.errors import WeightsError
from mood_infer.intensity import IntensityRule
from mood_infer.network import NetworkConfig, build_network
from mood_infer.volume import write_atomically

MANIFEST_NAME = "manifest.json"


MOUNTED_WEIGHTS = Path("/weights")  # a folder that whoever runs the container may mount
OWN_WEIGHTS = (
    Path(__file__).resolve().parent.parent / "weights"
)  # beside the package, in a checkout or the image


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Record):
    """One network of the ensemble and how it was made.

    Attributes:
        file: name of the safetensors file beside the manifest.
        sha256: of that file, in hex.
        preset: name of the training preset.
        fold: the fold left out of its last run; None if it saw all five.
        edges: how its synthetic anomalies ended: hard or smooth.
        steps: optimiser steps in all, those of a start from another member included.
        seed: of the last run.
        data: name of the training data set.
        data_sha256: over the training scans' names and contents.
        licence: of the training data.
        code_version: of this software, with the commit where known.
        hardware: processor or accelerator.
        minutes: wall time in all.
        started_from: file or note of the member it was started from, if any.
    """

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    preset: str
    fold: int | None = Field(ge=0)
    edges: Literal["hard", "smooth"]
    steps: int = Field(ge=0)
    seed: int
    data: str
    data_sha256: str
    licence: str
    code_version: str
    hardware: str
    minutes: float
    started_from: str | None = None


class Manifest(_Record):
    """What the weights of a region are and how they must be used.

    Attributes:
        region: brain or abdom.
        network: widths of every member.
        intensity: rule that takes a scan to [0,1].
        spacing: of the working grid, in mm.
        upsample: whether axes along which a scan is coarser than that are brought to it, as in the paper;
            otherwise they stay as they are.
        window: side of the sliding window, in voxels.
        overlap: of neighbouring windows, share of the side in [0,1).
        sigma: of the windows' Gaussian weights, share of the side.
        smoothing: of the mean map, sigma of a Gaussian in mm; 0 leaves it as it is, as the paper does.
        context: each score becomes the geometric mean of itself and of the scores around it, to this sigma in
            mm; 0 leaves it as it is, as the paper does.
        smooth_weight: of the maps of smooth members in the mean, where those of hard ones have the weight 1;
            1 is the plain mean, as in the paper.
        members: in the order in which they run.
        normal_scores: sample scores of normal scans that no member was trained on, rising; none if they were
            not measured since the members last changed.
    """

    format: Literal[1] = 1
    region: Region
    network: NetworkConfig
    intensity: IntensityRule
    spacing: float = Field(gt=0)
    upsample: bool = True
    window: int = Field(gt=0)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    sigma: float = Field(default=0.125, gt=0)
    smoothing: float = Field(default=0.0, ge=0)
    context: float = Field(default=0.0, ge=0)
    smooth_weight: float = Field(default=1.0, gt=0)
    members: tuple[Member, ...]
    normal_scores: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        if self.window % self.network.divisor:
            raise ValueError(f"window {self.window} is not a multiple of {self.network.divisor}")
        if len({member.file for member in self.members}) != len(self.members):
            raise ValueError("two members share a file")
        if list(self.normal_scores) != sorted(self.normal_scores):
            raise ValueError("normal_scores must rise")
        if not all(0 <= score <= 1 for score in self.normal_scores):
            raise ValueError("normal_scores must lie in [0,1]")
        return self

    def weight_of(self, member: Member) -> float:
        """How much a member's map counts in the mean, against the others'."""
        return self.smooth_weight if member.edges == "smooth" else 1.0

    def digest(self) -> str:
        """12 hex digits that change whenever anything that shapes the maps does."""
        told = set(Member.model_fields) - {"sha256", "edges"}
        shaping = self.model_dump_json(exclude={"normal_scores": True, "members": {"__all__": told}})
        return hashlib.sha256(shaping.encode()).hexdigest()[:12]

    def with_members(self, members: tuple[Member, ...]) -> "Manifest":
        """The same with other members; the scores of normal scans were those of the ones before."""
        return self.model_copy(update={"members": members, "normal_scores": ()})


def find_weights(region: Region, folder: Path | None = None) -> Path:
    """The folder that holds the manifest of a region; whether there is one shows when it is read.

    Args:
        region: brain or abdom.
        folder: the region's own folder, or one with a folder for each region. Without it
            ``/weights/<region>`` is taken where that has a manifest, else ``weights/<region>`` beside the
            package.

    Raises:
        WeightsError: there is a folder that may not be looked into, or ``/weights`` has none of any region.
    """
    if folder is not None:
        inner = folder / region
        return inner if has_manifest(inner) else folder
    if has_manifest(MOUNTED_WEIGHTS / region):
        return MOUNTED_WEIGHTS / region
    if MOUNTED_WEIGHTS.is_dir() and not any(has_manifest(MOUNTED_WEIGHTS / other) for other in Region):
        # of a misspelt path docker makes an empty folder
        files = " or ".join(f"{each}/{MANIFEST_NAME}" for each in Region)
        raise WeightsError(
            f"{MOUNTED_WEIGHTS}: has no {files}; mount a folder that has, or name one with --weights."
        )
    return OWN_WEIGHTS / region


def has_manifest(folder: Path) -> bool:
    """Whether a folder holds weights.

    Raises:
        WeightsError: it may not be looked into.
    """
    try:
        return (folder / MANIFEST_NAME).is_file()
    except PermissionError as error:
        raise WeightsError(f"{folder}: {error.strerror}; let every user read it.") from error


def read_manifest(folder: Path, region: Region | None = None) -> Manifest:
    """Read and check ``manifest.json`` of a region's folder.

    Args:
        folder: it lies there.
        region: which region's it must be; any by default.

    Raises:
        WeightsError: it is missing, not valid or another region's; the text names the file and the field.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{path}: no manifest can be read there; give a folder made by mood-train export."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise WeightsError(f"{path}: {field}: {first['msg']}; export the weights again.") from error
    if region is not None and manifest.region is not region:
        raise WeightsError(f"{folder}: weights for {manifest.region}; give those for {region}.")
    return manifest


def read_member(folder: Path, member: Member) -> dict[str, torch.Tensor]:
    """Read one member's tensors, after its checksum was found right.

    Raises:
        WeightsError: the file is missing, or not the one the manifest names.
    """
    path = folder / member.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read; copy the weights again.") from error
    if hashlib.sha256(content).hexdigest() != member.sha256:
        raise WeightsError(f"{path}: its sha256 is not the one in {MANIFEST_NAME}; copy the weights again.")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file; export the weights again.") from error


def verify_member(folder: Path, member: Member) -> str | None:
    """What is wrong with a member's file, in a word or two; None where its checksum is right."""
    try:
        right = hashlib.sha256((folder / member.file).read_bytes()).hexdigest() == member.sha256
    except OSError as error:
        return error.strerror or str(error)
    return None if right else "damaged"


def load_member(folder: Path, manifest: Manifest, member: Member) -> nn.Module:
    """One network in float32 and evaluation mode, its gradients off.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    network = build_network(manifest.network)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_member(folder, member).items()
    }
    path = folder / member.file
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise WeightsError(f"{path}: holds numbers that are not finite; train this member again.")
    misfit = f"{path}: does not fit the network in {MANIFEST_NAME}; export the weights again."
    if tensors.keys() != _own_tensors(network).keys():
        raise WeightsError(misfit)
    try:
        network.load_state_dict(tensors, strict=False)  # the names left out are others for the same tensors
    except RuntimeError as error:
        raise WeightsError(misfit) from error
    return network.eval().requires_grad_(False)


def save_member(path: Path, network: nn.Module) -> str:
    """Write what :func:`encode_member` gives and return its sha256."""
    content = encode_member(network)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def encode_member(network: nn.Module) -> bytes:
    """A network's parameters in half precision, as a safetensors file.

    The statistics of its norms stay as they are: a variance may exceed what half precision holds.
    """
    halved = {name: parameter.detach().half() for name, parameter in network.named_parameters()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in (_own_tensors(network) | halved).items()}
    return safetensors.torch.save(tensors)


def _own_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, each once: a DynUNet's state_dict has two names for most of them."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, for people to read and for diffs to show; whole or not at all.

    Raises:
        WeightsError: it cannot be written.
    """
    text = json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"
    path = folder / MANIFEST_NAME
    try:
        write_atomically(path, lambda partial: partial.write_text(text))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}); check the folder.") from error
