#!/bin/sh
# Times the way of a scan from file to map, against MONAI and the pure forward passes: see bench.sh --help.
set -eu
cd -- "$(dirname -- "$0")/.."
scripts/setup.sh
exec .venv/bin/python scripts/bench "$@"
