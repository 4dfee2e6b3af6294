# Two commands for a fresh machine: `make demo` and `make test`. Needs Python >= 3.10 with venv, and make;
# with a C compiler the digests are fast. Everything lives in .venv; `make clean` takes it away.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml setup.py $(wildcard native/*.c native/*.h)

.PHONY: demo test check fast soak bench clean

demo: $(VENV)/.demo  ## upload, kill half-way, resume, verify: FILE=/path for a file of yours
	$(BIN)/obs-engine demo $(if $(FILE),--file "$(FILE)")

test: check  ## everything that CI runs
	$(BIN)/python -m pytest -q

check: $(VENV)/.test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

fast: $(VENV)/.test  ## unit and property tests alone: seconds
	$(BIN)/python -m pytest -q tests/unit tests/property tests/test_tidy.py

soak: $(VENV)/.test  ## long runs and large fuzz profiles: some ten minutes
	$(BIN)/python -m pytest -q -m soak

bench: $(VENV)/.test  ## the first-light benchmark: ceilings, peers and ours in one run
	$(BIN)/python bench/first_light.py

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "obs-engine: expected Python 3.10 or newer, found " + sys.version.split()[0] + "; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv $(INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli,server]'
	touch $@

$(VENV)/.test: $(VENV)/.venv $(INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build engine/*.egg-info engine/obs_engine/*.so
