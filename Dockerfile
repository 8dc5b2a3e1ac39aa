# tagfs in a container.
#
#   podman build --tag tagfs .
#   podman run --user 0 --device /dev/fuse --cap-add SYS_ADMIN --volume /srv/tags:/store --volume /run/tagfs:/lists:shared tagfs \
#       mount --make-mountpoint --allow-other --drop-privileges /store /lists/tags
#
# BASE: Debian 12, or an image made of it.  Nothing here needs a shell once it is built.
ARG BASE=debian:12-slim

FROM ${BASE} AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends \
        gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv
WORKDIR /src
COPY requirements-build.txt requirements-image.txt ./
# As in scripts/setup: pyfuse3 publishes no wheel, and what compiles it is pinned too.
RUN python3 -m venv /build \
    && python3 -m venv --without-pip /opt/tagfs \
    && /build/bin/pip install --quiet --require-hashes -r requirements-build.txt \
    && /build/bin/pip wheel --quiet --require-hashes --no-build-isolation --no-deps --wheel-dir /wheels -r requirements-image.txt \
    && /build/bin/pip --python /opt/tagfs install --quiet --no-index --no-deps /wheels/*.whl
COPY pyproject.toml README.md LICENSE ./
COPY tagfs tagfs
RUN /build/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /wheel . \
    && /build/bin/pip --python /opt/tagfs install --quiet --no-index --no-deps /wheel/*.whl \
    && /opt/tagfs/bin/python -m compileall -q /opt/tagfs

FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends libfuse3-3 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /var/log/*
COPY --from=build /opt/tagfs /opt/tagfs
ENV PATH=/opt/tagfs/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
# Who only reads, sweeps or serves a mount that somebody else has made needs no rights; who mounts runs it as root.
USER 65534:65534
ENTRYPOINT ["tagfs"]
CMD ["help"]
