# The commands of this repository. Each one makes what it needs by itself; but for `test-all`, all of it in this folder.
#   make demo       the whole of Holdfast at work on real data (installs no development tools)
#   make test       everything that must hold, except what is slow
#   make test-all   the slow checks too, beside PyTorch (1.2 GB) and clients that are not ours (some want root or sudo)
#   make check      the static half of `make test`: style, types, the laws of the house, generated code
#   make compiled   Holdfast as a compiled wheel, in .venv-compiled (wants a C compiler and Python's headers)
#   make bench      the benchmarks; writes benchmarks/results/*.json
#   make protos     generate the message modules again
#   make docs       write the made parts of the READMEs again

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_ARGUMENTS ?=

.PHONY: help demo test test-all conformance check lint types laws fresh pytest compiled bench protos docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/.demo
	@$(BIN)/holdfast demo $(DEMO_ARGUMENTS)

test: check pytest

test-all: check .venv/.dev .venv-protos/.made .venv-corpus/.made conformance
	$(BIN)/pytest -q -m "slow or not slow"

# Clients and a fuzzer that are not ours; quick when they are there.
conformance: .venv/.dev
	tests/conformance/install.sh $(BIN)/python

check: lint types laws fresh

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

laws: .venv/.dev
	$(BIN)/lint-imports

fresh: .venv-protos/.made
	.venv-protos/bin/python protos/generate.py --check
	.venv-protos/bin/python protos/generate_inference.py --check

pytest: .venv/.dev .venv-protos/.made
	$(BIN)/pytest -q -m "not slow"

compiled: .venv-compiled/.made

bench: .venv/.dev
	$(BIN)/python -m benchmarks.run

protos: .venv-protos/.made
	.venv-protos/bin/python protos/generate.py
	.venv-protos/bin/python protos/generate_inference.py

docs: .venv/.dev
	$(BIN)/python -m tests.docs.make_docs

# Which Python, before anything else is tried.
.python-checked:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null || { \
	  echo "Holdfast needs Python 3.11 to 3.14; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || echo not there)."; \
	  echo "Install one (Debian: apt install python3 python3-venv) and name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/.base: | .python-checked
	@echo "[1/3] making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@touch $@

.venv/.demo: .venv/.base pyproject.toml
	@echo "[2/3] installing Holdfast with what the demo needs (about 300 MB once)"
	@$(PIP) install --editable ".[demo]" | sed -u -n 's/^\(Collecting\|Downloading\|Installing\|Successfully\)/  \1/p'
	@$(BIN)/python -c "import holdfast" || { echo "the installation failed; its last lines stand above"; exit 1; }
	@touch $@

.venv/.dev: .venv/.demo
	@echo "[3/3] installing the development tools"
	@$(PIP) install --group dev | sed -u -n 's/^\(Collecting\|Downloading\|Installing\|Successfully\)/  \1/p'
	@$(BIN)/python -c "import pytest, mypy" || { echo "the installation failed; its last lines stand above"; exit 1; }
	@touch $@

# The generator needs an older protobuf than flwr does: protos/requirements.txt says why.
.venv-protos/.made: protos/requirements.txt | .python-checked
	@echo "making .venv-protos for the generator of the message modules"
	@$(PYTHON) -m venv .venv-protos
	@.venv-protos/bin/python -m pip --disable-pip-version-check install --quiet -r protos/requirements.txt
	@touch $@

# The wheel whose hot modules are C; the benchmarks put it beside the one that is not.
.venv-compiled/.made: pyproject.toml runtime/compile_hook.py $(shell find runtime/holdfast -name '*.py') | .python-checked
	@echo "compiling Holdfast into .venv-compiled (about a minute)"
	@$(PYTHON) -m venv --clear .venv-compiled
	@HATCH_BUILD_HOOKS_ENABLE=1 .venv-compiled/bin/python -m pip --disable-pip-version-check install --quiet --force-reinstall .
	@.venv-compiled/bin/holdfast --version
	@touch $@

# PyTorch and transformers, beside which gradients are held; about 1.2 GB.
.venv-corpus/.made: tests/corpus/requirements.txt tests/corpus/install.sh | .python-checked
	tests/corpus/install.sh $(PYTHON)
	@touch $@

clean:
	rm -rf .venv .venv-compiled .venv-protos .venv-corpus .venv-conformance .venv-fuzz .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
	rm -rf benchmarks/clients/cpp/build tests/conformance/javascript/node_modules
