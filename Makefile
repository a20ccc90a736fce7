# The two commands of the README are `make run` and `make test`; both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run test check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[search,postgres,triton,dev]'
	touch $@

run: install
	mkdir -p runs
	$(BIN)/varsearch run --budget 40 --images 256 --target 4090 --storage runs/quickstart.db

# A process per core; each file's tests stay in one, because they share what is slow to make.
test: install
	$(BIN)/pytest --numprocesses auto --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
