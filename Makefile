# `make demo` and `make test` need Python 3.11 or later and nothing else: uv comes from the package registry into .tools,
# everything else into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
STAMP := $(VENV)/.installed

# uv does not read pip's variable for local wheels; without them torch would bring gigabytes of CUDA packages along.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Threads that wait spin, and two cores are soon full of them.
export OMP_WAIT_POLICY ?= passive

UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)

.PHONY: demo test test-slow lint format bench demo-model pictures snapshots clean

demo: $(STAMP)
	$(BIN)/stage3-tui --auto --demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python bench/start.py
	PYTHONPATH=. $(BIN)/python bench/terminal.py

demo-model: $(STAMP)
	$(BIN)/python -m engine.demo.build

pictures: $(STAMP)
	$(BIN)/python docs/pictures.py

.PHONY: docs
docs: $(BIN)/mkdocs
	$(BIN)/python docs/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/mkdocs: $(STAMP)
	$(UV) pip install --quiet --python $(BIN)/python --editable '.[docs]'
	touch $@

snapshots: $(STAMP)
	rm -rf tests/tui/snapshots
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest tests/tui/test_snapshots.py

$(TOOLS)/bin/uv:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv

$(STAMP): pyproject.toml $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev,server]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(TOOLS) .pytest_cache .mypy_cache .ruff_cache
