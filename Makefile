# What a developer types; `make help` lists it. Nothing has to be installed by hand.
#
#   PYTHON=python3.12   the Python that makes .venv, 3.10 to 3.13
#   JOBS=4              how many processes run the tests
#   ARGS='-m slow'      more arguments for pytest

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: bench chromium clean demo help lab lint promtool strace test

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Without .pyc files every process takes three to four times as long to start.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

help:  ## list these targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(INSTALLED)  ## train on January's flights, deploy, validate, watch July drift
	@$(BIN)/python notebooks/demo.py

lab: $(INSTALLED)  ## open JupyterLab on notebooks/
	@$(BIN)/python -m jupyterlab --ServerApp.root_dir=notebooks $$(test $$(id -u) != 0 || echo --allow-root)

test: $(INSTALLED) chromium promtool strace  ## run the tests, the browser's included
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --timeout 300 $(ARGS)

lint: $(INSTALLED)  ## check style, types and the direction of imports
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@find notebooks -name '*.ipynb' -not -path '*/.*' -not -path '*/nbdeploy-reports/*' -not -path '*/*-story/*' -print0 \
	    | xargs -0r $(BIN)/nbstripout --keep-id --verify

bench: $(INSTALLED)  ## run every benchmark
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove all that these targets made
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@find . \( -name .ipynb_checkpoints -o -name nbdeploy-reports -o -name '*-story' \) -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	    echo '$(PYTHON) is not Python 3.10 to 3.13 with venv. Install it, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing nbdeploy and its tools into $(VENV), once' >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --editable '.[lab,demo,dev,explain,frameworks]'
	@touch $@

chromium:
	@for name in "$${NBDEPLOY_CHROMIUM:-chromium}" chromium-browser google-chrome; do \
	    if command -v "$$name" >/dev/null; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'Installing Chromium for the browser tests' >&2; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq >/dev/null; \
	    apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core fonts-liberation >/dev/null; \
	else \
	    echo 'The browser tests need Chromium: install the package chromium, or name the program in NBDEPLOY_CHROMIUM.' >&2; \
	    echo "The others run without it: $(BIN)/python -m pytest -m 'not browser and not slow'" >&2; \
	    exit 1; \
	fi

# The crash tests kill a process at each of its system calls, the log's move the clock.
strace:
	@for name in strace faketime; do \
	    if [ "$$(uname)" = Linux ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v $$name >/dev/null; then \
	        export DEBIAN_FRONTEND=noninteractive; apt-get update -qq >/dev/null; \
	        apt-get install -y -qq --no-install-recommends $$name >/dev/null; fi; done

# Prometheus' own tool checks the exported rules. It comes from Debian's package without its server, which apt would start.
promtool: $(INSTALLED)
	@if [ "$$(uname)" = Linux ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v promtool >/dev/null \
	    && [ ! -x $(BIN)/promtool ]; then \
	    echo 'Fetching promtool for the tests of exported rules' >&2; \
	    folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	    (cd "$$folder"; apt-get update -qq >/dev/null; apt-get download -qq prometheus >/dev/null 2>&1; \
	        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool) \
	    && install -m 755 "$$folder/usr/bin/promtool" $(BIN)/promtool \
	    || echo 'There is no promtool: the tests that need it are skipped.' >&2; fi
