# `make demo` and `make test` set everything up on a fresh machine; the other targets are for developers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

FAST := not integration and not faults and not readme and not long
FITS := import sys; sys.exit(sys.version_info[:2] != (3, 11))

.PHONY: install venv demo test lint unit integration faults long bench docs clean

install: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@$(MAKE) --no-print-directory venv
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[dev]"
	@touch $(STAMP)

# An environment that is incomplete or belongs to another Python is created again.
venv:
	@$(BIN)/python -c 'import pip; $(FITS)' 2>/dev/null || for python in $(PYTHON) python3 none; do \
	    if [ $$python = none ]; then \
	        echo "Headwater runs on Python 3.11, and neither $(PYTHON) nor python3 is one:" >&2; \
	        echo "  make install PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    elif $$python -c '$(FITS)' 2>/dev/null; then \
	        exec $$python -m venv --clear $(VENV); \
	    fi; \
	done

demo: install
	$(BIN)/headwater run configs/quickstart.yaml

# Two suites at a time, the longest first, because one often waits while another computes. The output of
# a suite appears in one piece when it ends.
test: install
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target integration lint unit faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Coverage is measured only for the engine, by its own tests.
unit: install
	$(BIN)/pytest -m "$(FAST)" tests/pipeline --cov --cov-report=term-missing:skip-covered
	$(BIN)/pytest -m "$(FAST)" --ignore=tests/pipeline

integration: install
	$(BIN)/pytest -m "(integration or readme) and not long"

faults: install
	$(BIN)/pytest -m faults

# Kills every stage of a small quickstart, cleans lines of 50 MB and inputs larger than memory; too long to
# run for each change.
long: install
	$(BIN)/pytest -m long

bench: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks

docs: install
	$(BIN)/headwater stages --markdown > docs/stages.md
	$(BIN)/python -m stages.text.rules.catalogue > docs/rules.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
