# Every target sets up .venv by itself; `make setup` does just that.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo up test test-parts test-simulation bench chaos simulate check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/stagecast demo

up: $(STAMP)
	$(BIN)/stagecast up

# Three files at a time, in the order of their names: most tests wait for processes. The simulation minds no time, so it takes
# what they leave, at the lowest priority, and is told of at its end. What was compiled is kept: each of some 500 processes and
# each of the workers would do it again, where the environment says not to write it.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)
	@$(MAKE) --no-print-directory -j2 test-parts test-simulation

test-parts: $(STAMP)
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/simulation

test-simulation: $(STAMP)
	@told=$$(nice -n 19 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/simulation 2>&1); code=$$?; \
	echo "$$told"; exit $$code

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
