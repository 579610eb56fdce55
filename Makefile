# make demo   the main job on rendered clips        make test   all tests
# make lint   ruff and mypy                          make bench  every number we claim
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEED_RUNS := live reset
BENCHMARKS = $(filter-out __init__ $(NEED_RUNS),$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py)))

.PHONY: install demo test lint bench clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[test,lint]'
	touch $@

demo: install
	$(BIN)/liteeval demo --out runs/demo

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: demo
	for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.live runs/demo/clips --runs $(addprefix runs/demo/runs/,liteeval lstm uniform)
	$(BIN)/python -m benchmarks.reset runs/demo/runs/liteeval

clean:
	rm -rf $(VENV) build *.egg-info runs/demo
