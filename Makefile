# Commands for people and CI; `make` alone lists them. With git, make and python3, every target sets itself up: Debian
# packages, and a virtual environment in this checkout. Other files are in the checkout or, while a command runs, in a
# directory under /run (tools/scratch.py).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

SOURCES := pyproject.toml README.md LICENSE $(shell find src -name __pycache__ -prune -o -print)
CHECKED := src tests tools $(wildcard bench/*.py examples/*.py)

LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed

export PATH := $(PATH):/usr/sbin:/sbin
BUILD := $(CURDIR)/.build
SET_UP := mkdir -p "$(BUILD)" && TMPDIR="$(BUILD)"
PIP := $(SET_UP) $(BIN)/python -m pip -qq --no-cache-dir --disable-pip-version-check
SCRATCH := $(PYTHON) tools/scratch.py

.NOTPARALLEL:
.PHONY: help demo test test-runtimes sim chaos attack bench scale lint docs format lock clean base machine peers runtimes

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

demo: machine $(INSTALLED)  ## two simulated hosts, six containers, each with its own NIC (ARGS=--keep leaves it up)
	@$(SCRATCH) $(BIN)/python examples/demo.py $(ARGS)

# Tests wait more than they compute, so there are more workers than processors. The tests of a file share hosts.
PYTEST := $(SCRATCH) sh -c 'exec $(BIN)/pytest --basetemp="$$TMPDIR/t" --leftovers=fail "$$@"' pytest \
	--numprocesses=4 --dist=loadfile --no-loadscope-reorder
test: machine peers runtimes $(INSTALLED)  ## all tests, on the built wheel (ARGS=... goes to pytest; ARGS=-n0 for one after the other)
	@$(PYTEST) $(ARGS)

test-runtimes: machine peers runtimes $(INSTALLED)  ## the tests with real container runtimes only
	@$(PYTEST) tests/containers $(ARGS)

SEEDS ?= 1000
START ?= 0
SIMULATE = $(if $(SCRIPT),--script=$(SCRIPT),$(if $(SEED),--seed=$(SEED),--seeds=$(SEEDS) --start=$(START))) \
	$(if $(KEEP),--keep=$(KEEP)) $(if $(WITHOUT),--without=$(WITHOUT)) $(if $(CRASH),--crash=$(CRASH))
sim: base $(INSTALLED)  ## simulated lives of an agent (SEEDS=1000 START=0; SEED=7 for one of them)
	@PYTHONPATH=tests $(SCRATCH) $(BIN)/python -m lives $(SIMULATE) $(ARGS)

MINUTES ?= 3
chaos: machine $(INSTALLED)  ## kill agents, plugins and the cloud for minutes, and check that nothing is lost (MINUTES=3 SEED=k)
	@PYTHONPATH=tests $(SCRATCH) $(BIN)/python -m chaos --minutes=$(MINUTES) $(if $(SEED),--seed=$(SEED)) $(ARGS)

attack: machine $(INSTALLED)  ## attack agents as hostile containers, processes and clouds for three minutes, and show what held (ARGS=--short, --only=A, --list)
	@PYTHONPATH=tests $(SCRATCH) $(BIN)/python -m attack $(ARGS)

bench: machine peers $(INSTALLED)  ## measure time, calls and memory beside other plugins, or ADD and DEL beside another checkout (AGAINST=../old; ARGS=--quick, --help)
	@$(if $(AGAINST),$(MAKE) --no-print-directory -C "$(AGAINST)" .venv/.installed)
	@$(SCRATCH) $(BIN)/python -m bench $(if $(AGAINST),--against="$(AGAINST)") $(ARGS)

scale: base $(INSTALLED)  ## simulate clusters of 1 to 500 hosts on one API key (ARGS=--hosts=10, --help)
	@$(SCRATCH) $(BIN)/python -m bench.scale $(ARGS)

lint: base $(INSTALLED)  ## check formatting, rules, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports

docs: base $(INSTALLED)  ## rewrite the generated tables and pages of the documentation
	for tool in reference_tables cni_conformance defects_page; do $(BIN)/python -m tools.$$tool || exit 1; done

format: base $(LOCKED)  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Resolves anew, for every platform and Python version the project allows, and names no index.
LOCK := $(SET_UP) $(BIN)/uv pip compile -q --no-cache --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
lock: base $(LOCKED)  ## lock newer versions into requirements/
	$(PIP) install --require-hashes -r requirements/lock.txt
	$(LOCK) requirements/lock.in --output-file requirements/lock.txt
	$(LOCK) requirements/build.in --output-file requirements/build.txt
	$(LOCK) pyproject.toml --extra dev --constraint requirements/build.txt --output-file requirements/ci.txt

clean:  ## remove everything that these commands made in the checkout
	rm -rf $(VENV) .build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

base:
	@PYTHON="$(PYTHON)" tools/packages.sh python3-venv ca-certificates

machine:
	@PYTHON="$(PYTHON)" tools/packages.sh python3-venv ca-certificates iproute2 nftables iputils-ping procps kmod
	@$(SCRATCH) tools/abilities.sh

peers:
	@PYTHON="$(PYTHON)" tools/packages.sh containernetworking-plugins

runtimes:
	@PYTHON="$(PYTHON)" tools/packages.sh busybox-static containerd runc podman

# Two packages of the official clients come as source only: what builds them is installed first, hashes checked.
# `--use-pep517` matters: their old `setup.py install` writes into /etc and the home directory.
$(LOCKED): requirements/build.txt requirements/ci.txt
	@echo "Setting up $(VENV) with the locked versions; this takes about a minute."
	@$(SET_UP) $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements/ci.txt
	@touch $@

$(INSTALLED): $(LOCKED) $(SOURCES)
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
