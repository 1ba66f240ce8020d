# Rollcall's commands. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
STACK := $(BIN)/python -m compose.local

.DEFAULT_GOAL := help
.PHONY: help env up demo demo-adopt status logs restart down reset test test-fast test-long test-matrix types docs check audit images containers lock chaos bench scale loadtest

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

env: .venv/complete ## Make .venv from the lock file (other commands do this when needed)
	@echo "The environment in .venv is the one that requirements.lock describes."

up: .venv/complete ## Start the whole stack in the background, on this machine only (CLUSTER=3: Redis as a cluster)
	@$(STACK) up

demo: .venv/complete ## up, then send 100,000 messages (MESSAGES=…), then compare the counts with COUNT(DISTINCT)
	@$(STACK) demo

demo-adopt: .venv/complete ## up, then adopt an application's table (ORDERS=300000) while the application works, and show its counts
	@$(STACK) demo-adopt

status: .venv/complete ## Show each process, its port, its health, and what is wrong; exit code 0 if nothing is
	@$(STACK) status

logs: .venv/complete ## Show the end of every log, and new lines until Ctrl-C (SERVICE=ingest: one log)
	@$(STACK) logs $(SERVICE)

restart: .venv/complete ## Stop the services and start them again, on the same data (SERVICE=replica: only that process)
	@$(STACK) restart $(SERVICE)

down: .venv/complete ## Stop every process of the stack
	@$(STACK) down

reset: .venv/complete ## Stop every process and remove the data; keep the chosen ports
	@$(STACK) reset

test: .venv/complete ## Install a chromium if there is none, and run every test, each service's in a process of its own
	@$(BIN)/python -m tests.run

test-fast: .venv/complete ## Run the unit tests, the search in small worlds, and the rules about the code: about 20 seconds
	@$(BIN)/python -m tests.run --fast

test-long: .venv/complete ## Run the tests that take minutes: for example, that a stack without a rule of the protocol fails
	@$(BIN)/python -m tests.run --long

test-matrix: .venv/complete ## Test with other installed versions of Postgres and Redis; names the missing ones
	@$(BIN)/python -m tests.matrix

chaos: .venv/complete ## Inject faults into a whole stack of its own, and check every answer (SECONDS=60, SEED=…, SINGLE=1: no replica; CLUSTER=3: Redis is a cluster)
	@$(BIN)/python -m loadtest.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(SINGLE),--single) $(if $(CLUSTER),--cluster $(CLUSTER))

bench: .venv/complete ## Measure each case next to its floor (CASE=ingest.single, ROUNDS=3, ROWS=500000; the full run is ROWS=5000000)
	@CASE='$(CASE)' ROUNDS='$(ROUNDS)' ROWS='$(ROWS)' $(BIN)/python -m loadtest.bench

scale: .venv/complete ## Measure sizes and times of a large table, next to docs/sizing.md (ROWS=50000000, MEMBERS=10000000)
	@ROWS='$(ROWS)' MEMBERS='$(MEMBERS)' $(BIN)/python -m loadtest.scale

loadtest: .venv/complete ## Put load on a whole stack of its own, then check all data (USERS=50, SECONDS=60, PROFILE=ingest|query|mixed)
	@$(BIN)/python -m loadtest.load $(if $(USERS),--users $(USERS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PROFILE),--profile $(PROFILE))

# The addresses satisfy the settings; nothing connects to them.
types: .venv/complete ## Run mypy, strict
	@DATABASE_URL=postgres://types/only REDIS_URL=redis://types/0 DJANGO_SETTINGS_MODULE=tests.settings \
		$(BIN)/mypy ingest_service manage_service query_service shared_models compose loadtest tests docs/examples/client.py

docs: .venv/complete ## Build the documentation as a site, into .local/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "The site is .local/site/index.html. Its search needs a server: python3 -m http.server --directory .local/site 8004"

check: .venv/complete ## Lint, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types test

audit: .venv/complete ## List known vulnerabilities of the packages in the lock files, as far as they can be looked up
	@$(BIN)/python -m tests.audit

images: .venv/complete ## Run the steps of compose/Dockerfile without Docker, and start each image's command
	@$(BIN)/python -m tests.images

containers: .venv/complete ## Bring the deployment up in real containers, with Docker or Podman, and try what an operator does: 6 minutes
	@$(BIN)/python -m compose.containers

# Markers for every platform, from the oldest Python on; the images take the versions that the tests have.
UV ?= uv
LOCK := $(UV) pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header
lock: ## Write the lock files again from pyproject.toml (needs uv; UV=/path/to/uv)
	$(LOCK) --extra ingest --extra manage --extra query --extra stack --extra dev -o requirements.lock
	for service in ingest manage query; do \
		$(LOCK) --extra $$service -c requirements.lock -o compose/requirements/$$service.lock || exit; \
	done

# `complete` is written last: an incomplete environment, or one from another lock file, is made again.
.venv/complete: requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "Rollcall needs Python 3.11 or later, and there is no $(PYTHON): make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Rollcall needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) comes without its venv module: install it (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Making .venv from requirements.lock …"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --only-binary :all: --require-hashes -r requirements.lock
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # on all processors; pip takes one, and minds no file that does not compile either
	@touch $@
