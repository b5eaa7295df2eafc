#!/bin/sh
# Times the way of one 256^3 brain from file to map, with the shipped weights: bench.sh [--runs N].
set -eu
cd -- "$(dirname -- "$0")/.."
scripts/setup.sh
exec .venv/bin/python scripts/bench.py "$@"
