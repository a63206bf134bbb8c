# Every target sets up .venv by itself; `make setup` does just that.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo up test bench chaos simulate check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/stagecast demo

up: $(STAMP)
	$(BIN)/stagecast up

# Two at a time: most of them wait for processes. The simulation minds no time and takes all that there is, so it runs alone.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore=tests/simulation
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/simulation

simulate: $(STAMP)
	$(BIN)/python -m tests.simulation --steps 1000000

bench: $(STAMP)
	$(BIN)/python benchmarks/consistency.py
	$(BIN)/python benchmarks/transfer.py --quick

# A million steps of the simulation, every kill point of what writes to a disk, then real processes under real faults, whatever
# was found before; the exit code is that of any. Cutting processes off from each other needs root. CHAOS="--faults nats-kill --times 9" for some of the faults.
chaos: $(STAMP)
	@code=0; \
	$(BIN)/python -m tests.simulation --steps 1000000 || code=$$?; \
	$(BIN)/python -m tests.durability || code=$$?; \
	$(BIN)/python -m chaos $(CHAOS) || code=$$?; \
	exit $$code

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/api.py

format: $(STAMP)
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache
