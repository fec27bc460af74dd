PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-fast bench clean

demo: $(INSTALLED)
	$(BIN)/groupmorph demo --output demo_output

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[bench]
	$(BIN)/groupmorph benchmark --suite synthetic --output benchmarks

# torch comes first: any other package would pull the newest one with its gigabytes.
$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[test]
	touch $@

clean:
	rm -rf $(VENV) demo_output build *.egg-info
