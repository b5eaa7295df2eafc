#!/bin/bash
# Judge an image as the challenge's own tool does: every run script on toy cases, each by the same docker command
# line, then the average precision of each region and mode. What a prediction lacks is a warning here, where the
# official scorer silently counts it as zeros.
#
#   evaluate-image.sh [--image NAME] [--toy DIR] [--out DIR] [--gpu]
#
#   --image   default mood-ood
#   --toy     made by make-toy.sh or in that layout; by default cases are made from samples/
#   --out     for predictions and scores: OUT/REGION/MODE/, emptied of maps and scores first, and OUT/REGION.json;
#             default image-evaluation/
#   --gpu     give the container the GPUs
# Exit codes: 0 all ran, 1 a container failed, 2 usage.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}

image=mood-ood toy="" out=image-evaluation gpu=()
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --image) image=${2:?} ; shift ;;
        --toy) toy=${2:?} ; shift ;;
        --out) out=${2:?} ; shift ;;
        --gpu) gpu=(--gpus all) ;;
        *) usage ;;
    esac
    shift
done
if [ -z "$toy" ]; then
    toy=$out/toy
    [ -d "$toy" ] || "$root/scripts/make-toy.sh" "$toy"
fi
toy=$(realpath -- "$toy") out=$(realpath -m -- "$out")
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

failed=0
for region in brain abdom; do
    for mode in sample pixel; do
        mkdir -p "$out/$region/$mode"
        # those of another image would be skipped, and judged
        find "$out/$region/$mode" -maxdepth 1 -type f \( -name '*.nii*' -o -name '*.txt' \) -delete
        docker run --rm ${gpu[@]+"${gpu[@]}"} -v "$toy/$region/toy:/mnt/data" -v "$out/$region/$mode:/mnt/pred" \
            --read-only "$image" sh "/workspace/run_${mode}_$region.sh" /mnt/data /mnt/pred || {
            echo "evaluate-image: run_${mode}_$region.sh ended with $?; the official tool stops there." >&2
            failed=1
        }
    done
done
for region in brain abdom; do
    echo "$region"
    "$PYTHON" -c 'from mood_eval.cli import main; main()' score "$out/$region" "$toy/$region/toy_label" \
        --no-objects --json "$out/$region.json"
done
exit $failed
