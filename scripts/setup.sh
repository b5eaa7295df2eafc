#!/bin/sh
# Makes or reuses .venv with the given extras: setup.sh [EXTRAS]. Does nothing where it is up to date.
set -eu
cd -- "$(dirname -- "$0")/.."
extras=${1:-}
sum=$(cat pyproject.toml docker/constraints.txt | cksum | tr -d ' ')
stamp=".venv/installed-${extras:-none}-$sum"
[ -e "$stamp" ] && exit 0
python=
for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "setup.sh: no python 3.11 to 3.13 found; install one." >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "setup.sh: installing into .venv (some minutes, once)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}" \
    --constraint docker/constraints.txt
find .venv -maxdepth 1 -name 'installed-*' ! -name "*-$sum" -delete # what they say was true of other packages
touch "$stamp"
