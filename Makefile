PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Two processes with one thread each: on volumes as small as the tests' PyTorch's own threads gain little.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-fast lint gpu bench tables docs bundle monai-label others clean

demo: $(INSTALLED)
	$(BIN)/groupmorph demo --output demo_output

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow"

# Style, spelling and types.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# On the machine's GPU: whether results are the CPU's, then seconds and memory.
gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -s

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[bench]
	$(BIN)/groupmorph benchmark synthetic --output benchmarks

# The measured results in experiments/measured, as tables of the documentation.
tables: $(INSTALLED)
	$(BIN)/python -m experiments.tables

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[docs]
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# One zip in the layout of MONAI's zoo, with the package inside.
bundle: $(INSTALLED)
	$(BIN)/python .ci/pack_bundle dist

# A real server of MONAI Label, in an environment of its own, asked by its own client.
monai-label: $(INSTALLED)
	.ci/check_monai_label

# Tests with the libraries of 3D Slicer, ANTs and mlflow, in an environment of their own.
others: $(INSTALLED)
	.ci/check_with_others

# An environment without the mark of a complete installation is made anew, perhaps with another PYTHON.
# torch comes first: any other package would pull the newest one with its gigabytes.
$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	@test -f $@ || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python 3.11 or newer as $(PYTHON), got `$(PYTHON) --version`; try: make demo PYTHON=python3.12"; exit 1; }
	test -f $@ || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .[test]
	touch $@

clean:
	rm -rf $(VENV) .venv-label .venv-others demo_output build dist site *.egg-info
