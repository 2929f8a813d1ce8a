# Each target does its own set-up: it needs Python 3.11 to 3.13, git and PyPI. PYTHON=/path/to/python3 chooses one.
.DEFAULT_GOAL := help
.PHONY: help setup demo docs site publish test coverage test-all test-newest all-issue newest-issue lint bench clean
SHELL := bash
# For two cores: the tests wait half of the time.
WORKERS := 3
BENCHMARKS := serving overload log monitor ingest stages pipeline first_model
IN_VENV = . .ci/environment && PATH=$$venv/bin:$$PATH &&

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## prepare a checkout to contribute: .venv and the checks before each commit
	@.ci/setup tests
	@[ ! -e .git ] || { $(IN_VENV) pre-commit install; }

demo: ## scaffold a project into build/demo, train, deploy and serve its model, ask for a prediction
	@.ci/setup scaffold
	@.ci/demo

docs: ## write the generated parts of docs/reference from the code
	@.ci/setup tests
	@$(IN_VENV) python .ci/reference.py

site: ## build the site of docs/ into build/site
	@.ci/setup scaffold
	@.ci/site

publish: ## publish the site of a release: GH_REPO is OWNER/NAME on GitHub, TAG the release's tag
	@.ci/setup scaffold
	@SITE_URL=$$($(IN_VENV) python .ci/site.py address) .ci/site
	@$(IN_VENV) python .ci/site.py publish build/site

test: lint ## run the tests of every change (twelve to fourteen minutes on two cores)
	@$(IN_VENV) pytest -n $(WORKERS) -m "not slow" $(ARGS)

coverage: ## run the same tests, and write which lines of the engine they reach to build/coverage/html
	@.ci/setup tests
	@rm -rf build/coverage && mkdir -p build/coverage
	@-$(IN_VENV) coverage run -m pytest -n $(WORKERS) -m "not slow" $(ARGS)
	@$(IN_VENV) coverage combine --quiet && coverage html --quiet && coverage report --format=total

test-all: ## run every test
	@rm -f build/all.xml
	@$(MAKE) --no-print-directory lint
	@$(IN_VENV) uv pip install --quiet --group estimators
	@$(IN_VENV) pytest -n $(WORKERS) --junitxml build/all.xml $(ARGS)

test-newest: ## run the tests with the newest dependencies, without the template's upper bounds
	@rm -f build/newest.xml
	@NEWEST=1 .ci/setup tests
	@$(IN_VENV) pytest -n $(WORKERS) -m "not slow" --junitxml build/newest.xml $(ARGS)

all-issue: ## file what test-all found as an issue on GitHub
	@$(IN_VENV) python .ci/newest.py all

newest-issue: ## file what test-newest found as an issue on GitHub
	@$(IN_VENV) python .ci/newest.py newest

lint: ## check format, lint, types and workflows
	@.ci/setup tests
	@$(IN_VENV) ruff format --check --quiet . && ruff check --quiet . && mypy --no-error-summary && zizmor --offline --quiet --strict-collection .github template/.github

bench: ## compare speed and memory with the alternatives; BENCHMARKS="serving log" runs these two
	@.ci/setup tests
	@$(IN_VENV) export PYTHONPATH=$$PWD/packages/ondol/src:$$PWD/packages/ondol-serving/src; \
	for name in $(BENCHMARKS); do python benchmarks/bench_$$name.py $(ARGS) || failed=1; done; exit $${failed:-0}

clean: ## remove the output of the targets above
	rm -rf .venv build .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
