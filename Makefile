# Everything that is done often, each with one command that works alone right after a clone.
#
# VENV=DIR puts the virtual environment elsewhere; PYTHON=/path/to/python3 chooses the interpreter.
# ARGS="..." goes to pytest, to the demo or to the benchmark: make test ARGS="-k sentinel -x"

.SUFFIXES:
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-test demo test test-fast test-kubernetes test-container check format-check lint types format lock install dist bench bench-full clean

VENV ?= .venv
ARGS =
PREFIX ?= /usr/local
DESTDIR ?=
export VENV

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## Install what is missing; make the virtual environment
	@scripts/setup

setup-test:
	@scripts/setup --test

demo: setup ## Mount a store, copy 186 real tag lists in, show what that gives
	@scripts/demo $(ARGS)

test: setup-test ## Every test, real mounts included
	@scripts/test $(ARGS)

test-fast: setup ## The tests that need no mount and no patience: under a minute
	@scripts/test -m 'not mount and not slow' $(ARGS)

test-kubernetes: setup-test ## The tests on a real API server, which is built from source once: minutes
	@server=$$(tests/kubernetes/build) && kustomize=$$(tests/kubernetes/kustomize) && \
		TAGFS_KUBE_APISERVER=$$server TAGFS_KUSTOMIZE=$$kustomize scripts/test -m kubernetes $(ARGS)

test-container: setup-test ## Build the image of the Dockerfile and run it as a pod would: minutes, root only
	@image=$$(tests/container/build) && TAGFS_IMAGE=$$image scripts/test -m container $(ARGS)

check: setup-test format-check lint types test ## Format, lint, strict types, every test: the gate before a commit

format-check: setup
	"$(VENV)/bin/ruff" format --check .

lint: setup
	"$(VENV)/bin/ruff" check .

types: setup
	"$(VENV)/bin/mypy"

format: setup ## Format the code and mend what lint can mend
	"$(VENV)/bin/ruff" format .
	"$(VENV)/bin/ruff" check --fix .

lock: ## Pin the newest versions that pyproject.toml allows into requirements*.txt
	scripts/lock

install: setup ## Install for everybody on this machine: PREFIX=/usr/local; DESTDIR=DIR for a package
	@"$(VENV)/bin/python" scripts/install --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

dist: setup ## Build the wheel and the source archive into dist/
	"$(VENV)/bin/hatchling" build

bench: setup ## Measure tagfs beside its peers, which are built once; write docs/benchmarks.md: ten minutes
	@"$(VENV)/bin/python" -m bench $(ARGS)

bench-full: setup ## The same with every data set, more rounds and the longest curves: three quarters of an hour
	@"$(VENV)/bin/python" -m bench --full $(ARGS)

clean: ## Remove what the other targets made
	rm -rf "$(VENV)" dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
