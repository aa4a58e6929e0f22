# Everything a checkout needs, from an empty machine with Python 3.11 or newer and make.
#
#   make demo     a hub and eight agents on this machine, updating each other
#   make test     the whole test suite       (ARGS='-k journal -n 0' is handed to pytest)
#   make check    lint, types, test: what CI runs
#   make fuzz     every decoder and the local API, guided by coverage (TIME=60 seconds each, TARGETS='wire stun')
#   make bench    the benchmarks, with their method and figures
#   make lab      every pair of NATs and every scenario of the laboratory: some 25 minutes, as root
#   make docs     write the tables in docs/ that are made from the source
#   make lock     resolve requirements/constraints.txt anew
#
# PYTHON=… names another interpreter, VENV=… another place for the virtual environment.

VENV ?= .venv
CONSTRAINTS ?= requirements/constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The first of these that runs and is new enough (a pyenv shim may exist and not run).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	if "$$candidate" -c '$(NEW_ENOUGH)' 2>/dev/null; then echo "$$candidate"; break; fi; done)

.DELETE_ON_ERROR:
.NOTPARALLEL: # two pip runs in one environment spoil it
.PHONY: help demo test fuzz lint types bench check docs lock clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.run
	@$(BIN)/driftseed demo $(ARGS)

bench: $(VENV)/.run
	@$(BIN)/driftseed bench $(ARGS)

.PHONY: lab
lab: $(VENV)/.dev
	DRIFTSEED_LAB_WHOLE=1 $(BIN)/python -m pytest -n 0 $(wildcard tests/test_lab_*.py) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

TIME ?= 60
fuzz: $(VENV)/.dev
	$(BIN)/python fuzz/run.py --all --time $(TIME) $(TARGETS)

check: lint types test

docs: $(VENV)/.dev
	$(BIN)/python tests/support_docs.py

# A stamp is written only when its step is done, so that an interrupted one is done again.
$(VENV)/.created:
	@if [ -z '$(PYTHON)' ]; then \
		echo 'driftseed needs Python 3.11 or newer, and none was found.' >&2; \
		echo 'Install it (Debian 12: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11' >&2; \
		exit 1; \
	fi
	@if ! $(PYTHON) -c '$(NEW_ENOUGH)'; then \
		echo 'driftseed needs Python 3.11 or newer; $(PYTHON) does not run or is older.' >&2; \
		exit 1; \
	fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo 'This Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv' >&2; \
		exit 1; \
	fi
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.created pyproject.toml $(wildcard $(CONSTRAINTS))
	$(PIP) install $(if $(wildcard $(CONSTRAINTS)),-c $(CONSTRAINTS)) -e '.[hub]'
	@touch $@

# The development environment holds all that the demo needs, so it fulfils that stamp too.
$(VENV)/.dev: $(VENV)/.created pyproject.toml $(wildcard $(CONSTRAINTS))
	$(PIP) install $(if $(wildcard $(CONSTRAINTS)),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $(VENV)/.run $@

lock:
	$(MAKE) --no-print-directory VENV=build/lock CONSTRAINTS= build/lock/.dev
	@mkdir -p requirements
	@{ echo '# What CI installs, written by "make lock". pyproject.toml says what is needed and why.'; \
	   build/lock/bin/python -m pip --disable-pip-version-check freeze --all --exclude-editable \
	   | grep -v '^pip=='; } > requirements/constraints.txt
	@rm -rf build/lock

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
