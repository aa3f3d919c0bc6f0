# Every target does its own set-up first; a second run finds it done.
PYTHON ?= python3
PORT ?= 8000
APP ?= deployments/app.yaml
EXTRAS ?= cpu
BIN := .venv/bin
INSTALLER := deployments/local/install.py deployments/local/torchvision_cure.py deployments/local/uv.txt

.PHONY: help serve test check format setup lock docs wheel demo bench clean

help:  ## Say what there is to make.
	@sed -nE 's/^([a-z]+):.*  ## /make \1\t/p' Makefile

serve: .venv/.installed-$(EXTRAS)  ## Start the cluster on http://127.0.0.1:$(PORT); Ctrl-C ends it.
	@exec $(BIN)/prism serve $(APP) --port $(PORT)

# The quick half comes first, in one process per core, so torch gets one thread in each. Coverage is of that half only,
# and not of the processes that its tests start.
test: .venv/.installed-$(EXTRAS)-dev  ## Run every test.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile tests/unit tests/k8s tests/fuzz --cov --cov-report=
	@echo "Lines of cluster and deployments that these tests run in their own process: $$($(BIN)/coverage report --format=total) %"
	$(BIN)/pytest --ignore=tests/unit --ignore=tests/k8s --ignore=tests/fuzz --durations=20

# pre-commit and CI run this too.
check: .venv/.installed-$(EXTRAS)-dev  ## Format, lint, types, import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-$(EXTRAS)-dev  ## Put the code into shape.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/.installed-$(EXTRAS)-dev  ## Everything a developer needs.

lock: .venv-lock/.installed  ## Write the lock files (LOCK=--upgrade raises versions).
	@.ci/lock $(LOCK)

docs: .venv/.installed-$(EXTRAS)-dev  ## Write the pages of docs/ that are made from code.
	$(BIN)/python -m tests.helpers.config_reference

wheel: .venv/.installed-$(EXTRAS)  ## Build the wheel into dist/.
	@rm -rf build dist
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

demo: .venv/.installed-$(EXTRAS)-dev  ## Train the demo checkpoint again (under an hour on two cores).
	$(BIN)/python -m cluster.demo.training.train

bench: .venv/.installed-cpu-dev .venv-bench/.installed  ## Measure Prism next to vLLM, Ray Serve LLM and vllm-router (BENCH="--only text").
	$(BIN)/python -m loadtest.bench $(BENCH)

clean:  ## Remove the environments.
	rm -rf .venv .venv-bench .venv-lock

.venv/.installed-$(EXTRAS): pyproject.toml requirements-$(EXTRAS).lock requirements-torch-cpu.txt $(INSTALLER)
	@$(call set_up,$(EXTRAS))
	@touch $@

# The developers' lock file holds everything that serving needs, so serving finds its set-up done as well.
.venv/.installed-$(EXTRAS)-dev: pyproject.toml requirements-$(EXTRAS)-dev.lock requirements-torch-cpu.txt $(INSTALLER)
	@$(call set_up,$(EXTRAS)$(comma)dev)
	@touch .venv/.installed-$(EXTRAS) $@

comma := ,
define set_up
echo "Setting up .venv ($(1)); the first time takes a minute or more."
$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Prism needs Python 3.11 or newer; set PYTHON=.")'
test -x $(BIN)/python || $(PYTHON) -m venv .venv
$(BIN)/python deployments/local/install.py --extras $(1)
endef

.venv-bench/.installed: loadtest/bench/peers.txt requirements-torch-cpu.txt $(INSTALLER)
	@echo "Setting up .venv-bench, the peers' environment; it takes a few minutes."
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python deployments/local/install.py --requirements loadtest/bench/peers.txt
	@touch $@

.venv-lock/.installed: deployments/local/uv.txt
	@test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement deployments/local/uv.txt
	@touch $@

