# The submission image (`infer`) and, from it, the training image (`train`):
#     docker build [--target infer|train] .
#
# The base is pinned by its tag; give BASE_IMAGE=...@sha256:... to build on the very same files each time.
# Any image with Python 3.11 and pip will do.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Not part of any image: what the others copy, readable by every user whatever the checkout's umask was.
FROM ${BASE_IMAGE} AS sources
COPY pyproject.toml docker/requirements.py docker/constraints.txt /build/
RUN python3 /build/requirements.py /build/pyproject.toml > /build/infer.txt \
    && python3 /build/requirements.py /build/pyproject.toml train eval > /build/train.txt \
    && chmod a+r /build/*.txt
COPY docker/command.py docker/usage.txt docker/usage-train.txt /docker/
COPY mood_infer /infer/mood_infer
COPY run_sample_brain.sh run_sample_abdom.sh run_pixel_brain.sh run_pixel_abdom.sh /infer/
COPY weights /weights
COPY mood_train /train/mood_train
COPY mood_eval /train/mood_eval
# Byte code is checked against its source by hash, because a copy may change times.
RUN chmod -R u=rwX,go=rX /docker /infer /weights /train \
    && chmod a+x /docker/command.py /infer/run_*.sh \
    && python3 -m compileall -q --invalidation-mode checked-hash -s /infer -p /workspace /infer \
    && python3 -m compileall -q --invalidation-mode checked-hash -s /train -p /workspace /train

FROM ${BASE_IMAGE} AS base
# Where pip finds the wheels, if not in its default index; unset in a public build.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
COPY --from=sources /build/infer.txt /build/constraints.txt /build/
RUN python3 -m pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: --compile \
        -r /build/infer.txt -c /build/constraints.txt

FROM base AS infer
# One BLAS thread: the networks run in torch's own pool, and a large machine's would exceed a --pids-limit.
# /dev/shm is the one place that can be written to under --read-only, by any user. Libraries that ask for the
# user's name fail for a UID without one, so there is a name.
ENV PYTHONPATH=/workspace \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 \
    HOME=/dev/shm \
    USER=mood \
    TMPDIR=/dev/shm \
    MPLCONFIGDIR=/dev/shm/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /workspace
COPY --from=sources /docker/command.py /usr/local/bin/mood-infer
COPY --from=sources /docker/usage.txt /usage.txt
COPY --from=sources /weights ./weights
COPY --from=sources /infer ./
CMD ["cat", "/usage.txt"]
ARG SOURCE
ARG REVISION
ARG VERSION
LABEL org.opencontainers.image.title="mood-ood" \
      org.opencontainers.image.description="Finds what does not belong in a 3D scan, having learnt only from normal ones." \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM infer AS train
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
COPY --from=sources /build/train.txt /build/
RUN TMPDIR=/tmp python3 -m pip install --no-cache-dir --root-user-action=ignore --only-binary=:all: --compile \
        -r /build/train.txt -c /build/constraints.txt
COPY --from=sources /docker/command.py /usr/local/bin/mood-train
COPY --from=sources /docker/command.py /usr/local/bin/mood-eval
COPY --from=sources /docker/usage-train.txt /usage.txt
COPY --from=sources /train ./

# The last stage is the default target; it adds nothing.
FROM infer
