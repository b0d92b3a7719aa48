# make demo: set up and run the main job. make test: set up and pass the tests.

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check audit tests browser soak detectors neighbours stack screenshots clean

demo: $(READY)
	$(BIN)/ls-propagate demo

test: check audit tests

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# known vulnerabilities of what is installed; where nobody can be asked, it says so and passes
audit: $(READY)
	@$(BIN)/python .ci/audit.py

# a worker a core, so a thread a worker, and what takes longest, the acceptance tests, first.
# alone: the load test says how long people wait, and what a busy machine draws late moves under the pointer of those who
# work in the browser; of the logs' tests, workers cannot send what they capture
ALONE := tests/acceptance/test_load.py tests/acceptance/test_quality.py tests/browser tests/unit/ls_propagate/test_logs.py

tests: $(READY) browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20 $(ALONE:%=--ignore=%)
	$(BIN)/pytest $(ALONE)

# what may go wrong, at length, one after the other: chance, faults of the network, kills, load
soak: $(READY)
	for part in unit/sync/test_machine unit/sync/test_crashes acceptance/test_faults acceptance/test_kills \
		acceptance/test_load; do LS_PROPAGATE_SOAK=1 $(BIN)/pytest -s tests/$$part.py || exit 1; done

# what detectron2 and torchvision really give, against the record that the tests go by; PYTHON is one that has them,
# and this project with pytest. RECORD=1: write the record anew
detectors:
	$(PYTHON) -m pytest -W default tests/records/detectors.py

# what other programs read of an export, in an environment of their own
neighbours: $(READY)
	$(PYTHON) -m venv .venv/neighbours
	.venv/neighbours/bin/python -m pip install --quiet pycocotools datumaro fiftyone
	NEIGHBOURS_PYTHON=$(CURDIR)/.venv/neighbours/bin/python $(BIN)/pytest tests/unit/ls_propagate/neighbours.py

# the browser tests take a Chromium that is there; else Debian's, where it may be installed; else Playwright's
browser: $(READY)
	@$(BIN)/python -c 'from ls_propagate.demo.browser import find_chromium; raise SystemExit(not find_chromium())' || \
		{ apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
		$(BIN)/playwright install chromium

# Label Studio, PostgreSQL, the daemon and the backend as processes, from docker/compose.yaml
DATA ?= stack-data
stack: $(READY)
	@$(BIN)/python docker/stack.py --data $(DATA)

screenshots: $(READY)
	$(BIN)/python -m docs.screenshots

$(READY): pyproject.toml
	@$(or $(PYTHON),false) -c '$(FITS)' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo-data stack-data
