# `make help` lists the commands. Each one sets up what it needs in .venv on its first run.

PYTHON ?= python3
# Processes that run the tests side by side; each of them uses one thread.
TEST_WORKERS ?= 2
# A folder of photos for `make demo`.
PHOTOS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types check wheel clean

help: ## List the commands.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(INSTALLED) ## Install everything into .venv, with the versions of constraints.txt.

# All in one pip command, so that no later install undoes a pin of an earlier one. torchvision is nerfstudio's
# dependency; it is named here so that the resolver starts from the pair that fits.
$(INSTALLED): pyproject.toml constraints.txt hatch_build.py tools/torchvision_shim.py $(wildcard startup/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch torchvision --editable '.[dev,heic]'
	$(BIN)/python tools/torchvision_shim.py
	@touch $@

demo: $(INSTALLED) ## Make a scene from sample views, or from PHOTOS=dir.
	$(BIN)/python -m ns_sparseattn.demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: $(INSTALLED) ## Run the whole test suite.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

lint: $(INSTALLED) ## Check style and formatting.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## Check types.
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# One after the other also under `make -j`: the test suite wants the processors for itself.
check: $(INSTALLED) ## Check style, types and tests: what CI runs.
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) test

wheel: $(INSTALLED) ## Build dist/*.whl and dist/*.tar.gz.
	$(BIN)/python -m build --no-isolation

clean: ## Remove .venv and everything that was built or cached.
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
