# Every target that needs the environment makes it first; once it is ready that costs a fraction of a second.
PYTHON ?=
OUT ?= demo
LAKE ?= demo/lake
SHELL := /bin/bash
BIN := .venv/bin
# The set-up program runs on any Python 3 and looks for 3.11 itself; PYTHON=/path/to/python3.11 names one.
BOOT := $(shell for p in python3.11 python3 python; do if $$p -c '' 2>/dev/null; then echo $$p; break; fi; done)
export PYTHON

.PHONY: help setup demo thrift sql mlflow test check bench doctor format clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup:  ## make .venv with everything in it (a second call ends at once)
	@if [ -z "$(BOOT)" ]; then echo "setup: Python 3.11 is needed and none was found; run \`apt-get install -y python3.11 python3.11-venv\`." >&2; exit 2; fi
	@$(BOOT) tools/setup_env.py

demo: setup  ## images in, answers, pictures and a trained network out, in the folder demo (OUT=... for another, DATA=embedded for no files)
	$(BIN)/python -m medspark demo --out $(OUT) $(if $(DATA),--data $(DATA))

thrift: setup  ## a lake over JDBC, on loopback, until Ctrl-C (LAKE=demo/lake, PORT=10000)
	@$(BIN)/python -m medspark thrift --lake "$(LAKE)" $(if $(PORT),--port $(PORT))

sql: setup  ## Spark's JDBC shell on a lake (LAKE=demo/lake)
	@$(BIN)/python -m medspark beeline --lake "$(LAKE)"

mlflow: setup  ## MLflow's pages on a lake's runs, on loopback, until Ctrl-C (LAKE=demo/lake, PORT=5000)
	@$(BIN)/python -m medspark mlflow --lake "$(LAKE)" $(if $(PORT),--port $(PORT))

test: setup  ## all tests (ARGS=... goes to pytest)
	$(BIN)/python -m pytest -q $(ARGS)

check: setup  ## format, lint, types, import rule, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: setup  ## rates of this machine beside those of other tools
	$(BIN)/python -m benchmarks

doctor:  ## what is in order on this machine and what is not
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m medspark.doctor; else $(BOOT) -m medspark.doctor; fi

format: setup  ## put the sources into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what was made here, the environment included (the cache folder keeps the slow parts)
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache spark-warehouse metastore_db derby.log medspark/pixels/*.so
	find medspark jobs tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
