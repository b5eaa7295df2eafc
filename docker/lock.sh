#!/bin/sh
# Usage: docker/lock.sh > docker/constraints.txt
# Resolves pyproject.toml with its extras for the image's Python and prints every package pip would take, the
# indirect ones too. Run it after a change of dependencies. What the CUDA build of torch brings along is not in
# the list: torch pins that itself.
set -eu
cd "$(dirname "$0")/.."
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
python3 docker/requirements.py pyproject.toml train eval > "$wanted"
echo "# Made by docker/lock.sh; not to be edited."
python3 -m pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version 3.11 \
    --target /nonexistent --report - -r "$wanted" | python3 -c '
import json, re, sys
for found in json.load(sys.stdin)["install"]:
    name, version = found["metadata"]["name"], found["metadata"]["version"].partition("+")[0]
    if not re.match("nvidia|triton|cuda", name, re.I):
        print(f"{name}=={version}")' | sort -f
