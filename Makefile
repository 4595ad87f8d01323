PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-script-location --constraint constraints.txt
WORKERS ?= 2

.PHONY: demo test check bench docs setup

demo: $(READY)
	$(BIN)/trimtab fit examples/digits.py --max-drop 0.01 --hours 0.025 --out runs/digits
	@echo "The report: $(CURDIR)/runs/digits/report.html"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_docs.py

bench: $(READY)
	$(PIP) --editable '.[dev,bench]'
	OMP_NUM_THREADS=1 $(BIN)/python bench/coverage.py
	$(BIN)/python bench/main_job.py

docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_docs.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making $(VENV) and installing trimtab (a few minutes, once)"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) --editable '.[dev]'
	@touch $@
