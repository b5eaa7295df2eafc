#!/bin/bash
# Make toy cases in the challenge's layout: OUT/{brain,abdom}/{toy,toy_label/{pixel,sample}}, four a region, two
# normal and two with a planted anomaly, float32 in [0,1].
#
#   make-toy.sh [--brain DIR] [--abdom DIR] [--crop MM] [--seed N] OUT
#
#   --brain, --abdom   folders of normal scans; samples/ by default
#   --crop             take two cubes of this side from each scan in its place: quick to score
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}

brain=$root/samples/brain abdom=$root/samples/abdom crop=0 seed=0 out=""
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --brain) brain=${2:?} ; shift ;;
        --abdom) abdom=${2:?} ; shift ;;
        --crop) crop=${2:?} ; shift ;;
        --seed) seed=${2:?} ; shift ;;
        -*) usage ;;
        *) [ -z "$out" ] && out=$1 || usage ;;
    esac
    shift
done
[ -n "$out" ] || usage
normal=$(mktemp -d)
trap 'rm -rf "$normal"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Copies or cuts the normal scans of a folder; the samples that hold an anomaly already are left out.
"$PYTHON" - "$crop" "$brain" "$normal/brain" "$abdom" "$normal/abdom" <<'END'
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from mood_infer.challenge import find_scans

side = float(sys.argv[1])
for source, target in zip(map(Path, sys.argv[2::2]), map(Path, sys.argv[3::2])):
    target.mkdir()
    for path in find_scans(source):
        if "-planted" in path.name:
            continue
        if not side:
            (target / path.name).symlink_to(path.resolve())
            continue
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        body = np.argwhere(array > (array.min() / 2))  # HU: above -512; a stripped head: above 0
        middle = (body.min(axis=0) + body.max(axis=0) + 1) / 2
        size = np.minimum(np.round(side / np.asarray(image.header.get_zooms()[:3])), array.shape).astype(int)
        for number, shift in enumerate((-0.25, 0.25)):
            start = np.round(middle - size / 2 + shift * size * [0, 1, 0]).astype(int)
            start = np.clip(start, 0, np.subtract(array.shape, size))
            box = tuple(slice(a, a + n) for a, n in zip(start, size))
            nib.save(image.slicer[box], target / f"{number}-{path.name}")
END

for region in brain abdom; do
    kinds=() # all types but two get no case
    for kind in noise shift reflection uniform_smooth noise_smooth; do kinds+=(--counts "$kind=0"); done
    "$PYTHON" -c 'from mood_eval.cli import main; main()' make-set "$normal/$region" "$out" --region "$region" \
        --seed "$seed" --healthy 2 --each 1 "${kinds[@]}" --repeat-healthy
done
