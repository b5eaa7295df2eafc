#!/bin/bash
# Build both images without a registry and run every test of them: docs/container.md says which. Needs an engine that
# answers, or root to start one; without either nothing can be tested, and that is a failure unless
# MOOD_SKIP_CONTAINER=1. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${MOOD_SKIP_CONTAINER:-}" = 1 ]; then
    echo "test-image: THE CONTAINER WAS NOT TESTED: MOOD_SKIP_CONTAINER=1." >&2
    exit 0
fi
if [ "$(id -u)" -ne 0 ] && ! docker info > /dev/null 2>&1; then
    echo "test-image: THE CONTAINER WAS NOT TESTED: no engine answers, and only root can start one." >&2
    exit 1
fi
if [ -z "${PYTHON:-}" ]; then
    scripts/setup.sh dev
    PYTHON=.venv/bin/python
fi
exec scripts/build-image.sh --offline --target infer --target train --tag mood-ood-test \
    --then "$PYTHON -m pytest -m container tests/container --durations=10$([ $# -eq 0 ] || printf ' %q' "$@")"
