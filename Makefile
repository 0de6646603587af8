# Everything works in a virtual environment beside this file that the first target makes. Needs Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

DATA ?= ../shared/data
# The exact versions that passed; `make CONSTRAINTS=/dev/null` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt

.PHONY: demo test update lint docs glossary bench study-report leaderboard clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready  ## the main job on embedded real data, about a minute; open demo/index.html
	$(BIN)/comove demo --out demo

test: $(VENV)/.ready lint  ## everything CI checks
	$(BIN)/python -m pytest tests src --doctest-modules --ignore=tests/trace/two_processes.py -n 2 --dist loadfile

# The versions are kept only if all tests pass on them; else constraints.txt stays, and the next target goes back to it.
update: $(VENV)/.ready  ## constraints.txt made anew, with the newest versions, and the tests run on them
	printf '%s\n' uv hatchling | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--extra test --extra docs --no-annotate --custom-compile-command 'make update' \
		-o $(VENV)/newest.txt pyproject.toml -
	$(MAKE) test CONSTRAINTS=$(VENV)/newest.txt || { rm -f $(VENV)/.ready; exit 1; }
	cp $(VENV)/newest.txt constraints.txt
	@touch $(VENV)/.ready

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

glossary: $(VENV)/.ready  ## docs/glossary.md, from the list that reports explain their terms by
	$(BIN)/python -c "from comove.report.glossary import glossary_page as page; print(page(), end='')" > docs/glossary.md

docs: $(VENV)/.ready
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.ready  ## speed and quality, written to benchmarks/results/: an hour, on a machine with nothing else to do
	$(BIN)/python benchmarks/correlation.py --full
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/coresets.py
	$(BIN)/python benchmarks/coreset_curves.py digits
	$(BIN)/python benchmarks/attribution.py --data-dir $(DATA)

study-report: $(VENV)/.ready  ## docs/study.md and its figures, from benchmarks/results/cifar10-resnet9/
	$(BIN)/python benchmarks/cifar10/study.py --step report

leaderboard: $(VENV)/.ready  ## docs/leaderboard.md, from benchmarks/banks/ and benchmarks/results/
	$(BIN)/python benchmarks/leaderboard.py

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "comove needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) \
		|| { $(PYTHON) -m pip install --user uv && $(PYTHON) -m uv venv --seed $(VENV); }
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -b $(CONSTRAINTS) -e '.[test,docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo docs/_build .mypy_cache .ruff_cache
