"""How high normal scans score: stored with the weights, so that a new scan's score can be read against it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mood_infer.challenge import Region
from mood_infer.errors import WeightsError
from mood_infer.locking import alone
from mood_infer.predictor import AnomalyMap, Device, Predictor
from mood_infer.volume import read_volume
from mood_infer.weights import find_weights, read_manifest, write_manifest


def store_normal_scores(
    scans: Sequence[Path],
    region: Region,
    weights: Path | None = None,
    device: Device = "auto",
    report: Callable[[Path, AnomalyMap], None] = lambda _scan, _found: None,
) -> tuple[float, ...]:
    """Score normal scans with the whole ensemble and write their sample scores into its manifest.

    Args:
        scans: normal scans, none of which any member was trained on.
        region: what they show.
        weights: folder of the weights; see :func:`mood_infer.weights.find_weights`.
        device: where the networks run.
        report: called after each scan with what was found in it.

    Returns:
        The sample scores in [0,1], rising.

    Raises:
        UserError: a scan or the weights cannot be used; nothing is written.
    """
    folder = find_weights(region, weights)
    predictor = Predictor.load(region, folder, device)
    scores = []
    for scan in scans:
        found = predictor.predict(read_volume(scan))
        scores.append(found.sample_score)
        report(scan, found)
    rising = tuple(sorted(scores))
    with alone(folder):
        manifest = read_manifest(folder)
        if manifest.digest() != predictor.manifest.digest():
            raise WeightsError(f"{folder}: the weights changed meanwhile; run the command again.")
        write_manifest(folder, manifest.model_copy(update={"normal_scores": rising}))
    return rising
