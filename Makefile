PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Two processes with one thread each: on volumes as small as the tests' PyTorch's own threads gain little.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-fast gpu bench docs clean

demo: $(INSTALLED)
	$(BIN)/groupmorph demo --output demo_output

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow"

# On the machine's GPU: whether results are the CPU's, then seconds and memory.
gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -s

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[bench]
	$(BIN)/groupmorph benchmark --suite synthetic --output benchmarks

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[docs]
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# torch comes first: any other package would pull the newest one with its gigabytes.
$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[test]
	touch $@

clean:
	rm -rf $(VENV) demo_output build site *.egg-info
