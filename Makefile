# Everything a contributor runs. `make help` lists it. Only Python 3.11+, git and make are needed beforehand.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

# Never a path of this checkout in here unquoted: it may hold a space. Recipes run in the checkout, so names are relative.
PY := .venv/bin/python
STAMP := .venv/.setup-done
WORKERS ?= 2
PYTEST := $(PY) -m pytest -p no:cacheprovider
TOWNCRIER := $(PY) -m towncrier

.PHONY: help setup demo test test-fast check format dev bench bench-gateway bench-streams bench-models fuzz-gateway bench-tasks bench-frameworks bench-sessions drill escape frameworks docs lock changelog ci clean FORCE

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## build .venv from requirements.lock (the other targets call this)

$(STAMP): requirements.lock pyproject.toml scripts/setup.sh
	@./scripts/setup.sh

demo: setup ## from nothing to two hosted agents on a real local model
	@$(PY) scripts/demo.py $(DEMO_ARGS)

test: setup ## every test, in under five minutes
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not slow" tests

test-fast: setup ## the unit tests only
	@$(PYTEST) -n $(WORKERS) tests/unit

check: setup ## format, lint, types, import rows and unit tests: run before every commit
	@$(PY) -m ruff format --check src tests scripts
	@$(PY) -m ruff check src tests scripts
	@$(PY) -m mypy
	@$(PY) -c "from importlinter.cli import lint_imports_command as lint; lint()"
	@$(PYTEST) -n $(WORKERS) -q tests/unit

format: setup ## let ruff format and sort what it can
	@$(PY) -m ruff format src tests scripts
	@$(PY) -m ruff check --fix src tests scripts

dev: setup ## run the host in the foreground with readable logs
	@$(PY) -m nexus.cli.main up

bench: setup ## the figures of the documentation, side by side with a plain server
	@$(PY) benchmarks/host/run.py $(BENCH_ARGS)

bench-gateway: setup ## the data plane beside plain nginx and, where installed, plain Envoy
	@$(PY) benchmarks/gateway/run.py $(BENCH_ARGS)

bench-models: setup ## the models door of a whole host beside the LiteLLM proxy (LITELLM=folder of its environment)
	@$(PY) benchmarks/models/run.py $(BENCH_ARGS)

bench-streams: setup ## event streams: first event, CPU of an event, memory of an idle one
	@$(PY) benchmarks/gateway/streams.py $(BENCH_ARGS)

fuzz-gateway: setup ## the gateway and plain nginx read the same odd bytes; seeds of findings are kept
	@$(PY) benchmarks/gateway/fuzz.py $(FUZZ_ARGS)

drill: setup ## the longer tests: kill, fill, flood; NAME=kill-storm for one drill
	@if [ -n "$(NAME)" ]; then $(PY) -m tests.drills $(NAME) $(DRILL_ARGS); else $(PYTEST) -n $(WORKERS) -m slow tests; fi

bench-tasks: setup ## the task queue against procrastinate and DBOS on the same PostgreSQL, and through a whole host
	@$(PY) -m benchmarks.tasks.run $(BENCH_ARGS)

bench-sessions: setup ## a session's start beside bubblewrap and runc, its memory, its freezing
	@$(PY) -m benchmarks.sessions.run $(BENCH_ARGS)

escape: setup ## a hostile agent in every tier of isolation, against the table of what it may do
	@$(PYTEST) tests/escape

frameworks: setup ## every agent framework in its real environment (ONLY="langgraph pydantic-ai": those alone)
	@FRAMEWORKS="$(or $(ONLY),all)" $(PYTEST) -q tests/integration/frameworks

bench-frameworks: setup ## what the worker adds to each framework's own import (ONLY="langgraph agno": those alone)
	@ONLY="$(ONLY)" $(PY) benchmarks/frameworks/run.py $(BENCH_ARGS)

docs: setup ## write the generated reference pages again
	@$(PY) scripts/reference.py

lock: setup ## resolve requirements.lock again from pyproject.toml
	@./scripts/lock.sh

changelog: setup ## show the release notes that the fragments in changes/ make
	@$(TOWNCRIER) build --draft --version next

ci: ## what the continuous integration runs
	@./.ci/run

clean: ## remove .venv and caches (never data)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
