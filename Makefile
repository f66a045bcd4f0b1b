# `make demo` and `make test` need Python 3.11 or newer and nothing else; they build .venv themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONSTRAINTS ?= constraints.txt# the versions that are tested; empty: the newest that pyproject.toml allows
LOWEST := .venv-lowest
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-3.11 test-3.12 test-lowest check audit constraints format benchmark docs pictures clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; pass make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]' $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

demo: $(BIN)/.installed  ## train, evaluate and predict on real handwritten digits, and write a page about it
	$(BIN)/crossformer train digits --out runs/demo --overwrite
	$(BIN)/crossformer eval runs/demo
	$(BIN)/crossformer predict runs/demo runs/demo/samples/*.png --out runs/demo/predicted --overwrite
	$(BIN)/crossformer demo runs/demo

test: $(BIN)/.installed  ## run every test
	$(BIN)/python -m pytest $(PARALLEL)

test-3.11:  ## run every test on Python 3.11, in an environment of its own
	$(MAKE) test PYTHON=python3.11 VENV=.venv-3.11

test-3.12:  ## run every test on Python 3.12, in an environment of its own
	$(MAKE) test PYTHON=python3.12 VENV=.venv-3.12

test-lowest:  ## run the tests with the least versions that pyproject.toml allows
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet packaging
	$(LOWEST)/bin/python -m benchmarks.supply_chain lowest > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/lowest.txt \
	  --editable '.[train,detection,segmentation,formats,doctor,export,weights]' \
	  pytest pytest-xdist hypothesis pycocotools webdataset mlxtend
	$(LOWEST)/bin/python -m pytest $(PARALLEL) --ignore tests/test_examples.py --ignore tests/test_docs.py

check: $(BIN)/.installed audit  ## format, lint, types, import order, known faults of what we depend on
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(BIN)/.installed  ## known vulnerabilities of installed packages; says so where it cannot ask
	$(BIN)/python -m benchmarks.supply_chain audit

constraints: $(BIN)/.installed  ## write the installed versions into constraints.txt
	{ head -1 constraints.txt; $(BIN)/python -m benchmarks.supply_chain constraints; } > constraints.new
	mv constraints.new constraints.txt

format: $(BIN)/.installed  ## fix what `make check` reports of format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(BIN)/.installed  ## the product against a literal implementation of the paper
	$(BIN)/python -m benchmarks.literal_vs_product

docs: $(BIN)/.installed  ## build the site in build/site; warnings are errors
	$(BIN)/python -m mkdocs build --strict

pictures: $(BIN)/.installed  ## draw the documentation's pictures of layers again
	$(BIN)/python docs/pictures/draw.py

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .venv-3.11 .venv-3.12 $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
