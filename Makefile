# Front door. `make nightly` and `make test` are all the set-up there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup models nightly test lint lab bench lock clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
NATIVE := parity_lib/native
PLAN   ?= fixtures/plans/smoke.toml
ARGS   ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH := $(abspath $(BIN)):$(PATH)

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

setup: $(STAMPS)/packages $(STAMPS)/reference $(STAMPS)/native  ## build everything: packages, llama.cpp (about 5 minutes on 2 cores), the burn crate

nightly: setup  ## the nightly comparison: default plan, HTML under reports/nightly/
	@$(BIN)/parity nightly --plan $(PLAN) $(ARGS)

test: setup lint  ## everything that must hold, with one small night through both engines
	@cargo test --release --locked --quiet --manifest-path $(NATIVE)/Cargo.toml
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMPS)/packages  ## ruff, mypy, import contracts, rustfmt, clippy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cargo fmt --check --manifest-path $(NATIVE)/Cargo.toml
	cargo clippy --release --locked --quiet --all-targets --manifest-path $(NATIVE)/Cargo.toml -- -D warnings

models: setup  ## make the default models (needs the network once)
	@$(BIN)/parity models prepare

lab: setup  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=.

bench: setup  ## speed as ratios within one run: forced pass, memory, statistics, a look at every node, T3, sgemm share
	@$(BIN)/python -m parity_lib.bench $(ARGS)

lock:  ## resolve requirements.in again into requirements.txt, with hashes (needs uv)
	@uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-annotate \
	    --custom-compile-command "make lock" requirements.in -o requirements.txt

clean:  ## remove the environment and build folders (models and wheels in the cache stay)
	@rm -rf $(VENV) $(NATIVE)/target build *.egg-info

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; next: make PYTHON=python3.11 ..." >&2; exit 3; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo "python cannot make a virtual environment; next: apt-get install python3-venv" >&2; exit 3; }
	mkdir -p $(STAMPS) && touch $@

# The pip section of environment.yml is what is installed: what CI tests is what conda users get.
$(STAMPS)/packages: $(STAMPS)/venv environment.yml requirements.txt requirements.in pyproject.toml
	@echo "setup: packages, each pinned by hash (about a minute)"
	sed -n '/- pip:/,$$s/^ *- \(-r .*\)/\1/p' environment.yml > $(STAMPS)/pip-section.txt
	test -s $(STAMPS)/pip-section.txt
	xargs -a $(STAMPS)/pip-section.txt $(BIN)/python -m pip install --quiet --require-hashes
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(STAMPS)/reference: $(STAMPS)/packages parity_lib/reference_build.py fixtures/gguf_parity.toml
	@$(BIN)/python -m parity_lib.reference_build
	touch $@

$(STAMPS)/native: $(STAMPS)/packages $(wildcard $(NATIVE)/src/*.rs $(NATIVE)/src/*/*.rs) $(NATIVE)/Cargo.toml $(NATIVE)/Cargo.lock $(NATIVE)/build.rs $(NATIVE)/pyproject.toml rust-toolchain.toml
	@command -v cargo > /dev/null || { echo "cargo is not on the PATH; next: install Rust 1.95 (rustup)" >&2; exit 3; }
	echo "setup: the burn crate (about 4 minutes on 2 cores the first time)"
	$(BIN)/maturin develop --quiet --release --locked --manifest-path $(NATIVE)/Cargo.toml
	touch $@
