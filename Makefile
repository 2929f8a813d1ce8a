# Each target does its own set-up: a machine with Python 3.11 to 3.13 and git is enough.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-all bench lint clean
export UV_COMPILE_BYTECODE := 1
export UV_SYSTEM_CERTS := 1
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV
BIN := .venv/bin

demo: build/tools  ## Make a project in build/demo, train, deploy and ask it for a prediction.
	$(BIN)/python .ci/demo.py

test: build/environment  ## What fits in thirty minutes on two cores.
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: build/environment  ## Everything.
	$(BIN)/python -m pytest -n 2

bench: build/environment  ## Speed and memory, side by side (needs wrk for serving).
	$(BIN)/python benchmarks/bench_pipeline.py
	$(BIN)/python benchmarks/bench_serving.py

lint: build/environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github template/.github

build/tools: .ci/setup
	.ci/setup tools

build/environment: build/tools pyproject.toml template/pyproject.toml.jinja
	.ci/setup environment

clean:
	rm -rf build .venv
