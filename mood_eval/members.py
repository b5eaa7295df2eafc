"""Every member of an ensemble and the means of them, on the same cases: what each is worth.

The mean of the members' maps is the ensemble's map (paper, section 3.1.1), so each network runs once a case.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mood_eval.summary import summarise
from mood_eval.table import Report, Scored, ScoreTable, judge_cases
from mood_eval.validation_set import Made, Recipe
from mood_infer.predictor import Device, Predictor
from mood_infer.refinement import MeanMap
from mood_infer.volume import Array3D
from mood_infer.weights import Manifest, find_weights, read_manifest

ENSEMBLE = "ensemble"


class MemberTable(ScoreTable):
    """The numbers of each member, by its file, of the members of one kind of edges, and of the ensemble.

    Attributes:
        weights: digest of the weights.
    """

    weights: str


def evaluate_members(
    scans: Sequence[Path],
    recipe: Recipe,
    weights: Path | None = None,
    device: Device = "auto",
    report: Report | None = None,
) -> MemberTable:
    """Score all cases of a recipe with each member alone and with all of them.

    Args:
        scans: normal scans, none of which any member was trained on.
        recipe: the cases to make.
        weights: folder of the weights; see :func:`mood_infer.weights.find_weights`.
        device: where the networks run.
        report: see :func:`judge_cases`.

    Raises:
        UserError: a scan or the weights cannot be used.
    """
    manifest = read_manifest(find_weights(recipe.region, weights))
    files = [member.file for member in manifest.members]
    members = {file: Remembering.load(recipe.region, weights, device, [file]) for file in files}
    means = _means(manifest)
    index, judged = judge_cases(scans, recipe, lambda made: score_members(made, members, means), report)
    rows = {name: summarise(part, index) for name, part in judged.items()}
    return MemberTable(index=index, rows=rows, weights=manifest.digest())


def _means(manifest: Manifest) -> dict[str, list[str]]:
    """The files that each row of means is taken over: those of one kind of edges, where that is a choice."""
    kinds: dict[str, list[str]] = {}
    for member in manifest.members:
        kinds.setdefault(f"{member.edges} members", []).append(member.file)
    some = {name: files for name, files in kinds.items() if 1 < len(files) < len(manifest.members)}
    return some | {ENSEMBLE: [member.file for member in manifest.members]}


def score_members(
    made: Made, members: Mapping[str, "Remembering"], means: Mapping[str, Sequence[str]]
) -> dict[str, Scored]:
    """What each network says of a case, by its name, and each mean of some; a network runs once."""
    scored = {name: predictor.score_case(made) for name, predictor in members.items()}
    for name, files in means.items():
        working, score = _mean([members[file] for file in files])
        scored[name] = Scored(working, scored[files[0]].grid, score)
    return scored


def _mean(members: Sequence["Remembering"]) -> tuple[Array3D, float]:
    """The map and the score that some members together give the case that each of them scored last."""
    maps, manifest = [member.last for member in members], members[0].manifest
    inside: Array3D = np.mean([one.inside for one in maps], axis=0, dtype=np.float32)
    mean = replace(maps[0], inside=inside, outside=float(np.mean([one.outside for one in maps])))
    return mean.refined(manifest.smoothing, manifest.context)


class Remembering(Predictor):
    """A predictor that knows the windows of the scan at hand: the cases of one scan share most of theirs.

    Attributes:
        last: the map of the last case, before it was refined.
    """

    last: MeanMap
    _source: str | None = None

    def score_case(self, made: Made) -> Scored:
        """Score a case; quick where it comes right after another one of the same scan."""
        if made.case.source != self._source:
            self._source = made.case.source
            self._known: dict[tuple[int, bytes], Tensor] = {}
        result = self.predict(made.image)
        return Scored(result.working, result.grid, result.sample_score)

    def _refine(self, mean: MeanMap) -> tuple[Array3D, float]:
        self.last = mean
        return super()._refine(mean)

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        digests = [hashlib.blake2b(window.cpu().numpy().tobytes()).digest() for window in windows]
        keys = [(id(network), digest) for digest in digests]
        new = [number for number, key in enumerate(keys) if key not in self._known]
        if new:
            fresh = super()._score(network, windows[new])
            self._known |= {keys[number]: scores for number, scores in zip(new, fresh, strict=True)}
        return torch.stack([self._known[key] for key in keys])
