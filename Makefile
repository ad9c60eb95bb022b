# `make` prints this list. Everything runs in .venv, which `make install` creates.
PYTHON ?= python3
BIN := .venv/bin
# Two steps of installing: the package with what it needs to run, and the tools of its developers.
PACKAGE := .venv/.package
STAMP := .venv/.installed
# Bytecode is written at the first import instead, of the modules that are imported; where the
# environment forbids that, as in many container images, every process would compile all of them.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
# Tokenizers that fork warn otherwise.
export TOKENIZERS_PARALLELISM ?= false
# Threads that wait sleep, so that other programs may run; where one is set, it holds.
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)
export OMP_WAIT_POLICY := passive
endif

.DEFAULT_GOAL := help
.PHONY: help install demo replicate test check families lint docs notebooks bench clean

help:  ## print this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install ntkprobe with all that tests, docs and lint need

$(PACKAGE): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ntkprobe needs Python 3.11 or newer; $(PYTHON) is older. Try: make demo PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "This Python has no venv module. On Debian or Ubuntu: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt -e .
	@touch $@

$(STAMP): $(PACKAGE)
	$(PIP) -c constraints.txt -e ".[dev,docs,lmeval]"
	@touch $@

demo: $(PACKAGE)  ## install the package alone, then train, measure and draw on the embedded model
	$(BIN)/ntkprobe demo

replicate: install  ## the paper's experiment: make replicate MODEL=FILE.gguf DATA=DIR (days on 2 cores)
	$(BIN)/ntkprobe replicate --model $(MODEL) --data $(DATA)

test: install  ## the quick suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist worksteal

check: install lint  ## lint and the slow rest of the tests: notebooks, docs, faults
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow -n auto --maxprocesses 4 --dist worksteal

families: install  ## the kernel and refusals of every causal family of the installed transformers, tiny
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m families -n auto --maxprocesses 4 --dist worksteal

lint: install  ## format, lint, types, import levels
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## build the pages of docs/ and the reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: install  ## run the notebooks and write their .ipynb
	$(BIN)/python notebooks/regenerate.py

bench: install  ## every benchmark, which writes its table beside itself
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove .venv, runs/, site/ and caches
	rm -rf .venv runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
