"""Seconds and peak memory of the pixel average precision, in a process of its own; prints JSON.

``average_precision.py --voxels N [--scikit-learn]``: counting codes, or scikit-learn on the same scores. A
peak is never taken back, so each needs its own process.
"""

import argparse
import json
import resource
import time

import numpy as np


def main() -> None:
    """Score a map, 1 % of it anomalous and half of it exactly 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, required=True)
    parser.add_argument("--scikit-learn", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    scores = rng.random(options.voxels, dtype=np.float32)
    scores *= scores
    scores[::2] = 0
    labels = np.zeros(options.voxels, bool)
    labels[: options.voxels // 100] = True
    scores[: options.voxels // 100] = np.sqrt(scores[: options.voxels // 100])
    if options.scikit_learn:
        from sklearn.metrics import average_precision_score

        def run() -> float:
            return float(average_precision_score(labels, scores.astype(np.float16)))
    else:
        from mood_eval.average_precision import ScoreCounts, average_precision

        def run() -> float:
            return average_precision(ScoreCounts.of(scores, labels))

    before = _peak_mb()
    begin = time.process_time()
    value = run()
    seconds = time.process_time() - begin  # of one core
    print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb() - before, "value": value}))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
