#!/bin/sh
# Usage: run_pixel_abdom.sh INPUT OUTPUT; both are folders. Further options go to mood-infer predict.
# A scan that would take longer than 500 s is scored by fewer networks; --time-limit SECONDS sets another limit.
if [ $# -lt 2 ]; then
    echo "usage: $0 INPUT OUTPUT [OPTION ...]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
# Only --report needs matplotlib, which wants a folder to write to; read-only containers have just /dev/shm.
if [ -z "${MPLCONFIGDIR:-}" ] && [ ! -w "${HOME:-/nonexistent}" ]; then
    export MPLCONFIGDIR=/dev/shm/matplotlib
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m mood_infer predict --region abdom --mode pixel --time-limit 500 "$@"
