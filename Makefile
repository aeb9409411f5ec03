# Needs make, pip and Python 3.11 or newer; the model tests also want a C++ compiler.
# Variables: PYTHON=python3.12  VENV=.venv  LLM=0 (leave the model tests out)  JOBS=3 (test processes)  ARGS="…" (for the command run)

SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
LLM ?= auto
ARGS ?=
JOBS ?= 3

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PACKAGES := bus agents plans bridge tools

.PHONY: help demo test quick smoke check corruptions prefixes fail-at-n kill-at-steps power-cuts orders drops lint bench sim chaos fuzz bundle llm-wheel typing clean

help: ## print this help
	@echo "rigbus: a message bus for agents on a GPU rig"
	@echo
	@awk -F ':[^#]*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@sed -n '2s/^# /  /p' Makefile

demo: $(VENV)/.base ## a private rig in a temporary folder: a plan, a killed worker, a report
	@$(BIN)/rigbus demo $(ARGS)

test: $(VENV)/.test ## the whole suite; builds llama-cpp-python beside it for the model tests
	@LLM=$(LLM) JOBS=$(JOBS) bash tools/scripts/test.sh $(VENV) $(ARGS)

quick: $(VENV)/.test ## the tests that start no rig
	@$(BIN)/python -m pytest $(SPREAD) -m "not live and not llm" $(ARGS)

smoke: $(VENV)/.test ## quick, and the few live tests that every Python version runs
	@$(BIN)/python -m pytest $(SPREAD) -m "smoke or not live and not llm" $(ARGS)

check: lint quick ## ruff, mypy --strict and the quick tests

corruptions: $(VENV)/.test ## 5,000 corruptions of a database and its log: noticed, or without effect
	@RIGBUS_TEST_CORRUPTIONS=5000 $(BIN)/python -m pytest -s tests/bus/store/test_losses.py -k corruption $(ARGS)

orders: $(VENV)/.test ## all 24 orders in which broker, brain, worker and bridge can start
	@RIGBUS_TEST_ORDERS=24 $(BIN)/python -m pytest -s tests/live/test_orders.py $(ARGS)

drops: $(VENV)/.test ## a thousand drops by slow writers, the bridge killed and the share away at random; RIGBUS_TEST_SEED=N
	@RIGBUS_TEST_DROPS=$${RIGBUS_TEST_DROPS:-1000} $(BIN)/python -m pytest -s --timeout 3600 tests/live/test_drops.py $(ARGS)

prefixes: $(VENV)/.test ## a state folder, repair, backup, spool cut off behind each system call, over longer runs
	@RIGBUS_TEST_PREFIXES=$(or $(LONGER),6) $(BIN)/python -m pytest -s --timeout 3600 tests/bus/store/test_crash_prefixes.py -k behind $(ARGS)

fail-at-n: $(VENV)/.test ## each system call of broker, backup, repair, spool, staging and intake fails, in each way
	@RIGBUS_TEST_FAILING=all $(BIN)/python -m pytest -s --timeout 3600 tests/bus/store/test_fail_at_n.py $(ARGS)

kill-at-steps: $(VENV)/.test ## kill -9 of broker, worker, brain and bridge at each named step of a plan
	@RIGBUS_TEST_STEPS=all $(BIN)/python -m pytest -s --timeout 600 tests/live/test_kill_at_steps.py $(ARGS)

power-cuts: $(VENV)/.test ## ten power cuts of a whole rig at work
	@RIGBUS_TEST_CUTS=10 $(BIN)/python -m pytest -s --timeout 300 tests/live/test_kill_all.py $(ARGS)

fuzz: $(VENV)/.test ## what reads the bytes of others, under atheris; ARGS="--seconds 600 wire plan"
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --editable '.[fuzz]' || true
	@PYTHONPATH=tests $(BIN)/python -m fuzzing $(ARGS)

lint: $(VENV)/.dev typing ## ruff check, ruff format --check, mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@MYPYPATH=build/typing $(BIN)/mypy --config-file pyproject.toml -m rigbus $(PACKAGES:%=-p rigbus.%)

bench: $(VENV)/.base ## every bench on this machine (about 4 minutes), into docs/benchmarks.md
	@$(BIN)/rigbus bench all --write docs/benchmarks.md $(ARGS)

sim: $(VENV)/.test ## histories of the simulated rig by their seeds; ARGS="--seeds 10000 --jobs 2", or "--seed N --trace"
	@PYTHONPATH=tests $(BIN)/python -m simulator $(ARGS)

chaos: $(VENV)/.test ## kills of a real rig's processes at random, and a judge; ARGS="--seed N --rounds 1000 --tasks 100000 --json FILE"
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

bundle: $(VENV)/.base ## dist/rigbus-bundle: wheels and install.sh for a machine without a network
	@bash tools/scripts/bundle.sh $(VENV)

llm-wheel: $(VENV)/.test ## build llama-cpp-python once and keep its wheel (10 minutes on two cores)
	@bash tools/scripts/llm_wheel.sh $(VENV)

typing: build/typing/rigbus ## build/typing/rigbus, the link by which type checkers find the package

clean: ## remove what make has made here: environments, build/, dist/ and caches
	@rm -rf .venv .venv-3.* build dist rigbus.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The repository's root is the package `rigbus`: a checker needs a folder that holds it under this name.
build/typing/rigbus:
	@mkdir -p build/typing
	@ln -sfn ../.. $@

# Stamps: a second make installs nothing. The editable install sees every change but those of pyproject.toml.
$(VENV)/.made: tools/scripts/venv.sh
	@sh tools/scripts/venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.base: $(VENV)/.made pyproject.toml
	@echo "installing rigbus into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo "installing rigbus and what its tests need into $(VENV)"
	@$(PIP) install --editable '.[test]'
	@touch $(VENV)/.base $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing ruff and mypy into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@
