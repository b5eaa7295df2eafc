#!/bin/sh
# Times a scan's way from file to map, against MONAI and the pure forward passes, and the metric: see --help.
set -eu
cd -- "$(dirname -- "$0")/.."
scripts/setup.sh eval
exec .venv/bin/python scripts/bench "$@"
