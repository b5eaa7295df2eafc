#!/bin/sh
# Installs what the tests need and runs all of them: style, types, fast and slow tests, the container.
# Set MOOD_SKIP_CONTAINER=1 where no container can be built.
set -eu
cd -- "$(dirname -- "$0")/.."
scripts/setup.sh dev
echo "== style"
.venv/bin/ruff check .
echo "== types"
.venv/bin/mypy
echo "== tests"
.venv/bin/python -m pytest -m "not container"
echo "== container"
scripts/test-image.sh
