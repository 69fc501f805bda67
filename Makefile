# `make demo` and `make test` do all the set-up on a fresh machine; everything else is for developers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint unit integration faults bench docs clean

install: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: install
	$(BIN)/headwater run configs/quickstart.yaml

test: install lint unit integration faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: install
	$(BIN)/pytest -m "not integration and not faults and not readme" --cov --cov-report=term-missing:skip-covered

integration: install
	$(BIN)/pytest -m "integration or readme"

faults: install
	$(BIN)/pytest -m faults

bench: install
	$(BIN)/python -m tests.benchmarks

docs: install
	$(BIN)/headwater stages --markdown > docs/stages.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
