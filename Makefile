# Two commands for a machine without a GPU: `make train`, `make test`. Everything else is a convenience.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
# Installed first: with no torch present, a later open range would pull the newest build and gigabytes of CUDA packages.
TORCH  ?= torch==2.13.0
INSTALLED := $(VENV)/.installed

.PHONY: install train compare test test-fast lint format bench starter clean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The main job: DASD on the embedded model, on the real stack, at most ten minutes on two cores.
train: install
	$(RUN) -m recipes.dasd.main experiment=starter

# Every method on the embedded model, three seeds each, and the page that compares them: outputs/starter_sweep/comparison.html.
# Hours on two cores. Ctrl-C ends after the current step; the same command goes on.
compare: install
	$(RUN) -m benchmarks.starter_sweep --steps 20

test: install
	$(RUN) -m pytest

# Without the tests that start Ray.
test-fast: install
	$(RUN) -m pytest -m "not slow"

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Each benchmark prints its table with ratios measured in one run.
bench: install
	$(RUN) -m benchmarks.advantage
	$(RUN) -m benchmarks.grading
	$(RUN) -m benchmarks.divergence

# Rebuild the embedded model and its data from nothing.
starter: install
	$(RUN) -m recipes.starter.build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
