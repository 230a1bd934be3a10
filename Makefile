# Front door. `make nightly` and `make test` are all the set-up there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup models nightly test quick lint map schemas lab bench lock pictures clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
NATIVE := parity_lib/burn_gguf
PLAN   ?= fixtures/plans/smoke.toml
ARGS   ?=
MODELS ?=
# Each process that a test starts would compile the library again.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH := $(abspath $(BIN)):$(PATH)

# The tests run as two processes, since most of them keep one core busy: those of some rooms, and all others.
# With ARGS they are one.
HALF       := tests/night tests/notebooks tests/cli tests/field tests/faults
QUICK_HALF := tests/pages tests/records
QUICK      := -m "not engine and not slow"
define HALVES
$(BIN)/python -m pytest $(2) $(1) > $(STAMPS)/half.log 2>&1 & half=$$!
trap 'kill $$half 2> /dev/null || true' EXIT
status=0
$(BIN)/python -m pytest $(2) tests $(addprefix --ignore=,$(1)) || status=$$?
wait $$half || status=$$?
cat $(STAMPS)/half.log
exit $$status
endef

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 18

setup: $(STAMPS)/packages $(STAMPS)/reference $(STAMPS)/native $(STAMPS)/faults  ## build everything: packages, llama.cpp (about 5 minutes on 2 cores), the burn crate

nightly: setup  ## the nightly comparison: default plan, HTML under reports/nightly/; MODELS=real fetches Qwen2.5 first
	@case "$(MODELS)" in
	  "") ;;
	  real) $(BIN)/parity models fetch qwen2.5-coder-0.5b ;;
	  *) echo "MODELS=$(MODELS) is unknown; expected real or nothing; next: make nightly MODELS=real" >&2; exit 2 ;;
	esac
	$(BIN)/parity nightly --plan $(PLAN) $(ARGS)

test: setup lint  ## everything that must hold, with one small nightly run through both engines
	@cargo test --release --locked --quiet --manifest-path $(NATIVE)/Cargo.toml
	cargo test --release --locked --quiet --features faults --manifest-path $(NATIVE)/Cargo.toml
	$(if $(strip $(ARGS)),$(BIN)/python -m pytest $(ARGS),$(call HALVES,$(HALF)))

quick: setup  ## the tests that start no engine, notebook, pip or compiler
	@$(if $(strip $(ARGS)),$(BIN)/python -m pytest $(QUICK) $(ARGS),$(call HALVES,$(QUICK_HALF),$(QUICK)))

lint: $(STAMPS)/packages  ## ruff, mypy, import contracts, rustfmt, clippy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cargo fmt --check --manifest-path $(NATIVE)/Cargo.toml
	cargo clippy --release --locked --quiet --all-targets --manifest-path $(NATIVE)/Cargo.toml -- -D warnings
	cargo clippy --release --locked --quiet --all-targets --features faults --manifest-path $(NATIVE)/Cargo.toml -- -D warnings

map: $(STAMPS)/packages  ## rooms of the library, arrows between them, circles, small modules
	@$(BIN)/python -m parity_lib.cli.map

schemas: $(STAMPS)/packages  ## write the JSON Schemas of all records into fixtures/schemas
	@$(BIN)/python -m parity_lib.cli.schemas

models: setup  ## make the default models (needs the network once)
	@$(BIN)/parity models prepare

lab: setup  ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=.

bench: setup  ## speed as ratios within one run: teacher-forced pass, memory, statistics, observing every node, T3, sgemm share
	@$(BIN)/python -m parity_lib.cli.bench $(ARGS)

lock:  ## resolve requirements.in again into requirements.txt, with hashes (needs uv)
	@uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-annotate \
	    --custom-compile-command "make lock" requirements.in -o requirements.txt

pictures: $(STAMPS)/packages  ## the README's screenshots, from the newest nightly run (needs chromium)
	@$(BIN)/python docs/pictures/make.py $(RUN)

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

$(STAMPS)/reference: $(STAMPS)/packages parity_lib/engines/llamacpp/build.py fixtures/gguf_parity.toml
	@$(BIN)/python -m parity_lib.engines.llamacpp.build
	touch $@

$(STAMPS)/native: $(STAMPS)/packages $(wildcard $(NATIVE)/src/*.rs $(NATIVE)/src/*/*.rs) $(NATIVE)/Cargo.toml $(NATIVE)/Cargo.lock $(NATIVE)/build.rs $(NATIVE)/pyproject.toml rust-toolchain.toml
	@command -v cargo > /dev/null || { echo "cargo is not on the PATH; next: install Rust 1.95 (rustup)" >&2; exit 3; }
	echo "setup: the burn crate (about 4 minutes on 2 cores the first time)"
	$(BIN)/maturin develop --quiet --release --locked --manifest-path $(NATIVE)/Cargo.toml
	touch $@

# The library with faults lies in the cache, apart from the judged one; `parity stack build crates-io --faults` makes it again.
$(STAMPS)/faults: $(STAMPS)/native fixtures/gguf_parity.toml
	@echo "setup: the burn crate once more, with faults for the red controls (about a minute on 2 cores)"
	$(BIN)/parity stack build crates-io --faults
	touch $@
