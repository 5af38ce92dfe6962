# The few commands to remember. Each sets up .venv first, if it is not there or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without a GPU this version is installed first, from wherever pip is told to look; a CPU build of it
# saves gigabytes. With a GPU, pip's own choice brings the CUDA libraries.
TORCH_CPU := torch==2.13.0
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)

.DEFAULT_GOAL := help
.PHONY: help demo test check bench gpu docs install clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

install: $(STAMP) ## create .venv and install refine-pl with what its tests need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "refine-pl needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
ifneq ($(HAS_GPU),yes)
	@$(BIN)/python -c 'import torch' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH_CPU)"
endif
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## ReFINE beside plain training, from one start: what does it add?
	@$(BIN)/refine-pl compare --config tiny_compare --from tiny --jobs 2 --out runs/demo

test: $(STAMP) ## the whole test suite
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

check: $(STAMP) ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP) ## what an update costs on this machine
	@$(BIN)/refine-pl bench --config dn4m_mid

gpu: $(STAMP) ## on a GPU: its tests, and a benchmark of DeltaNet-1.3B; under ten minutes
	@$(BIN)/python tests/gpu/prove.py --json gpu.json

docs: $(STAMP) ## build the documentation into site/
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@$(BIN)/mkdocs build --strict

clean: ## remove what was built, not what was trained
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
