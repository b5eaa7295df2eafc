#!/bin/sh
# Scores the sample scans with the shipped weights: maps, scores and one picture a scan in demo-output/.
set -eu
cd -- "$(dirname -- "$0")/.."
scripts/setup.sh demo
out=demo-output
for region in brain abdom; do
    .venv/bin/mood-infer predict "samples/$region" "$out/$region" --region "$region" --mode both \
        --report "$out/$region/pictures"
done
printf '\n%-8s %-32s %12s   %s\n' region scan 'sample score' picture
for score in "$out"/*/*.txt; do
    scan=$(basename "$score" .txt)
    folder=$(dirname "$score")
    printf '%-8s %-32s %12.4f   %s\n' "$(basename "$folder")" "$scan" "$(head -n 1 "$score")" "$folder/pictures/$scan.png"
done
echo
echo "A planted anomaly is in each scan named -planted; its label is in samples/labels/. Maps: $out/*/*.nii.gz"
