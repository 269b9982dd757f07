# Every target runs in .venv, which scripts/environment.sh makes of requirements.txt. Variables: PYTHON (the base
# interpreter), WORKERS (test processes at a time), OPTIONS (of `make lock`).
SHELL := /bin/bash
.DEFAULT_GOAL := help

# What a user's PYTHONPATH names would come before the pinned packages.
unexport PYTHONPATH
export UV_PYTHON_DOWNLOADS := never
python := .venv/bin/python
sources := setup.py megatron_longpo tools scripts tests examples benchmarks
# The variable: no word about the next mkdocs, which the theme does not follow.
site := NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict
locked_extras := quickstart arrow generate ray evaluate bench docs wandb dev

# Beyond eight, importing torch in every worker costs more than it saves.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 8 ? 8 : n)))
# The tests are for CPUs: they would mix gloo with CUDA. Those of tests/gpu are run by `make test-gpu`.
pytest := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m pytest
sharded := -n $(WORKERS) --dist loadgroup --durations 10

.PHONY: help env lock quickstart quickstart-smollm2 test test-all test-gpu test-gpu-te mutations check check-format \
  check-lint check-types check-layers check-docs docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: ## make .venv, unless it is there; the other targets do this first
	@scripts/environment.sh

# Not by scripts/uv.sh: an extra index that pip knows on one machine would choose versions for all.
lock: env ## pin in requirements.txt what setup.py asks for; OPTIONS=--upgrade renews all pins
	.venv/bin/uv pip compile setup.py $(addprefix --extra ,$(locked_extras)) --universal --python-version 3.12 \
	  --generate-hashes --annotation-style line --custom-compile-command 'make lock' --no-build-isolation --quiet \
	  --python $(python) --output-file requirements.txt $(OPTIONS)

quickstart: env ## a small model teaches itself texts of four times its length, on this machine, in minutes
	$(python) -m examples.miniature.run

quickstart-smollm2: env ## the whole pipeline on a real small model, from committed pairs
	$(python) -m examples.smollm2.run

test: env ## all tests but the slow ones
	$(pytest) $(sharded) -m "not slow"

test-all: env ## all tests
	$(pytest) $(sharded)

# On a machine that cannot reach a package registry, GPU_PYTHON names a Python with a torch of its own: beside what
# setup.py requires the tests want pytest and pytest-timeout only. No test starts in the last minute of the ten.
gpu_python := $(or $(GPU_PYTHON),$(python))
gpu_env := $(if $(GPU_PYTHON),,env)
gpu_tests := $(addprefix tests/gpu/test_,attention.py logprob.py step.py memory.py programs.py context_parallel.py)
gpu_pytest = $(gpu_python) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("no CUDA GPU: nothing was run")' \
	&& GPU_TESTS_SECONDS=540 HF_HUB_OFFLINE=1 $(gpu_python) -m pytest -o minversion=8 -v -s $(gpu_tests)

test-gpu: $(gpu_env) ## what runs on one GPU, most important first, in ten minutes; each error with its limit
	@$(gpu_pytest) -k "not transformer_engine"

test-gpu-te: $(gpu_env) ## what needs Transformer Engine
	@$(gpu_pytest) -k transformer_engine

mutations: env ## seed known faults in a copy of the tree, one by one; the tests must catch each
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(python) -m tests.mutations

check: check-format check-lint check-types check-layers check-docs ## format, lint, types, import layers, documentation

check-format: env
	$(python) -m ruff format --check $(sources)

check-lint: env
	$(python) -m ruff check $(sources)

check-types: env
	$(python) -m pyright

check-layers: env
	$(pytest) -q tests/test_import_layers.py tests/test_repository.py

check-docs: env
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(site) --site-dir "$$folder"

docs: env ## the documentation as a site in site/, read by a browser from the disk or any server
	$(site)

format: env ## rewrite the sources in the project's format
	$(python) -m ruff format $(sources)
	$(python) -m ruff check --fix $(sources)

clean: ## remove what was built here; .venv stays
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./.git -o -path ./.venv \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
