"""Every member of an ensemble and the means of them, on the same cases: what each is worth.

The weighted mean of the members' maps is the ensemble's map (paper, section 3.1.1: the plain mean), so each
network runs once a case.
"""

import hashlib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mood_eval.summary import Interval, pixel_gains, summarise
from mood_eval.table import Report, Scored, ScoreTable, judge_cases, markdown_table
from mood_eval.validation_set import Made, Recipe
from mood_eval.verdicts import KeptVerdicts
from mood_infer.errors import ScanError
from mood_infer.grid import Grid
from mood_infer.memory import CPU_PAIR_VOXELS
from mood_infer.predictor import Device, Predictor, Speed
from mood_infer.refinement import MeanMap
from mood_infer.volume import Array3D
from mood_infer.weights import Manifest
from mood_train.origin import code_version

ENSEMBLE = "ensemble"
_Key = tuple[int, bytes]  # a network and the digest of a window


class MemberTable(ScoreTable):
    """The numbers of each member, by its file, of the members of one kind of edges, and of the ensemble.

    Attributes:
        weights: digest of the weights.
        gains: of the ensemble over each of the other rows, in pixel AP.
    """

    weights: str
    gains: dict[str, Interval]

    def markdown(self) -> str:
        """As of any such table; then how much the ensemble gains over each row, with the 95 % interval."""
        gains = {name: [gain.mean, gain.low, gain.high] for name, gain in self.gains.items()}
        return "\n".join([super().markdown(), markdown_table(["the ensemble's gain", "from", "to"], gains)])


def evaluate_members(
    scans: Sequence[Path],
    recipe: Recipe,
    weights: Path | None = None,
    device: Device = "auto",
    report: Report | None = None,
    keep: Path | None = None,
    speed: Speed = "exact",
) -> MemberTable:
    """Score all cases of a recipe with each member alone and with all of them.

    Args:
        scans: normal scans, none of which any member was trained on.
        recipe: the cases to make.
        weights: folder of the weights; see :func:`mood_infer.weights.find_weights`.
        device: where the networks run.
        report: see :func:`judge_cases`.
        keep: folder for what each case gave, from which a run that was cut off goes on.
        speed: ``fast`` judges the networks that run then in place of the members.

    Raises:
        UserError: a scan or the weights cannot be used, or what is kept in the folder is of others.
    """
    predictor = Remembering.load(recipe.region, weights, device, speed=speed)
    files = [member.file for member in predictor.manifest.members]
    rows = {file: [file] for file in files} | _means(predictor.manifest)
    verdicts = KeptVerdicts(keep, _plan(scans, recipe, predictor)) if keep else None
    index, judged = judge_cases(
        scans, recipe, lambda made: score_rows(made, predictor, rows), report, verdicts=verdicts
    )
    summaries = {name: summarise(part, index) for name, part in judged.items()}
    others = {name: part for name, part in judged.items() if name != ENSEMBLE}
    gains = pixel_gains(judged[ENSEMBLE], others, index)
    return MemberTable(index=index, rows=summaries, weights=predictor.digest, gains=gains)


def _plan(scans: Sequence[Path], recipe: Recipe, predictor: Predictor) -> dict[str, object]:
    """All that the verdicts depend on, the code as far as its version tells."""
    return {
        "version": code_version(),
        "weights": predictor.digest,
        "precision": predictor.precision,
        "scans": [(scan.name, _sha256(scan)) for scan in scans],
        "recipe": asdict(recipe),
    }


def _sha256(scan: Path) -> str:
    try:
        return hashlib.sha256(scan.read_bytes()).hexdigest()
    except OSError as error:
        raise ScanError(scan, f"cannot be read ({error.strerror})", "mend or remove it") from error


def _means(manifest: Manifest) -> dict[str, list[str]]:
    """The files that each row of means is taken over: those of one kind of edges, where that is a choice."""
    kinds: dict[str, list[str]] = {}
    for member in manifest.members:
        kinds.setdefault(f"{member.edges} members", []).append(member.file)
    some = {name: files for name, files in kinds.items() if 1 < len(files) < len(manifest.members)}
    return some | {ENSEMBLE: [member.file for member in manifest.members]}


def score_rows(made: Made, predictor: "Remembering", rows: Mapping[str, Sequence[str]]) -> dict[str, Scored]:
    """What each row's members together say of a case; every network runs once.

    Args:
        made: the case.
        predictor: the ensemble.
        rows: name of each row to the files of its members.
    """
    grid = predictor.score_case(made)
    smoothing, context = predictor.manifest.smoothing, predictor.manifest.context
    scored = {}
    for name, files in rows.items():
        working, score = predictor.mean(files).refined(smoothing, context)
        scored[name] = Scored(working, grid, score)
    return scored


class Remembering(Predictor):
    """A predictor that knows the windows of the scan at hand: the cases of one scan share most of theirs.

    Attributes:
        last: the mean map of the last case, before it was refined.
    """

    last: MeanMap
    _source: str | None = None

    def score_case(self, made: Made) -> Grid:
        """Score a case, for :meth:`mean`; quick where it comes right after another one of the same scan.

        Returns:
            The working grid.
        """
        if made.case.source != self._source:
            self._source = made.case.source
            self._shared: dict[_Key, Tensor] = {}
            self._recent: dict[_Key, Tensor] = {}
        # what only one case has seen is forgotten with the next but one: anomalies do not come again
        self._before, self._recent = self._recent, {}
        # of each member by its file: weight, map of the body, score of what is around it
        self._maps: dict[str, tuple[float, Array3D, float]] = {}
        return self.predict(made.image).grid

    def mean(self, files: Sequence[str]) -> MeanMap:
        """The weighted mean of what some members said of the last case, before it is refined."""
        maps = [self._maps[file] for file in files]
        whole = sum(weight for weight, _, _ in maps)
        inside, outside = np.zeros_like(self.last.inside), 0.0
        for weight, scores, empty in maps:
            inside += np.float32(weight / whole) * scores
            outside += weight / whole * empty
        return replace(self.last, inside=inside, outside=outside)

    def _refine(self, mean: MeanMap) -> tuple[Array3D, float]:
        self.last = mean
        return mean.refined(0, 0)  # whoever needs the map refines the mean that it needs

    def _member(self, number: int, *arguments: Any) -> tuple[Tensor, float, float]:
        scores, empty, seconds = super()._member(number, *arguments)
        self._maps[self.manifest.members[number].file] = self._weights[number], scores.numpy(), empty
        return scores, empty, seconds

    def _batch(self) -> int:
        # few windows of a case are new, and a lone one costs as much as two
        return max(super()._batch(), CPU_PAIR_VOXELS // self.manifest.window**3)

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        digests = [hashlib.blake2b(window.cpu().numpy().tobytes()).digest() for window in windows]
        keys = [(id(network), digest) for digest in digests]
        self._shared |= {key: self._before.pop(key) for key in keys if key in self._before}
        known = ChainMap(self._recent, self._shared)
        new = [number for number, key in enumerate(keys) if key not in known]
        if new:
            fresh = super()._score(network, windows[new])
            # copies, so that one is not kept for its neighbours in the batch; and not in a GPU's memory
            known |= {keys[number]: scores.cpu().clone() for number, scores in zip(new, fresh, strict=True)}
        return torch.stack([known[key] for key in keys]).to(windows.device)
