# Every target does its own set-up first; a second run finds it done.
PYTHON ?= python3
PORT ?= 8000
APP ?= deployments/app.yaml
EXTRAS ?= cpu
BIN := .venv/bin

.PHONY: help serve test check format setup demo bench clean

help:  ## Say what there is to make.
	@sed -nE 's/^([a-z]+):.*  ## /make \1\t/p' Makefile

serve: .venv/.installed-$(EXTRAS)  ## Start the cluster on http://127.0.0.1:$(PORT); Ctrl-C ends it.
	@exec $(BIN)/prism serve $(APP) --port $(PORT)

test: .venv/.installed-$(EXTRAS)-dev  ## Run every test.
	$(BIN)/pytest

check: .venv/.installed-$(EXTRAS)-dev  ## Format, lint, types, import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-$(EXTRAS)-dev  ## Put the code into shape.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/.installed-$(EXTRAS)-dev  ## Everything a developer needs.

demo: .venv/.installed-$(EXTRAS)-dev  ## Train the demo checkpoint anew (under an hour on two cores).
	$(BIN)/python -m cluster.demo.training.train

bench: .venv/.installed-cpu-dev .venv-bench/.installed  ## Measure Prism beside vLLM, Ray Serve LLM and vllm-router (BENCH="--only text").
	$(BIN)/python -m loadtest.bench $(BENCH)

clean:  ## Remove the environments.
	rm -rf .venv .venv-bench

.venv/.installed-$(EXTRAS): pyproject.toml deployments/local/install.py
	@echo "Setting up .venv ($(EXTRAS)); the first time takes a few minutes."
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Prism needs Python 3.11 or newer; set PYTHON=.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python deployments/local/install.py --extras $(EXTRAS)
	@touch $@

.venv-bench/.installed: loadtest/bench/peers.txt deployments/local/install.py
	@echo "Setting up .venv-bench, the peers' environment; it takes a few minutes."
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python deployments/local/install.py --requirements loadtest/bench/peers.txt
	@touch $@

.venv/.installed-$(EXTRAS)-dev: .venv/.installed-$(EXTRAS)
	@echo "Adding what the tests need."
	@$(BIN)/python deployments/local/install.py --extras $(EXTRAS),dev
	@touch $@
