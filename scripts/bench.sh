#!/bin/sh
# Times a scan's way from file to map, against MONAI and the pure forward passes, and the metric: see --help.
set -eu
root=$(cd -- "$(dirname -- "$0")/.." && pwd)
"$root/scripts/setup.sh" eval
exec "$root/.venv/bin/python" "$root/scripts/bench" "$@"
