#!/bin/sh
# Scores each network alone and the whole ensemble on the scans that were set aside.
#   scripts/evaluate.sh REGION DATA [OUT] [more options of mood-eval members]
# DATA holds the scans in brain/ or abdom/, and split.json. One healthy case a scan and one of each type
# (--each N: N of each type) are made in memory, from seed 0; the tables go to OUT/<region>.md and, with all numbers, <region>.json.
set -eu
region=${1:?brain or abdom}
data=${2:?folder with brain/, abdom/ and split.json}
shift 2
out=evaluation
case ${1:-} in
    "" | -*) ;;
    *) out=$1 && shift ;;
esac
mkdir -p "$out"
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
"$root/scripts/setup.sh" eval
exec "$root/.venv/bin/mood-eval" members "$data/$region" --region "$region" \
    --split "$data/split.json" --part set_aside --seed 0 \
    --markdown "$out/$region.md" --json "$out/$region.json" "$@"
