PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-self-training test lint clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	# An independent twin for tests, without what it brings along: its losses need torch alone.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'lightly>=1.5,<2'
	touch $(STAMP)

demo: $(STAMP)  ## the whole main job on the phantom; prints where the report is
	$(BIN)/fewbeats demo --out runs/demo

demo-self-training: $(STAMP)  ## two rounds of self-training from a teacher that errs
	$(BIN)/fewbeats demo --self-training --out runs/demo-self-training

test: $(STAMP) lint  ## lint, types and tests
	$(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
