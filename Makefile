# Every target makes .venv when it is missing and installs what it needs; a repeated call costs nothing.
# PYTHON=python3.12 chooses the interpreter, JOBS=4 the test processes, PYTEST_ARGS="-k sns" what pytest gets in addition.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
RACE_ARGS ?=
PIP_VERSION := 25.3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint docs bench race study clean

help:
	@echo "make demo   run examples/colour_transfer.py"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make bench  run the benchmarks quickly, and the race with POT"
	@echo "make race   race with every peer, for hours; RACE_ARGS=--quick for minutes"
	@echo "make study  run the studies of examples/, minutes each, with pictures in build/study"
	@echo "make clean  remove caches, compiled kernels and build products"

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/colour_transfer.py

# Two threads in the kernels, so that their threaded paths are tested; one everywhere else, as the tests run side by side.
test: $(VENV)/test.stamp
	OTBILEVEL_NUM_THREADS=2 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/bench.stamp
	$(BIN)/asv machine --yes > /dev/null
	$(BIN)/asv run --quick --python=same --show-stderr
	$(BIN)/python benchmarks/compare_ot.py --quick

race: $(VENV)/race.stamp
	$(BIN)/python benchmarks/compare_ot.py $(RACE_ARGS)
	$(BIN)/python benchmarks/compare_curvature.py

study: $(VENV)/study.stamp
	mkdir -p build/study
	$(BIN)/python examples/study_spectra.py --out build/study
	$(BIN)/python examples/study_hyper_cleaning.py --out build/study
	$(BIN)/python examples/study_bilevel_toys.py --out build/study
	$(BIN)/python examples/study_svm.py --out build/study
	$(BIN)/python examples/study_constrained_cleaning.py --out build/study
	$(BIN)/python examples/study_federated.py --out build/study

# numba keeps its compiled kernels (*.nbi, *.nbc) in __pycache__.
clean:
	rm -rf build dist docs/_build docs/gallery docs/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -prune -o -name '*.nb[ic]' \) -exec rm -rf {} +

# Stamps: made anew when pyproject.toml changes.
$(VENV)/pip.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=/path/to/it ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==$(PIP_VERSION)
	touch $@

$(VENV)/%.stamp: pyproject.toml | $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet --editable . --group $*
	touch $@
