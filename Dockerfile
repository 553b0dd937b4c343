# The images of a consortium: docker build --target server|agent|courier|gateway|postgres .
# docker-compose.yml builds and runs all of them; docs/containers.md says how. Needs BuildKit.
#
# Every package comes from a lock with hashes. Where PyPI is reached through a mirror or a proxy
# that opens TLS, hand pip's settings over as build secrets, which no image keeps:
#   --secret id=pip,src=pip.conf --secret id=ca,src=ca.pem      (cert = /run/secrets/ca in pip.conf)
ARG BASE=python:3.11-slim-bookworm

# ---- what all images stand on: the base without what installs, and without what nobody reads
FROM ${BASE} AS system
RUN find /var/lib/apt/lists /var/cache/apt /var/log /usr/share/doc /usr/share/man /usr/share/info \
        /usr/share/locale -type f -delete \
    && rm -rf ~/.cache /tmp/* /usr/share/python-wheels /usr/lib/python3/dist-packages/* \
        /usr/local/lib/python3*/site-packages/* /usr/local/bin/pip* /usr/bin/pip* \
        /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip \
    && groupadd --gid 10001 consilia \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin consilia \
    # Volumes take over owner and mode of the folder where they are mounted first.
    && install -d -m 0700 -o consilia -g consilia /coordinator /gateway /exchange /report /site \
        /courier /data /run/consilia /run/postgresql /var/lib/postgresql

FROM scratch AS base
COPY --from=system / /
COPY --chmod=0755 containers/healthy /usr/local/bin/healthy
ENV PATH=/opt/consilia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TRANSFORMERS_OFFLINE=1
USER 10001:10001
WORKDIR /tmp

# ---- the build: an environment without pip for each image, and consilia as a wheel
FROM ${BASE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip
WORKDIR /build
RUN python3 -m venv --without-pip /opt/consilia

FROM builder AS wheel
COPY requirements-build.lock ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -m pip install --quiet --target /tools --no-deps --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY client client
COPY server server
COPY simulations simulations
RUN PYTHONPATH=/tools python3 -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels .

FROM builder AS courier-packages
COPY requirements-courier.lock ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --require-hashes -r requirements-courier.lock
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --no-index /wheels/*.whl

FROM builder AS server-packages
COPY requirements-server.lock ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --require-hashes -r requirements-server.lock
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --no-index /wheels/*.whl

FROM builder AS agent-packages
COPY requirements-agent.lock ./
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --require-hashes -r requirements-agent.lock
# For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple (docker-compose.gpu.yml).
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    python3 -m pip --python /opt/consilia install --quiet --index-url "${TORCH_INDEX}" "torch==${TORCH}"
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/consilia install --quiet --no-deps --no-index /wheels/*.whl

# ---- the images
# Has a network, and nothing that could read a record or load a model.
FROM base AS courier
COPY --from=courier-packages /opt/consilia /opt/consilia
ENTRYPOINT ["consilia"]
CMD ["client", "courier", "--site", "/site", "--socket", "/run/consilia/agent.sock"]

# Has the records, and no network.
FROM base AS agent
COPY --from=agent-packages /opt/consilia /opt/consilia
ENTRYPOINT ["consilia"]
CMD ["client", "agent", "--config", "/site/site.toml"]

# The coordinator: --part superlink, or --part superexec.
FROM base AS server
COPY --from=server-packages /opt/consilia /opt/consilia
ENTRYPOINT ["consilia"]
CMD ["server", "start", "--home", "/coordinator"]

FROM base AS gateway
USER root
RUN apt-get -qq update \
    && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends nginx-light >/dev/null \
    && find /var/lib/apt/lists /var/cache/apt /var/log /usr/share/doc /usr/share/man -type f -delete
USER 10001:10001
CMD ["nginx", "-e", "stderr", "-p", "/gateway/gateway", "-c", "nginx.conf"]

FROM base AS postgres
USER root
RUN apt-get -qq update \
    && mkdir -p /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends postgresql >/dev/null \
    && find /var/lib/apt/lists /var/cache/apt /var/log /usr/share/doc /usr/share/man -type f -delete \
    && ln -s /usr/lib/postgresql/* /usr/lib/postgresql/current \
    && install -d -m 0700 -o consilia -g consilia /run/postgresql /var/lib/postgresql
COPY --chmod=0755 containers/postgres-start /usr/local/bin/postgres-start
ENV PATH=/usr/lib/postgresql/current/bin:/usr/local/bin:/usr/bin:/bin
USER 10001:10001
CMD ["postgres-start"]
