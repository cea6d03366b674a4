# One command for each thing a person does here. `make` lists them.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install test check format docs links figures notebook bench report wheel release clean

help: ## List these commands.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: ## Install npconv and what developing it needs.
	$(PYTHON) -m pip install -e '.[dev]'

test: ## Run every test.
	$(PYTHON) -m pytest

check: ## Lint, check the formatting, check the types.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: ## Format the code.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: ## Build the documentation; a warning is an error.
	$(PYTHON) -m sphinx -E -W --keep-going -b html docs docs/_build/html

links: docs ## Check every link of the documentation; those to elsewhere need the internet.
	$(PYTHON) -m docs.links
	$(PYTHON) -m sphinx -W --keep-going -b linkcheck docs docs/_build/links

figures: ## Draw the pictures of the explanation anew.
	$(PYTHON) -m docs.figures

notebook: ## Make examples/channels.ipynb of its source in the gallery, and run it.
	$(PYTHON) -m docs.notebook

bench: ## How fast npconv is here.
	$(PYTHON) -m npconv bench

report: ## Make every number that the documentation quotes anew.
	$(PYTHON) -m benchmarks.report

wheel: ## Build the wheel and the source distribution.
	$(PYTHON) -m pip install --quiet build
	$(PYTHON) -m build

release: wheel ## Test the wheel in an environment of its own.
	$(PYTHON) -m tests.release

clean: ## Remove what was built.
	rm -rf build dist docs/_build docs/gallery docs/reference/generated
