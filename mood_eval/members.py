"""Every member of an ensemble, and their mean, on the same cases: what each is worth.

Cases are made, scored and forgotten one at a time, so nothing lies on disk. The mean of the members' maps is
the ensemble's map (paper, section 3.1.1), so each network runs once a case.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mood_eval.average_precision import ScoreCounts
from mood_eval.objects import find_objects
from mood_eval.summary import Judged, Summary, summarise
from mood_eval.validation_set import Case, Index, Made, Recipe, make_cases, plan_cases
from mood_infer.grid import resample
from mood_infer.predictor import Device, Predictor
from mood_infer.preparation import scan_grid
from mood_infer.scores import sample_score
from mood_infer.weights import find_weights, read_manifest

ENSEMBLE = "ensemble"
Report = Callable[[Case, int, int], None]


class MemberTable(BaseModel):
    """The numbers of each member and of the ensemble.

    Attributes:
        index: the cases.
        weights: digest of the weights.
        rows: file of the member, or ``ensemble``, to its numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    index: Index
    weights: str
    rows: dict[str, Summary]

    def markdown(self) -> str:
        """One row a member: pixel AP over all cases, by type, and sample AP."""
        family = self.rows[ENSEMBLE]
        kinds = list(family.per_type)
        head = ["", "pixel AP", *(kind.replace("_", " ") for kind in kinds), "sample AP"]
        lines = [_row(head), _row(["---"] * len(head))]
        for name, summary in self.rows.items():
            values = [summary.pixel_ap, *(summary.per_type.get(kind) for kind in kinds), summary.sample_ap]
            lines.append(_row([name, *("-" if value is None else f"{value:.3f}" for value in values)]))
        return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


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
        report: called before each case with the case, its position from 1, and the number of cases.

    Raises:
        UserError: a scan or the weights cannot be used.
    """
    folder = find_weights(recipe.region, weights)
    manifest = read_manifest(folder)
    files = [member.file for member in manifest.members]
    members = {file: _Remembering.load(recipe.region, weights, device, [file]) for file in files}
    plan = plan_cases(list(scans), recipe)
    judged: dict[str, list[Judged]] = {name: [] for name in [*members, ENSEMBLE]}
    cases: list[Case] = []
    for source in scans:
        own = [case for path, case in plan if path == source]
        for predictor in members.values():
            predictor.forget()
        for made in make_cases(source, own, recipe):
            cases.append(made.case)
            if report is not None:
                report(made.case, len(cases), len(plan))
            for name, one in _judge(made, members):
                judged[name].append(one)
    index = Index(
        region=recipe.region,
        seed=recipe.seed,
        spacing=recipe.spacing,
        intensity=recipe.intensity,
        healthy_repeats=recipe.repeat_healthy,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
    )
    rows = {name: summarise(part, index) for name, part in judged.items()}
    return MemberTable(index=index, weights=manifest.digest(), rows=rows)


class _Remembering(Predictor):
    """One member that knows the windows it has seen: the cases of one scan share most of theirs."""

    def forget(self) -> None:
        """Start anew, with another scan."""
        self._known: dict[bytes, Tensor] = {}

    def _score(self, network: nn.Module, windows: Tensor) -> Tensor:
        keys = [hashlib.blake2b(window.cpu().numpy().tobytes()).digest() for window in windows]
        new = [number for number, key in enumerate(keys) if key not in self._known]
        if new:
            fresh = super()._score(network, windows[new])
            self._known |= {keys[number]: scores for number, scores in zip(new, fresh, strict=True)}
        return torch.stack([self._known[key] for key in keys])


def _judge(made: Made, members: Mapping[str, Predictor]) -> list[tuple[str, Judged]]:
    maps = {name: predictor.predict(made.image) for name, predictor in members.items()}
    working = {name: result.working for name, result in maps.items()}
    working[ENSEMBLE] = np.mean(list(working.values()), axis=0, dtype=np.float32)
    grid, own = next(iter(maps.values())).grid, scan_grid(made.image)
    voxel_ml = float(np.prod(own.spacing)) / 1000
    results = []
    for name, map_ in working.items():
        scores = np.clip(resample(map_, grid, own), 0, 1)
        counts = ScoreCounts.of(scores, made.label, f"{made.case.name}, {name}")
        objects = find_objects(scores, made.label, voxel_ml) if name == ENSEMBLE else None
        one = Judged(made.case.name, bool(made.label.any()), counts, sample_score(map_), objects)
        results.append((name, one))
    return results
