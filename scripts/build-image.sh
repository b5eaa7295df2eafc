#!/bin/bash
# Build the container image: one `docker build` where a registry can be reached.
#
#   --offline         no registry: the base image is made from Debian packages and the wheels come from this
#                     machine's pip, all over the loopback; an engine is installed (apt) and started if none
#                     answers, which needs root
#   --target T        infer (default) or train; given twice, both are built
#   --tag NAME        default mood-ood; the training image is NAME-train if both are built
#   --then COMMAND    run it with the images named in MOOD_IMAGE and MOOD_TRAIN_IMAGE; its exit code is ours.
#                     An engine that this script started is ended after it, and its images are gone.
set -euo pipefail
cd "$(dirname "$0")/.."

offline="" targets=() tag="" command=""
usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --offline) offline=1 ;;
        --target) case ${2:-} in infer | train) targets+=("$2") ;; *) usage ;; esac; shift ;;
        --tag) tag=${2:?--tag needs a name}; shift ;;
        --then) command=${2:?--then needs a command}; shift ;;
        *) usage ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || targets=(infer)
tag=${tag:-mood-ood}
export MOOD_IMAGE="" MOOD_TRAIN_IMAGE=""

work="" engine="" server=""
clean_up() {
    trap - EXIT INT TERM
    for process in $server $engine; do
        kill "$process" 2> /dev/null || true
        wait "$process" 2> /dev/null || true
    done
    [ -z "$work" ] || {
        umount "$work/exec/netns/default" 2> /dev/null || true
        rm -rf "$work"
    }
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { echo "build-image: $*" >&2; }
fail() { say "$*"; exit 1; }

install_packages() {
    [ "$(id -u)" -eq 0 ] || fail "$* missing, and only root can install them; run this as root."
    say "installing $*"
    # so that a fresh machine, whose package lists are empty, has them
    apt-get install -qq -y --no-install-recommends "$@" > "$work/apt.log" 2>&1 \
        || { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } > "$work/apt.log" 2>&1 \
        || { cat "$work/apt.log" >&2; fail "apt could not install $*."; }
}

start_engine() {
    [ "$(id -u)" -eq 0 ] || fail "no engine answers, and only root can start one; start docker or run this as root."
    command -v dockerd > /dev/null || install_packages docker.io
    say "starting an engine in $work"
    # without a bridge nothing of the host's network is touched; containers get no network but the host's
    dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" \
        -H unix:///var/run/docker.sock --storage-driver overlay2 \
        --iptables=false --ip6tables=false --ip-forward=false --bridge=none > "$work/engine.log" 2>&1 &
    engine=$!
    for _ in $(seq 120); do
        docker info > /dev/null 2>&1 && return
        kill -0 "$engine" 2> /dev/null || break
        sleep 0.5
    done
    tail -20 "$work/engine.log" >&2
    fail "the engine did not start."
}

# Debian's own python, of the same version as in the public base image.
make_base() {
    base=mood-ood-base:bookworm
    docker image inspect "$base" > /dev/null 2>&1 && return
    command -v mmdebstrap > /dev/null || install_packages mmdebstrap
    say "making the base image"
    local sources=/etc/apt/sources.list.d/debian.sources
    [ -f "$sources" ] || sources=/etc/apt/sources.list
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates \
        --customize-hook='ln -s ../../bin/python3 "$1/usr/local/bin/python"' \
        --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/share/doc/* "$1"/usr/share/man/*' \
        bookworm "$work/base.tar" "$sources" > "$work/base.log" 2>&1 \
        || { tail -20 "$work/base.log" >&2; fail "no base image could be made."; }
    docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -c 'ENV LANG=C.UTF-8' \
        -c 'CMD ["python3"]' "$work/base.tar" "$base" > /dev/null
    rm "$work/base.tar"
}

serve_wheels() {
    say "collecting wheels"
    local extras=()
    [[ " ${targets[*]} " != *" train "* ]] || extras=(train eval)
    python3 docker/requirements.py pyproject.toml ${extras[@]+"${extras[@]}"} > "$work/requirements.txt"
    python3 -m pip download --quiet --only-binary=:all: --python-version 3.11 -d "$work/wheels" \
        -r "$work/requirements.txt" -c docker/constraints.txt > "$work/pip.log" 2>&1 \
        || { tail -20 "$work/pip.log" >&2; fail "pip could not collect the wheels."; }
    python3 -u -m http.server --bind 127.0.0.1 --directory "$work/wheels" 0 > "$work/server.log" 2>&1 &
    server=$!
    for _ in $(seq 50); do
        port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$work/server.log")
        [ -z "$port" ] || return 0
        sleep 0.1
    done
    fail "the wheels could not be served."
}

arguments=(
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
    --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || true)"
    --build-arg "SOURCE=$(git config --get remote.origin.url 2> /dev/null | sed 's#//[^/@]*@#//#' || true)"
)
if [ -n "$offline" ]; then
    work=$(mktemp -d)
    command -v docker > /dev/null || install_packages docker.io
    docker info > /dev/null 2>&1 || start_engine
    make_base
    serve_wheels
    arguments+=(
        --network host --build-arg "BASE_IMAGE=$base"
        --build-arg PIP_NO_INDEX=1 --build-arg "PIP_FIND_LINKS=http://127.0.0.1:$port/"
    )
    export DOCKER_BUILDKIT=0 # the other builder may not be installed, and it wants to ask a registry
fi

build() { # target, name
    say "building $2"
    if [ -n "$offline" ]; then
        docker build --quiet --target "$1" --tag "$2" "${arguments[@]}" . > /dev/null
    else
        docker build --target "$1" --tag "$2" "${arguments[@]}" .
    fi
    say "$2: $(docker image inspect --format '{{.Size}}' "$2" | awk '{printf "%.0f MB", $1 / 1e6}')"
}
for target in "${targets[@]}"; do
    if [ "$target" = infer ]; then
        MOOD_IMAGE=$tag
        build infer "$MOOD_IMAGE"
    else
        MOOD_TRAIN_IMAGE=$tag$([ ${#targets[@]} -eq 1 ] || echo -train)
        build train "$MOOD_TRAIN_IMAGE"
    fi
done
if [ -n "$server" ]; then
    kill "$server" && wait "$server" 2> /dev/null || true
    server=""
    rm -rf "$work/wheels"
fi

if [ -n "$command" ]; then
    bash -c "$command"
elif [ -n "$engine" ]; then
    say "the engine is ended now and the image is lost with it; use --then to run something before."
fi
