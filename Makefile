# make demo   install into .venv and run DPO on the embedded model;  make install  only install
# make test   the test suite, without PyTorch;  make test-torch  the tests that ask PyTorch itself
# make test-pages  commands and screens that the pages show, and their experiments in small
# make test-survival  runs that are killed, in small
# make test-gpulike  tests of what trains, under an emulator of a GPU's habits
# make notebook  run the eight experiments of notebooks/dpo.ipynb in small and show the page; FULL=1 whole
# make scaffold OUT=folder  a copy of the project with the functions of the course left to write
# make test-wheel  the wheel where no clone is: built, installed, and used there for a minute
# make torture  what docs/reliability.md promises, tried in full: up to an hour
# make check  lint, format, types;              make fix         mend what can be mended
# make doctor what this machine is, and whether it trains to the right numbers
# With PYTHON=... .venv is made with that Python; without, with the newest on the PATH

.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
# What MLX has wheels for; on a Mac an Intel Python (also under Rosetta) finds none.
FITS := import platform, sys; sys.exit(sys.version_info < (3, 11) or \
	sys.platform == "darwin" and platform.machine() != "arm64")

# The BLAS inside MLX's Linux wheel is slow. OpenBLAS, where it is installed, is put in front of it.
ifeq ($(shell uname),Linux)
BLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libopenblas.so.0 \
	/usr/lib/*/libopenblas.so.0 /usr/lib64/libopenblasp.so.0 /usr/lib64/libopenblas.so.0))
FAST := $(if $(BLAS),LD_PRELOAD=$(BLAS))
endif

# pip says what it does, a line a package; of its other lines those that tell of a failure are shown.
SHELL := /bin/bash
PIP := set -o pipefail; PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check \
	--progress-bar off
SHOWN := | awk '/^Collecting/ {n++; next} \
	/^ *(Downloading|Using cached)/ {sub(/^ */, ""); print "  " n "  " $$0} \
	/^ *(Installing|Building|Preparing|Getting|Successfully installed)/ \
	{sub(/^ */, ""); print "  " substr($$0, 1, 76)} \
	{fflush()}'

# Two processes of one thread each: faster than one process, and more would crowd a laptop's memory.
TWO := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: help doctor demo test test-pages test-survival test-gpulike test-wheel torture test-torch notebook \
	scaffold check fix install dev
help:
	@sed -n '/^$$/q;s/^# //p' Makefile

doctor: install
	@$(FAST) $(BIN)/mlx_dpo doctor $(ARGS)

demo: install
	@$(FAST) $(BIN)/mlx_dpo train

test: dev
	@$(FAST) $(TWO) -m "not torch and not pages and not survival" --ignore tests/gpulike  # its own lane

test-pages: dev
	@$(FAST) $(TWO) -m pages

test-survival: dev
	@$(FAST) $(TWO) -m survival

test-gpulike: dev
	@$(FAST) $(TWO) -p tests.gpulike -m "not torch" $(addprefix tests/,gpulike training runs models faults)

test-wheel: dev
	@$(FAST) $(BIN)/python -m tools.wheel

test-torch: $(VENV)/.torch
	@$(FAST) $(TWO) -m torch

notebook: $(VENV)/.notebook
	@MLX_DPO_FAST=$(if $(FULL),,1) $(FAST) $(BIN)/python -m tools.notebook

scaffold: dev
	@$(BIN)/python -m tools.scaffold "$(OUT)"

torture: dev
	@$(FAST) $(BIN)/python -m tests.faults.torture --write

check: dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONHASHSEED=0 $(BIN)/mypy  # the type it infers for a tuple's items may depend on the seed

fix: dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "Installing mlx-dpo into $(VENV) (a minute or two the first time) ..."
	@$(PIP) --editable . $(SHOWN)
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what the tests and checks need ..."
	@$(PIP) --editable '.[dev]' $(SHOWN)
	@touch $@

$(VENV)/.notebook: $(VENV)/.installed
	@echo "Installing what runs the notebook ..."
	@$(PIP) --editable '.[notebook]' $(SHOWN)
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	@echo "Installing PyTorch ..."
	@$(PIP) --editable '.[torch]' $(SHOWN)
	@touch $@

$(VENV)/.made:
	@test -d mlx_dpo/convert/. || { \
		echo "mlx_dpo/convert must be a link to ../convert, and this checkout made it a file:"; \
		echo "git config core.symlinks true && git checkout -- mlx_dpo/convert"; exit 1; }
	@if [ "$$(uname)" = Darwin ] && [ "$$(sw_vers -productVersion | cut -d. -f1)" -lt 14 ]; then \
		echo "mlx-dpo needs macOS 14 or newer, and this is $$(sw_vers -productVersion)."; exit 1; \
	fi
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
		if $$python -c '$(FITS)' 2>/dev/null; then \
			echo "Making $(VENV) with $$python ..."; \
			$$python -m venv $(VENV) || { \
				echo "$$python cannot make a virtual environment; on Debian: apt-get install python3-venv"; \
				exit 1; }; \
			touch $@; exit 0; \
		fi; \
		if [ "$$python" = "$(PYTHON)" ]; then \
			echo "PYTHON=$(PYTHON) is no Python 3.11 or newer (on a Mac, for arm64)."; exit 1; \
		fi; \
	done; \
	echo "mlx-dpo needs Python 3.11 or newer (on a Mac, for arm64), and none was found on the PATH."; \
	exit 1
