# Every target prepares what it needs: .venv and, for containers, a Docker engine.

PYTHON := .venv/bin/python
# Tests mostly wait for machines, so more of them run at once than there are processors. Each module stays in one
# process (for each operating system of VPSes, see tests/conftest.py); the long ones are first by name and start first.
PYTEST := $(PYTHON) -m pytest -n 4 --dist loadscope --no-loadscope-reorder
PACKAGE_TESTS := tests/unit/test_architecture.py tests/unit/test_dependencies.py tests/unit/test_documents.py \
	tests/unit/test_imports.py
# Tests start hundreds of Python processes, and each would compile the package and the tests again.
unexport PYTHONDONTWRITEBYTECODE
PYTHON_SCRIPTS := scripts/demo scripts/check-wheel
# Files that begin with a #! line of a shell, and *.sh, which say their shell in a directive where they have no such line.
SHELL_SCRIPTS = $(shell find .ci scripts mngr_vps_docker providers tests -type f \
	-exec awk 'FNR == 1 && (/^.!.*[\/ ](ba)?sh( |$$)/ || FILENAME ~ /\.sh$$/) { print FILENAME } { nextfile }' {} +)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-fast test-one test-faults fault-points test-images bench format lint check clean-local bootstrap

help: ## show this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: bootstrap ## show mngr create, use and destroy a host on a VPS that runs on this machine (OS=debian-13: on that)
	@scripts/ensure-engine
	@$(PYTHON) scripts/demo $(OS)

# The core of the end-to-end tests runs on two operating systems of VPSes; OS= runs all of them on one.
test: bootstrap ## run every test (20 minutes); end-to-end ones on local VPSes, skipped if there can be no Docker engine
	@scripts/ensure-engine || echo "No Docker engine: the end-to-end tests cannot run." >&2
	@MNGR_TEST_OS=$(OS) $(PYTEST)

test-fast: bootstrap ## run the unit and ssh tests (2 minutes; no root, no Docker), except those that `make lint` runs
	@$(PYTEST) -n 7 --dist load --maxschedchunk 1 --hypothesis-profile=quick $(PACKAGE_TESTS:%=--ignore=%) tests/ssh tests/unit

test-one: bootstrap ## run the tests of one path until the first failure, e.g. T=tests/unit/state, T='tests/unit -k record'
	@MNGR_TEST_OS=$(OS) $(PYTHON) -m pytest -x $(or $(T),$(error T= says which tests))

test-faults: bootstrap ## interrupt every operation at every point, in every way (an hour; `make test` does some of it)
	@scripts/ensure-engine
	@MNGR_FAULTS=all $(PYTHON) -m pytest -n 4 --dist load tests/e2e/faults tests/e2e/test_concurrent_changes.py \
		tests/e2e/test_cycles.py tests/unit/state/test_host_store.py

fault-points: bootstrap ## record the points at which test-faults interrupts, after a change of an operation's steps
	@scripts/ensure-engine
	@MNGR_FAULTS=record $(PYTHON) -m pytest -k the_points tests/e2e/faults

test-images: bootstrap ## try every image of tests/images, from create to a start from its snapshot (`make test` does some)
	@scripts/ensure-engine
	@MNGR_TEST_IMAGES=all MNGR_TEST_OS=$(OS) $(PYTHON) -m pytest -n 2 --dist load tests/e2e/test_corpus.py

bench: bootstrap ## time what users wait for, from 0 and 100 ms away, next to the least possible (20 minutes)
	@scripts/ensure-engine
	@PYTHONPATH=tests $(PYTHON) -m bench $(BENCH)

format: bootstrap ## format the code and fix what the linter can fix
	$(PYTHON) -m ruff check --fix . $(PYTHON_SCRIPTS)
	$(PYTHON) -m ruff format . $(PYTHON_SCRIPTS)

lint: bootstrap ## check style, format, types, shell scripts, architecture, dependencies and documents
	$(PYTHON) -m ruff check . $(PYTHON_SCRIPTS)
	$(PYTHON) -m ruff format --check . $(PYTHON_SCRIPTS)
	@mkdir -p build/typing/imbue && cd build/typing/imbue && ln -sfn ../../../mngr_vps_docker ../../../providers/*/mngr_* .
	$(PYTHON) -m mypy -p imbue.mngr_vps_docker -p imbue.mngr_local_vps
	$(PYTHON) -m mypy --scripts-are-modules $(PYTHON_SCRIPTS)
	$(PYTHON) -m mypy --follow-imports=silent -p bench
	.venv/bin/shellcheck $(SHELL_SCRIPTS)
	.venv/bin/lint-imports --no-logo --no-cache
	$(PYTHON) -m pytest -q $(PACKAGE_TESTS)

check: lint ## `make lint`, then build the wheels and install them into an empty environment
	$(PYTHON) scripts/check-wheel

clean-local: bootstrap ## remove every local VPS with its containers, volumes, keys and networks; the images stay
	@if docker info >/dev/null 2>&1; then $(PYTHON) -m imbue.mngr_local_vps clean; \
	else echo "No Docker engine answers, so no local VPS exists on one."; fi

bootstrap:
	@scripts/bootstrap
