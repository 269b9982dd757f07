# Every target runs in the environment that scripts/environment.py makes (once for all checkouts with the same pins)
# and links as .venv. Variables: PYTHON (the base interpreter), MEGATRON_LONGPO_HOME (where environments are kept),
# WORKERS (test processes at a time).
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The environment is shared between checkouts, so the package is found here and not installed there; PYTHONPATH is
# replaced and not extended, because whatever it named would come before the pinned packages.
export PYTHONPATH := $(CURDIR)
python := .venv/bin/python
sources := setup.py megatron_longpo scripts tools tests $(wildcard examples benchmarks)

# Beyond eight, importing torch in every worker costs more than it saves.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 8 ? 8 : n)))
pytest := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m pytest
sharded := -n $(WORKERS) --dist loadgroup --durations 10

.PHONY: help env quickstart test test-all mutations check check-format check-lint check-types check-layers format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## make the environment, or reuse it, and link it as .venv
	@base=$$(scripts/find_python.sh) && "$$base" scripts/environment.py

quickstart: env ## train a real small model from committed pairs, on this machine
	$(python) examples/quickstart/run.py

test: env ## all tests but the slow ones
	$(pytest) $(sharded) -m "not slow"

test-all: env ## all tests
	$(pytest) $(sharded)

mutations: env ## seed known faults in a copy of the tree, one by one; the tests must catch each
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m tests.mutations

check: check-format check-lint check-types check-layers ## format, lint, types, import layers

check-format: env
	$(python) -m ruff format --check $(sources)

check-lint: env
	$(python) -m ruff check $(sources)

check-types: env
	$(python) -m pyright

check-layers: env
	$(pytest) -q tests/test_import_layers.py tests/test_repository.py

format: env ## rewrite the sources in the project's format
	$(python) -m ruff format $(sources)
	$(python) -m ruff check --fix $(sources)

clean: ## remove what was built in this checkout (the shared environment stays)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	[ ! -L .venv ] || rm .venv
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
