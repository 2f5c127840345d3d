# Two commands on a machine that has Python >= 3.11 with pip: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORAGE ?= $(CURDIR)/runs

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart test test-unit test-all test-engine test-optuna-4 faults fuzz check fix

help:
	@echo "make quickstart  set up $(VENV) and train an adversarial autoencoder on the shipped digits"
	@echo "make install     only set up $(VENV): source $(BIN)/activate, then aae-dist"
	@echo "make test        all tests but the slow ones"
	@echo "make test-unit   those that take milliseconds"
	@echo "make test-all    all tests"
	@echo "make faults      faults injected for real; writes the table of docs/reliability.md"
	@echo "make fuzz        mutated and made-up inputs, FUZZ_CASES=500 per test; minutes"
	@echo "make test-engine the tests where Ray and wandb are not installed"
	@echo "make test-optuna-4  Optuna's tests with its former major version"
	@echo "make test-cluster  pods played in namespaces of this machine (root; 15 minutes)"
	@echo "make check       format, lint, types, direction of imports, spelling"
	@echo "make docs        the documentation site, in site/"
	@echo "make notebooks   execute the notebooks of the site again"
	@echo "make fix         format, and repair what the linter can"

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

quickstart: install
	$(BIN)/aae-dist train configs/quickstart.yaml run.storage=$(STORAGE)

# Two test processes of one thread each: a test file stays in one process. Ray installs handlers and
# threads of its own in the process it is used in, and wants the machine: its tests run apart, on one
# cluster for all of them. A process that joins and leaves one many times may die in Ray's code, so the
# slow ones have a process of their own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n 2 --dist loadfile

test: dev $(VENV)/.compiled
	$(PYTEST) $(PARALLEL) -m "not slow and not ray"
	$(PYTEST) -m "ray and not slow"

test-unit: dev
	$(PYTEST) $(PARALLEL) -m "not run and not distributed and not ray and not slow"

test-all: dev $(VENV)/.compiled
	$(PYTEST) $(PARALLEL) -m "not ray"
	$(PYTEST) -m "ray and not slow"
	$(PYTEST) -m "ray and slow"

# Everything but the launcher on Ray and the W&B sink must run where neither is installed.
ENGINE := $(VENV)-engine
test-engine: dev
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(ENGINE)
	$(BIN)/uv pip install -q --python $(ENGINE)/bin/python --require-hashes -r requirements/dev.lock
	$(BIN)/uv pip uninstall -q --python $(ENGINE)/bin/python ray wandb optuna pyarrow
	$(BIN)/uv pip install -q --python $(ENGINE)/bin/python --no-deps --no-build-isolation -e .
	OMP_NUM_THREADS=1 $(ENGINE)/bin/python -m pytest $(PARALLEL) -m "not ray and not slow"

# Optuna 5 is locked; sweeps promise the same with 4.
OPTUNA_4 := $(VENV)-optuna-4
test-optuna-4: dev
	$(BIN)/uv pip install -q --target $(OPTUNA_4) --no-deps 'optuna<5'
	PYTHONPATH=$(OPTUNA_4) $(PYTEST) -k optuna tests/tune/test_tune_parts.py

# Needs root: pods are network and mount namespaces of this machine.
test-cluster: dev $(VENV)/.compiled
	$(PYTEST) -m cluster -s tests/played

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python tools/check_words.py

# The site in site/, without a warning; nothing of it is fetched while reading.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Executes docs/notebooks again, from tools/notebooks.
notebooks: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebooks.py

faults: dev
	FAULTS_TABLE=docs/reliability.md $(BIN)/python -m pytest tests/faults

# One process: its peaks of memory are those of the cases, and it counts them. An input that ends the
# process lies in .fuzz-last.
FUZZ_CASES ?= 500
fuzz: dev
	FUZZ_CASES=$(FUZZ_CASES) FUZZ_LAST=$(CURDIR)/.fuzz-last OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/fuzz --timeout=3600
	@rm -f .fuzz-last

fix: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The files below stand for steps that are done, so that a second `make` starts at once.
# Where Python came without ensurepip, its own pip installs into the environment.
$(VENV)/.tools: requirements/build.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aae-dist needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	if $(BIN)/python -m pip --version >/dev/null 2>&1; then pip="$(BIN)/python -m pip"; \
	else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	$$pip --disable-pip-version-check install -q --require-hashes -r requirements/build.lock
	touch $@

$(VENV)/.installed: $(VENV)/.tools requirements/main.lock pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/main.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/dev.lock
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev requirements/docs.lock
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements/docs.lock
	touch $@

# As in the image: played pods cannot write bytecode, and Ray without it took 4 minutes to start.
$(VENV)/.compiled: $(VENV)/.installed-dev
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $@
