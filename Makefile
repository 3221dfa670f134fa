# make quickstart   install and run the main job on the embedded data
# make test         install what tests need and run every check
# make bench-speed  time Semlink next to others; results go to results/speed/
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: quickstart test bench-speed install install-test clean

quickstart: install
	$(BIN)/semlink quickstart

# One thread a test process: on two cores two processes of one thread beat one of two.
test: export OMP_NUM_THREADS = 1
test: install-test
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

bench-speed: export OMP_NUM_THREADS = 1
bench-speed: install-test
	$(BIN)/python benchmarks/speed.py --out results/speed

install: .venv/installed
install-test: .venv/installed-test

.venv/installed: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-test: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build dist
