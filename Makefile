# The two commands: `make demo` and `make test`. Each sets itself up in .venv and needs only Python (>= 3.10) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCALE ?= 1
# Temporary files of the tests stay in the clone.
PYTEST := $(BIN)/python -m pytest --basetemp=.pytest_tmp

.DEFAULT_GOAL := help
.PHONY: help demo test lint soak clean

help:
	@echo "make demo                     orders through a real three-broker Kafka while a broker and the producer are killed"
	@echo "make test                     lint, types and the whole test suite, on real brokers"
	@echo "make soak SUITE=crash SCALE=10  one suite (unit, mock, crash, cluster) at a larger scale"
	@echo "make clean                    remove .venv and caches"

# Re-made when a dependency or a pin changes. The stamp is written last: a broken install is never taken for a whole one.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "safekafka needs Python >= 3.10; '$(PYTHON)' is older. Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed: on Debian/Ubuntu install the package python3-venv, or name another interpreter: make PYTHON=/path/to/python3 ..."; exit 1; }
	@echo "Installing into $(VENV) (first time only) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/safekafka demo $(DEMO_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Three at a time, since most of their time is waiting; one at a time of those that kill brokers (tests/conftest.py).
test: lint
	SAFEKAFKA_SCALE=$(SCALE) $(PYTEST) -n 3 $(TEST_ARGS) tests

soak: $(VENV)/.ready
	@test -n "$(SUITE)" || { echo "name the suite: make soak SUITE=crash SCALE=10 (one of: $$(ls -d tests/*/ | xargs -n1 basename | grep -v -e programs -e __ | tr '\n' ' '))"; exit 1; }
	SAFEKAFKA_SCALE=$(SCALE) $(PYTEST) tests/$(SUITE) $(TEST_ARGS)

# The benchmarks live in .venv-bench, which sets itself up too. Options: make bench-spool BENCH_ARGS='--quick'
.PHONY: bench-producer bench-spool bench-consumer
bench-producer:
	@$(PYTHON) -m benchmarks.producer.environment
	@.venv-bench/bin/python -m benchmarks.producer $(BENCH_ARGS)

bench-spool:
	@$(PYTHON) -m benchmarks.common.environment
	@.venv-bench/bin/python -m benchmarks.spool $(BENCH_ARGS)

bench-consumer:
	@$(PYTHON) -m benchmarks.producer.environment
	@.venv-bench/bin/python -m benchmarks.consumer $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .venv-bench .pytest_tmp .pytest_cache .mypy_cache .ruff_cache .hypothesis
