PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help compare tutorials test test-all lint format package-check docs docs-record
.PHONY: bench bench-speed bench-accuracy bench-iwae bench-report

help:
	@echo "make compare [ARGS='--list']   compare posteriors on real data, in a table and figures"
	@echo "make tutorials                 run every lesson, and leave a page of claims and figures"
	@echo "make test                      lint, types, tests and doctests, but for the slow ones"
	@echo "make test-all                  the same with the slow ones"
	@echo "make bench                     install the peers of the benchmarks, NumPyro and JAX"
	@echo "make bench-speed               step times against plain torch, Pyro and NumPyro"
	@echo "make bench-accuracy DATA=DIR   errors on posteriordb against Pyro and NumPyro"
	@echo "make bench-iwae DATA=FILE      VAE and IWAE on MNIST"
	@echo "make bench-report              results to the tables of docs/benchmarks.md"
	@echo "make package-check             build, install into an empty environment, and try the wheel"
	@echo "make docs                      the site, in build/site/index.html; warnings are errors"
	@echo "make docs-record               run the lessons in full, and keep what the site shows of them"
	@echo "make lint                      lint and types only"
	@echo "make format                    sort the imports and format the code"

compare: $(STAMP)
	$(BIN)/python tutorials/compare_posteriors.py $(ARGS)

tutorials: $(STAMP)
	$(BIN)/python tutorials/_run_all.py $(ARGS)
	$(BIN)/python tutorials/compare_posteriors.py

# Types and shapes are checked in each call where every public function has its example, and in the
# tests of log weights and bounds. In all tests that would take three times as long.
TYPED := --jaxtyping-packages=pyro_ext,typed.check
TYPED_TESTS := pyro_ext tests/test_bounds.py tests/test_weights.py
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS)

test test-all: export OMP_NUM_THREADS ?= 1
test: lint
	$(PYTEST) -m "not slow" $(ARGS)
	$(if $(ARGS),,$(PYTEST) -m "not slow" $(TYPED) $(TYPED_TESTS))

test-all: lint
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,$(PYTEST) $(TYPED) $(TYPED_TESTS))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,bench]'

bench-speed bench-accuracy: export OMP_NUM_THREADS ?= 1
bench-speed: bench
	taskset --cpu-list 0 $(BIN)/python benchmarks/speed/steps.py --numpyro $(BIN)/python --out benchmarks/speed/result $(ARGS)

bench-accuracy: bench
	taskset --cpu-list 0 $(BIN)/python benchmarks/accuracy.py --data $(DATA) $(ARGS)

bench-iwae: $(STAMP)
	$(BIN)/python benchmarks/iwae.py --data $(DATA) $(ARGS)

bench-report: $(STAMP)
	$(BIN)/python benchmarks/report.py

package-check: $(STAMP)
	rm -rf build/package
	$(BIN)/python -m build --no-isolation --outdir build/package/dist .
	"$(PYTHON)" -m venv build/package/env
	build/package/env/bin/python -m pip install --constraint constraints.txt build/package/dist/*.whl
	cd build/package && env/bin/python ../../tests/packaging/smoke.py env

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/site $(ARGS)
	@echo "build/site/index.html"

docs-record: $(STAMP)
	$(BIN)/python docs/record.py $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,docs]'
	touch $@
