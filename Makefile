# make run: grow a network on real data.   make test: every check and every test.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
# A process for each core. They get stretches of the tests, so that few fixtures are made twice.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal --benchmark-disable

.PHONY: default run test test-portable test-lowest bench bench-peers check fix clean
default: test

.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)" numpy uv
	touch $@

.venv/.run: .venv/.torch pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[plot]"
	touch $@

.venv/.dev: .venv/.torch pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[dev]"
	touch $@

run: .venv/.run
	$(BIN)/esper train letter

test: check
	$(PYTEST)

# What trains a network, as on a processor without vector instructions: no test may hang on the last
# digits of a training.
test-portable: .venv/.dev
	ATEN_CPU_CAPABILITY=default $(PYTEST) -q -m trains tests

bench: .venv/.dev
	$(BIN)/python -m benchmarks

# Other people's libraries stay out of the environment that tests run in.
.venv-peers/.peers: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet "$(TORCH)" -e ".[peers]"
	touch $@

bench-peers: .venv-peers/.peers
	.venv-peers/bin/python -m benchmarks.peers

# Lower bounds of pyproject.toml; torch alone stays the one above, whose CPU build is at hand.
.venv-lowest/.torch:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet "$(TORCH)" uv
	touch $@

.venv-lowest/.lowest: .venv-lowest/.torch pyproject.toml
	.venv-lowest/bin/python scripts/lowest.py --pins > .venv-lowest/pins.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python -e . -r .venv-lowest/pins.txt
	touch $@

test-lowest: .venv-lowest/.lowest
	.venv-lowest/bin/python scripts/lowest.py

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/.dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
