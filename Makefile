# make demo    everything from a fresh clone to a report        make test     set up, then all tests but the slow
# make setup   only the environment, into .venv                 make check    ruff, mypy, import contracts, flwr build
.PHONY: help setup demo test check setup-browser setup-postgres setup-tracing setup-ray lock test-slow test-deployment test-kill-deployment test-containers test-kill test-ray test-gpu study utility bench bench-gpu tiny clean

VENV := .venv
BIN := $(VENV)/bin
# Threads that the numerical libraries take; part of what makes results repeat bit for bit.
export OMP_NUM_THREADS := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

help:
	@sed -n 's/^# //p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock scripts/setup
	@scripts/setup $(VENV)

demo: setup
	$(BIN)/consilia simulate

test: setup setup-browser setup-gateway setup-postgres
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@scripts/check-flower-app $(BIN)

# Chromium, for the tests that look at the report in a real browser.
setup-browser: setup
	@scripts/setup-browser

# PostgreSQL, for the tests of the run history.
setup-postgres:
	@scripts/setup-postgres

# nginx, for the tests of the gateway.
setup-gateway: setup
	@scripts/setup-gateway

# strace, for the tests that look at what a process tries to reach.
setup-tracing:
	@scripts/setup-tracing

# Flower's simulation engine (Ray), for --engine flower.
setup-ray: setup
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-ray.lock

# Tests of minutes: kills and resumes, Flower's engine, memory over 200 sites and 50 rounds.
test-slow: setup setup-ray setup-gateway setup-postgres setup-tracing
	$(BIN)/python -m pytest -m slow

# A consortium of real processes: same bits as a simulation, hostile code, what each process reaches,
# a database that dies, bad networks (about 45 minutes).
test-deployment: setup setup-gateway setup-postgres setup-tracing
	$(BIN)/python -m pytest -m "slow or not slow" -s $(addprefix tests/integration/test_,processes.py gateway.py hostile_app.py egress.py database.py bad_network.py)

# 60 deployed runs, each losing a process or two at a random moment (about 45 minutes).
test-kill-deployment: setup setup-gateway setup-postgres
	KILLS=60 $(BIN)/python -m pytest -m slow -s tests/integration/test_kill_deployment.py

# The compose file for real; needs a Docker engine. Builds the images (about ten minutes the first time).
test-containers: setup
	scripts/demo-consortium
	$(BIN)/python -m pytest -m slow -s tests/deployment

test-kill: setup
	$(BIN)/python -m pytest -m slow tests/integration/test_kill.py

test-ray: setup setup-ray
	$(BIN)/python -m pytest -m "slow or not slow" tests/integration/test_flower_engine.py tests/simulations/test_flower_actors.py

# What only a machine with a GPU can test.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# All benchmarks, then their figures into docs/performance.md (about half an hour).
bench: setup setup-ray
	set -e; for b in flower_ray plain_loop "plain_loop --geometry vit-b32" centralised prefix_cache loading peak round_overhead aggregation secagg growth gpu; do $(BIN)/python -m benchmarks.$$b; done
	$(BIN)/python -m benchmarks.table --write docs/performance.md

# What a GPU gives; says so where there is none.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu

# The default job over five seeds, with and without the unimodal sites (about 40 minutes).
study: setup
	$(BIN)/python -m simulations.study --out runs/study

# What privacy costs, over five seeds: the table of docs/privacy.md (about 20 minutes).
utility: setup
	$(BIN)/python -m simulations.utility --out runs/utility --write docs/privacy.md

# Train consilia-tiny again (about 25 minutes); the result is packaged in shared/model.
tiny: setup
	$(BIN)/python -m simulations.phantoms.pretrain --out shared/model/consilia_tiny

# Resolve the lock files anew after a change in pyproject.toml.
lock: setup
	@scripts/lock $(BIN)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
