# One image for every way of running Loop: `docker run loop` serves, `docker run loop loop migrate` migrates.
# Numeric user, nothing is written outside /data and /tmp, so the root may be read-only.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/loop
COPY requirements-runtime.lock ./
# Every package is the one whose hash is pinned; this layer stays while the pins do.
RUN /opt/loop/bin/pip install --no-deps --only-binary :all: --require-hashes --requirement requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY loop loop
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
    && /opt/loop/bin/pip install --no-deps --no-index /wheels/loop-*.whl \
    && /opt/loop/bin/pip uninstall --yes pip setuptools \
    && /opt/loop/bin/python -m compileall -q /opt/loop/lib \
    && mkdir /data

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Loop" \
      org.opencontainers.image.description="A self-hostable payment routing platform" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/loop /opt/loop
COPY --from=build --chown=10001:10001 /data /data
ENV PATH=/opt/loop/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    LOOP_DATA_DIR=/data \
    LOOP_HOST=0.0.0.0
USER 10001:10001
# The SQLite file and the generated secrets. With PostgreSQL nothing is written here.
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["loop", "health"]
CMD ["loop", "serve"]
