# `make demo` and `make test` need only Python 3.10-3.13 and make; each installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow check lint docs clean

demo: $(INSTALLED)
	$(BIN)/inheritune demo --out_dir runs/demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED) # changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint: $(INSTALLED) # puts into shape what can be
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) # what in docs/ is made from the code: tables, and the notebook's outputs
	$(BIN)/python tests/documented/generated.py
	$(BIN)/python tests/documented/tour.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
