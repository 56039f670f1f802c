# The active virtual environment, or else .venv here; another one with `make check PYTHON=...`.
PYTHON ?= $(if $(VIRTUAL_ENV),python,.venv/bin/python)
NAME ?= sampling
ARGS ?=

.PHONY: help setup check test test-fast docs gallery bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(filter .venv/bin/python,$(PYTHON)) ## .venv, unless an environment is active, with the package and its tools
	$(PYTHON) -m pip install -e '.[dev]'

.venv/bin/python:
	python3 -m venv .venv

check: ## lint, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: ## all tests; some of them: make test ARGS='-n0 tests/test_gains.py'
	$(PYTHON) -m pytest $(ARGS)

test-fast: ## the tests that are not marked slow
	$(PYTHON) -m pytest -m 'not slow' $(ARGS)

docs: ## the site, in docs/_build/html; its links and anchors
	$(PYTHON) .ci/links.py
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

gallery: ## runs examples/gallery, whose pictures the site shows (minutes)
	$(PYTHON) examples/gallery/_build.py

bench: ## the quickest of benchmarks/, or another: make bench NAME=step ARGS='--mu 2'
	$(PYTHON) -m benchmarks.$(NAME) $(ARGS)

clean: ## caches and builds; data, runs and environments stay
	rm -rf build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
