# `make demo` and `make test` do everything on a fresh clone, set-up included.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing here may reach a model hub; progress chatter off.
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo lint type test test-all docs bench clean

setup: $(VENV)/.installed

# torch first and alone: pulled in by another package it may come as another build.
$(VENV)/.installed: setup.cfg constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python -m launch.demo --out runs/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell acontrol launch tune tests docs README.md CHANGELOG.md CONTRIBUTING.md

type: setup
	$(BIN)/mypy

# A thread a process: several share the cores, and waiting for each other's threads they spin.
test test-all: export OMP_NUM_THREADS := 1

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder --durations=20

test-all: setup
	$(BIN)/python -m pytest -q --durations=20 -m 'not gpu'

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q docs site

bench: setup
	@ls benchmarks/*.py

clean:
	rm -rf runs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
