# Two images from one file, for Ray nodes under KubeRay and for a single machine:
#   docker build --target cuda --build-arg BASE_DIGEST=sha256:... -t aae-dist:0.1.0-cuda .
#   docker build --target cpu  --build-arg BASE_DIGEST=sha256:... -t aae-dist:0.1.0-cpu .
# The digest that a tag has today (nothing is built without one, so that no build changes by itself):
#   docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}'
ARG BASE=python:3.11-slim-bookworm
ARG BASE_DIGEST

FROM ${BASE}@${BASE_DIGEST} AS base
ENV PATH=/opt/aae-dist/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# KubeRay starts nodes with `bash -c`, and with `bash -lc` where an operator asks for login shells,
# whose profile would take `ray` off the path again.
RUN echo "export PATH=/opt/aae-dist/bin:\$PATH" > /etc/profile.d/aae-dist.sh

FROM base AS build
# For another index, say PyTorch's own of CPU-only wheels: a lock of your own, and its address.
ARG LOCK=requirements/main.lock
ARG INDEX=""
WORKDIR /src
COPY requirements/build.lock requirements/build.lock
RUN python3 -m venv /opt/tools && \
    /opt/tools/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/build.lock
COPY ${LOCK} requirements/image.lock
RUN python3 -m venv /opt/aae-dist && \
    /opt/tools/bin/uv pip install --python /opt/aae-dist/bin/python --no-cache --compile-bytecode \
      ${INDEX:+--extra-index-url ${INDEX}} --require-hashes -r requirements/image.lock
COPY pyproject.toml README.md LICENSE ./
COPY aae_dist aae_dist
RUN /opt/tools/bin/python -m hatchling build -t wheel && \
    /opt/tools/bin/uv pip install --python /opt/aae-dist/bin/python --no-cache --compile-bytecode \
      --no-deps dist/*.whl && \
    aae-dist --version && ray --version

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aae-dist" \
      org.opencontainers.image.description="Distributed training of adversarial autoencoders" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A name for the number: torch asks who it is.
RUN groupadd --gid 10001 aae && \
    useradd --uid 10001 --gid 10001 --create-home --home-dir /home/aae --shell /usr/sbin/nologin aae
COPY cluster/image/healthcheck.py /usr/local/lib/aae-dist/healthcheck.py
# All that is ever written lies below these two; the rest of the file system may be read-only.
ENV HOME=/home/aae \
    TRITON_CACHE_DIR=/home/aae/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/aae/inductor \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache
VOLUME ["/tmp", "/home/aae"]
WORKDIR /home/aae
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
  CMD ["python3", "/usr/local/lib/aae-dist/healthcheck.py"]
ENTRYPOINT ["aae-dist"]
CMD ["--help"]

# Without a compiler, and without Triton, which only compiled kernels need (1 GB).
FROM build AS build-cpu
RUN /opt/tools/bin/uv pip uninstall --python /opt/aae-dist/bin/python triton && \
    python3 -c "import aae_dist.launch, torch, torchvision"

FROM runtime AS cpu
COPY --from=build-cpu /opt/aae-dist /opt/aae-dist
USER 10001:10001

# `train.compile` compiles on the node that trains: Triton and Inductor call g++.
FROM runtime AS cuda
RUN apt-get update && \
    apt-get install -y --no-install-recommends g++ && \
    rm -rf /var/lib/apt/lists/*
# The driver comes from the node; which of its GPUs a container sees is the device plugin's to say.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/aae-dist /opt/aae-dist
USER 10001:10001
