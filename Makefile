# Everything a person does here. `make demo` and `make test` need nothing else first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup services demo serve test check format bench docs lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHON

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## Make .venv from requirements.lock (PYTHON=python3.12 takes that one)

$(STAMP): requirements.lock pyproject.toml
	@bash scripts/setup.sh
	@touch $@

services: setup ## Put real servers for the tests into .services/ (needs Go; once, a few minutes)
	@bash tests/docker/install.sh || [ "$${CI:-}" != true ]
	@$(BIN)/python -m tests.services.install

demo: setup ## Start a service, export and quantise a real model over HTTP, show what came out
	@$(BIN)/optimizing demo

serve: setup ## Start the service on port 8000
	@$(BIN)/optimizing serve

test: setup ## Run the tests (SLOW=1 the slow ones too; ARGS="-k name" more of pytest's words)
	$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

check: setup ## Lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Run every script in benchmarks/
	@for script in benchmarks/[a-z]*.py; do name=$$(basename "$$script" .py); echo "== $$name"; $(BIN)/python -m "benchmarks.$$name"; done

docs: setup ## Write the generated parts of docs/ and .env.example anew
	$(BIN)/python scripts/generate_docs.py

lock: ## Resolve requirements.lock anew from pyproject.toml (UPGRADE=1 takes newer versions)
	bash scripts/uv.sh pip compile --quiet --universal --python-version 3.10 --no-python-downloads --extra dev \
	  --generate-hashes --no-header --no-annotate $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock

clean: ## Remove what was made here, .venv included
	rm -rf $(VENV) .uv .services build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
