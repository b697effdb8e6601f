# The commands of this project; `make` alone lists them.
#
# PYTHON=python3.11      the interpreter the environments are built with
# TORCH_INDEX=URL        an index, or TORCH_WHEELS=DIR a folder, that has the CPU build of torch

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PYTHON ?= python3.11
export TORCH_INDEX TORCH_WHEELS

VENV := .venv
COMPAT_VENV := .venv-0.5.17
COMPILED_VENV := .venv-compiled
MODEL := .cache/tiny-qwen3
SETUP_FILES := pyproject.toml scripts/setup.sh scripts/system_libraries.sh scripts/redis_server.sh
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: help setup lint test test-fast test-compat demo compiled promtool lock clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.stamp $(MODEL)/config.json  ## build the environment and the tiny model
	@:

$(VENV)/.stamp: requirements/sglang-0.5.23.txt $(SETUP_FILES)
	@scripts/setup.sh $(VENV) $<

$(MODEL)/config.json: bench/tiny_model.py | $(VENV)/.stamp
	@$(BIN)/python -m bench.tiny_model --out $(MODEL)
	@touch $@

lint: setup  ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A run that takes more than 70 minutes ends with what failed by then.
test: lint  ## everything, on real SGLang servers too
	$(BIN)/python -m pytest --session-timeout=4200 $(PYTEST_ARGS)

test-fast: setup  ## the tests that need no SGLang server
	$(BIN)/python -m pytest -m "not sglang" $(PYTEST_ARGS)

test-compat: setup $(COMPAT_VENV)/.stamp  ## end to end on SGLang 0.5.17
	$(COMPAT_VENV)/bin/python -m pytest -m sglang tests/sglang $(PYTEST_ARGS)

# 0.5.17 imports torchvision before it calls a plugin, so there the stand-ins lie on the path.
$(COMPAT_VENV)/.stamp: requirements/sglang-0.5.17.txt $(SETUP_FILES)
	@scripts/setup.sh $(COMPAT_VENV) $<
	@echo "$(CURDIR)/conserve_sglang/plugin/standins" \
	  > "$$(echo $(COMPAT_VENV)/lib/python3*/site-packages)/cpu_standins.pth"

demo: setup  ## play tool-calling conversations on 1 + 2 CPU servers
	$(BIN)/python -m bench.demo

compiled:  ## an environment with the router's hot modules compiled, from the sources as they are
	@scripts/compiled.sh $(COMPILED_VENV)

promtool:  ## Prometheus' checker, for the tests of the alert rules (fetched from Debian)
	@scripts/promtool.sh .cache/promtool

lock: setup  ## write down the versions of this environment, after a change of the extras
	$(BIN)/pip install --quiet -e '.[cpu,dev]'
	@{ sed -n '/^#/p' requirements/sglang-0.5.23.txt; \
	   $(BIN)/pip freeze --all --exclude-editable --exclude torch --exclude pip; } \
	  > requirements/.new && mv requirements/.new requirements/sglang-0.5.23.txt

clean:  ## remove what setup and the tests made
	rm -rf $(VENV) $(COMPAT_VENV) $(COMPILED_VENV) .cache out build *.egg-info \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
