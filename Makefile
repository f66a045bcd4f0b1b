# `make demo` and `make test` need Python 3.11 or newer and nothing else; they build .venv themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check format benchmark docs pictures clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(BIN)/.installed  ## train, evaluate and predict on real handwritten digits, and write a page about it
	$(BIN)/crossformer train digits --out runs/demo --overwrite
	$(BIN)/crossformer eval runs/demo
	$(BIN)/crossformer predict runs/demo runs/demo/samples/*.png --out runs/demo/predicted --overwrite
	$(BIN)/crossformer demo runs/demo

test: $(BIN)/.installed  ## run every test
	$(BIN)/python -m pytest

check: $(BIN)/.installed  ## format, lint, types, import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/.installed  ## mend what `make check` says of format and imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(BIN)/.installed  ## the product against a literal implementation of the paper
	$(BIN)/python -m benchmarks.literal_vs_product

docs: $(BIN)/.installed  ## build the site in build/site; warnings are errors
	$(BIN)/python -m mkdocs build --strict

pictures: $(BIN)/.installed  ## draw the documentation's pictures of layers anew
	$(BIN)/python docs/pictures/draw.py

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
