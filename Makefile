# make demo   the whole recipe on generated tickets, a few minutes on two cores
# make test   every test      make check   style and types      make bench   measurements
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests
NOT_BENCHES := arms clock shapes workloads unsloth_arm gpu_train soak_adapters soak_load
BENCHES ?= $(filter-out __init__ $(NOT_BENCHES),$(patsubst bench/%.py,%,$(wildcard bench/[a-z]*.py)))

.DEFAULT_GOAL := help
.PHONY: help setup environments demo test check format schema bench clean

help:
	@sed -n 's/^# //p' Makefile
	@echo "make setup  installs into $(VENV) (every target does so first; PYTHON=python3.12 picks the interpreter)"
	@echo "make environments  SkyPilot, dstack and the vendors' SDKs, each in an environment under $(VENV); make test does so first"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Shoestring needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo not found)." >&2; \
	  echo "Give another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Installing into $(VENV), once; most of it is PyTorch, so this takes minutes on a slow line ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

#: What tests and launches elsewhere need: programs and SDKs in environments of their own, half a gigabyte. Tests of one
#: that cannot be installed are skipped.
environments: $(TEST_STAMP)

$(TEST_STAMP): $(STAMP) scripts/axolotl-schema-requirements.txt scripts/skypilot-requirements.txt \
  scripts/vendor-requirements.txt scripts/dstack-requirements.txt scripts/install_chromium.sh
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/axolotl-schema -r scripts/axolotl-schema-requirements.txt
	@$(BIN)/python scripts/check_skypilot.py --install $(VENV)/skypilot || echo "not installed: its tests are skipped" >&2
	@$(BIN)/python scripts/check_vendors.py --install $(VENV)/vendors || echo "not installed: its tests are skipped" >&2
	@$(BIN)/python scripts/check_dstack.py --install $(VENV)/dstack || echo "not installed: its tests are skipped" >&2
	@sh scripts/install_chromium.sh || echo "no Chromium: the tests that drive the page are skipped" >&2
	@touch $@

demo: $(STAMP)
	@$(BIN)/shoestring demo

#: A process a core, and a file of tests whole on one of them: its fixtures are made once.
test: $(TEST_STAMP)
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

check: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

schema: $(STAMP)
	@$(BIN)/python scripts/write_schema.py

bench: $(STAMP)
	@for name in $(BENCHES); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name || exit 1; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
