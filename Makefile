# Every target prints little and says how long it took. `make setup` runs by itself where needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEEDS ?= 1000
BENCH ?= --quick
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread each: two test workers with a thread pool per core would only wait for each other.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

START = start=$$(date +%s)
TOOK = echo "make $@: done in $$(( $$(date +%s) - start )) s"

.PHONY: help setup demo test check sim chaos bench compose-test protos clean

help:
	@echo "make setup          virtual environment in $(VENV) (again only when its inputs change)"
	@echo "make demo           a whole consortium on this machine; options in ARGS="
	@echo "make test           unit tests on two workers, then the slow ones one by one"
	@echo "make check          lint, format, types, generated code"
	@echo "make sim SEEDS=n    simulated worlds, one per seed; ARGS='--seed 7 --minimise' shrinks one that fails"
	@echo "make chaos          real processes under kills, resets, partitions; options in ARGS="
	@echo "make bench          every benchmark; BENCH= for the long form"
	@echo "make compose-test   the compose files under podman, images built anew where needed; root, minutes"
	@echo "make protos         generate the wire code again"
	@echo "make clean          remove caches and build outputs; $(VENV) stays"

setup: $(READY)

# torch comes first and alone: a version that is already chosen is not replaced by what its extras ask for.
$(READY): pyproject.toml constraints.txt
	@$(START); \
	test -n "$(PYTHON)" || { echo "fedtrain needs Python 3.11 or newer, and none was found: install it, or name it with PYTHON=" >&2; exit 2; }; \
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedtrain needs Python 3.11 or newer, found %d.%d: name another with PYTHON=" % sys.version_info[:2])' || exit 2; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || exit 1; \
	echo "make setup: installing the packages (minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]' && \
	touch $(READY) && echo "make setup: done in $$(( $$(date +%s) - start )) s"

demo: $(READY)
	@$(START); $(BIN)/fedtrain demo $(ARGS) && $(TOOK)

test: $(READY)
	@$(START); $(THREADS) $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS) && \
	{ $(THREADS) $(BIN)/python -m pytest -n 0 -m slow $(ARGS) || test $$? -eq 5; } && $(TOOK)

check: $(READY)
	@$(START); $(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && \
	$(BIN)/mypy --no-error-summary && ./proto/generate --check && $(TOOK)

sim: $(READY)
	@$(START); $(BIN)/python -m fedtrain.sim --seeds $(SEEDS) $(ARGS) && $(TOOK)

chaos: $(READY)
	@$(START); $(BIN)/python -m benchmarks.chaos $(ARGS) && $(TOOK)

bench: $(READY)
	@$(START); for script in benchmarks/[a-z]*.py; do \
		echo "$$script $(BENCH)"; $(BIN)/python $$script $(BENCH) || exit 1; \
	done && $(TOOK)

compose-test: $(READY)
	@$(START); $(BIN)/python -m pytest -n 0 -rs tests/compose $(ARGS) && $(TOOK)

protos: $(READY)
	@$(START); ./proto/generate && $(TOOK)

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	@find fedtrain tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@echo "make clean: done; $(VENV) is kept"
