# Two commands for people: `make demo` and `make test`. Both need nothing but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# One process for each core, a file of tests in one of them: torch takes one thread in tests.
PARALLEL := --numprocesses auto --dist loadfile

.PHONY: demo test lint types bench clean

demo: .venv/ready
	$(BIN)/kernel-distill demo

# Twice where GPU kernels are concerned: interpreted first, then everything as it runs on this machine.
test: .venv/ready
	TRITON_INTERPRET=1 $(BIN)/pytest $(PARALLEL) tests/kernels
	$(BIN)/pytest $(PARALLEL)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked on the installed package: only there do the four folders form one.
types: .venv/ready
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	$(BIN)/basedpyright

bench: .venv/ready
	$(BIN)/python bench/closed_form.py all
	$(BIN)/python bench/kernels.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'kernel-distill needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

clean:
	rm -rf .venv build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
