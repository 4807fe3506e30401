# From a fresh checkout to a trained model (make demo) and to a tested one (make test).
# PYTHON is the interpreter that the virtual environment is made of, VENV where it goes.

.POSIX:
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: help demo test data lint wheel benchmark clean

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
PEERS = .venv-peers
BENCHMARK =

help:
	@echo 'make demo    install, bring the encoder and the data, train, evaluate, predict'
	@echo 'make test    install what developers need, bring the data, run every test'
	@echo 'make data    bring the encoder and the data alone'
	@echo 'make lint    check style, format and types'
	@echo 'make wheel   build the wheel into dist/'
	@echo 'make benchmark   measure beside KerasHub and Hugging Face: benchmarks/README.md'
	@echo 'make clean   delete what these made, runs/ excepted'

demo: $(VENV)/.installed data
	$(BIN)/bertkit train examples/binary.yaml --overwrite
	printf '%s\n' 'A moving film, and a very funny one.' 'Two hours that I would like to have back.' \
	    | $(BIN)/bertkit predict runs/film-sentiment

test: $(VENV)/.installed-dev data
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The script brings nothing twice, so it may run each time; it needs no more than pip.
data: $(VENV)/pyvenv.cfg
	$(BIN)/python scripts/fetch_demo.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy scripts/check_resume.py scripts/check_tokenizer.py scripts/derive_data.py \
	    scripts/derive_unicode.py scripts/fetch_demo.py
	$(BIN)/mypy benchmarks

wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

# BENCHMARK holds options, as in make benchmark BENCHMARK='--parts training --repeats 1'.
benchmark: $(VENV)/.installed $(PEERS)/.installed data
	$(BIN)/python -m benchmarks --peers $(PEERS)/bin/python $(BENCHMARK)

clean:
	rm -rf $(VENV) $(PEERS) .cache dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The build backend comes first, so that its version too is a pinned one.
$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt hatchling editables
	$(PIP) install -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# What bertkit is compared with, apart from it.
$(PEERS)/.installed: benchmarks/requirements-peers.txt
	$(MAKE) VENV=$(PEERS) $(PEERS)/pyvenv.cfg
	$(PEERS)/bin/python -m pip --disable-pip-version-check install -r benchmarks/requirements-peers.txt
	touch $@

# Debian keeps ensurepip in python3-venv. Without it, a pip outside can install one inside.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	    echo '$(PYTHON) is not Python 3.10 to 3.13: name another, as in make PYTHON=python3.11' >&2; \
	    exit 2; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    set -x; $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    set -x; $(PYTHON) -m venv --without-pip $(VENV) \
	        && $(PYTHON) -m pip --python $(BIN)/python install pip; \
	else \
	    echo '$(PYTHON) has neither ensurepip nor pip: apt install python3-venv' >&2; exit 2; \
	fi
