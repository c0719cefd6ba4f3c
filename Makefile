# Every target prepares what it needs: .venv and, where containers are involved, a Docker engine.

PYTHON := .venv/bin/python
# Tests mostly wait for machines, so more of them than processors run at once. Each module stays in one process (for
# each operating system of VPSes, see tests/conftest.py), and those that take long, first by name, begin first.
PYTEST := $(PYTHON) -m pytest -n 4 --dist loadscope --no-loadscope-reorder
PACKAGE_TESTS := tests/unit/test_architecture.py tests/unit/test_dependencies.py tests/unit/test_documents.py \
	tests/unit/test_imports.py
# Tests start hundreds of Python processes, each of which would compile the package and the tests anew.
unexport PYTHONDONTWRITEBYTECODE
PYTHON_SCRIPTS := scripts/demo scripts/check-wheel
# Files that begin with a #! line of a shell, and *.sh, which say their shell in a directive where they have no such line.
SHELL_SCRIPTS = $(shell find .ci scripts mngr_vps_docker providers tests -type f \
	-exec awk 'FNR == 1 && (/^.!.*[\/ ](ba)?sh( |$$)/ || FILENAME ~ /\.sh$$/) { print FILENAME } { nextfile }' {} +)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-fast test-faults test-images bench check clean-local bootstrap

help: ## show this list
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: bootstrap ## watch mngr make, use and destroy a host on a VPS that runs on this machine (OS=debian-13: with that)
	@scripts/ensure-engine
	@$(PYTHON) scripts/demo $(OS)

# The core of the end-to-end tests runs on two operating systems of VPSes, or all of them on the one of OS=.
test: bootstrap ## run every test; end-to-end ones on local VPSes, skipped where no Docker engine can be had
	@scripts/ensure-engine || echo "No Docker engine: the end-to-end tests cannot run." >&2
	@MNGR_TEST_OS=$(OS) $(PYTEST)

test-fast: bootstrap ## run the unit and ssh tests (a loopback sshd; no root, no Docker), but for those of `make check`
	@$(PYTEST) -n 7 --dist load --maxschedchunk 1 --hypothesis-profile=quick $(PACKAGE_TESTS:%=--ignore=%) tests/ssh tests/unit

test-faults: bootstrap ## cut every operation short at every point, in every way (`make test` does some of it)
	@scripts/ensure-engine
	@MNGR_FAULTS=all $(PYTHON) -m pytest -n 4 --dist load tests/e2e/faults tests/e2e/test_concurrent_changes.py \
		tests/e2e/test_cycles.py tests/unit/state/test_host_store.py

test-images: bootstrap ## try every image of tests/images, from create to a start from its snapshot (`make test` does some)
	@scripts/ensure-engine
	@MNGR_TEST_IMAGES=all MNGR_TEST_OS=$(OS) $(PYTHON) -m pytest -n 2 --dist load tests/e2e/test_corpus.py

bench: bootstrap ## time what users wait for, from 0 and 100 ms away, beside the least that it can take (20 minutes)
	@scripts/ensure-engine
	@PYTHONPATH=tests $(PYTHON) -m bench $(BENCH)

check: bootstrap ## lint, format, types, shell scripts, architecture, dependencies and the built wheel
	$(PYTHON) -m ruff check . $(PYTHON_SCRIPTS)
	$(PYTHON) -m ruff format --check . $(PYTHON_SCRIPTS)
	@mkdir -p build/typing/imbue && cd build/typing/imbue && ln -sfn ../../../mngr_vps_docker ../../../providers/*/mngr_* .
	$(PYTHON) -m mypy -p imbue.mngr_vps_docker -p imbue.mngr_local_vps
	$(PYTHON) -m mypy --strict --scripts-are-modules $(PYTHON_SCRIPTS)
	$(PYTHON) -m mypy --follow-imports=silent -p bench
	.venv/bin/shellcheck $(SHELL_SCRIPTS)
	.venv/bin/lint-imports --no-logo --no-cache
	$(PYTHON) -m pytest -q $(PACKAGE_TESTS)
	$(PYTHON) scripts/check-wheel

clean-local: bootstrap ## remove every local VPS with its containers, volumes, keys and networks, and nothing else; images stay
	@if docker info >/dev/null 2>&1; then $(PYTHON) -m imbue.mngr_local_vps clean; \
	else echo "No Docker engine answers, so no local VPS exists on one."; fi

bootstrap:
	@scripts/bootstrap
