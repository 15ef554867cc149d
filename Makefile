# SPDX-License-Identifier: Apache-2.0
# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. They need python3 and make.
# What they install goes into .venv and .build; `make clean` removes both.

PYTHON ?= python3
# How many processes share the tests out among them, file by file. One that ends ends the run: nobody waits for it.
JOBS ?= 2
SHARED := -n $(JOBS) --dist loadfile --max-worker-restart=0
BIN := .venv/bin
UV := .build/uv/bin/uv

.PHONY: help setup demo test test-fast bench lint docs format clean

help:
	@echo "make demo       a photograph through two services that cannot share an environment"
	@echo "make test       every test"
	@echo "make test-fast  the tests that take seconds"
	@echo "make bench      atoll beside its peers; writes benchmarks/results and docs/performance.md"
	@echo "make lint       ruff, mypy --strict, pyright on the typing tests, import-linter"
	@echo "make docs       write docs/reference.md anew from the docstrings"

# uv, from the package index, in an environment of its own. Some distributions ship python3 without ensurepip; then a
# pip that is there does it.
$(UV):
	@mkdir -p .build
	@$(PYTHON) -m venv .build/uv >/dev/null 2>&1 || \
	 { rm -rf .build/uv && $(PYTHON) -m venv --without-pip .build/uv && $(PYTHON) -m pip --version >/dev/null 2>&1; } || \
	 { rm -rf .build/uv; echo "$(PYTHON) has neither ensurepip nor pip; install one of them (Debian: apt install python3-venv)"; exit 1; }
	@if .build/uv/bin/python -m pip --version >/dev/null 2>&1; \
	 then .build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	 else $(PYTHON) -m pip --disable-pip-version-check --python .build/uv/bin/python install --quiet uv; fi

# The first python3 that is new enough; where there is none, uv brings one.
$(BIN)/python: $(UV)
	@$(UV) venv --quiet --allow-existing --python ">=3.11" .venv

.build/demo.ready: pyproject.toml | $(BIN)/python
	@$(UV) pip install --quiet --python $(BIN)/python -e ".[cli]" --group demo
	@touch $@

.build/test.ready: pyproject.toml | $(BIN)/python
	@$(UV) pip install --quiet --python $(BIN)/python -e ".[cli]" --group demo --group test --group lint
	@touch $@ .build/demo.ready

setup: .build/test.ready

demo: .build/demo.ready
	@$(BIN)/python examples/photo/demo.py

test: .build/test.ready
	$(BIN)/python -m pytest $(SHARED)

test-fast: .build/test.ready
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not stress and not network"

bench: .build/test.ready
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

lint: .build/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/typing

format: .build/test.ready
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

docs: .build/test.ready
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .build
