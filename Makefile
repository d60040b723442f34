# Two commands: `make demo` trains a GAN on real handwritten digits, `make test` proves the package.
# Both make .venv with the pinned, tested set first.

PYTHON ?= python3
VENV ?= .venv
RUN ?=
# What suits small digits best; larger pictures want the defaults.
DEMO := --data digits --latent-dim 16 --critic-steps 1 --lr 0.001
bin := $(VENV)/bin

.PHONY: help demo test lint typecheck clean

help:
	@echo "make demo   install into $(VENV), train a Wasserstein GAN on handwritten digits, show where the picture is"
	@echo "make test   install into $(VENV), check style and types, run the test suite"
	@echo "make clean  remove build products (not $(VENV), not runs/)"

demo: $(VENV)/.train
	$(bin)/fastgen train wgan $(DEMO) $(if $(RUN),--run $(RUN))

test: $(VENV)/.dev lint typecheck
	$(bin)/pytest -n 2

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

typecheck: $(VENV)/.dev
	$(bin)/mypy

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastgen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its pin alone, so that no other package's wish picks another build of it.
$(VENV)/.train: $(bin)/python pyproject.toml setup.py constraints.txt
	$(bin)/python -m pip install --quiet --constraint constraints.txt torch
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(bin)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
