# Each target makes what is missing first: the virtual environment with the pinned packages, bubblewrap, and for tests git, strace, tmux, systemd and Chromium.
# Another Python: `make demo PYTHON=/usr/bin/python3`.

PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The interpreter itself by its one real name, also where PYTHON is a shim or that of an active virtual environment.
BASE := $(shell $(PYTHON) -c 'import os, sys; print(os.path.realpath(sys._base_executable))' 2>/dev/null)
# What the environment was made from; a change of any of it rebuilds the environment.
KEY := $(shell { $(BASE) -VV; echo '$(BASE) $(CURDIR)'; cat constraints.txt pyproject.toml; } 2>&1 | sha256sum | cut -c1-16)
STAMP := $(VENV)/made-$(KEY)
ifneq ($(shell $(BIN)/python -c 'import batchd; print("sound")' 2>/dev/null),sound)
.PHONY: $(STAMP)
endif

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
define apt
command -v apt-get >/dev/null || { echo 'Install $(1) with the package manager of this system, then run make again.' >&2; exit 3; }
$(SUDO) apt-get update -qq
$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null
endef

.PHONY: help
help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

.PHONY: setup
setup: $(STAMP) bubblewrap trust ## make what is missing, and nothing else
	@$(if $(filter setup,$(MAKECMDGOALS)),echo 'Ready: . $(VENV)/bin/activate && batchd init ~/spool')

.PHONY: demo
demo: setup ## the whole way from inbox to outbox, with a stand-in model
	@$(BIN)/batchd demo

# Else each of some thousand processes would compile what changed for itself.
unexport PYTHONDONTWRITEBYTECODE

# What was drawn is drawn again: `make test SEED=7`.
SEED := $(or $(SEED),$(shell date +%s))
# Most tests wait for daemons that wait: two processors have time for six.
FILES_AT_A_TIME := -n 6 --dist loadfile --no-loadscope-reorder

SPACED_PATH := a path with spaces
# What is of no account in a short path without spaces, and shows in a user's: a folder for temporary files, removed afterwards.
define elsewhere
place=$$(mktemp -d)
trap 'kill $$(jobs -p) 2>/dev/null || :; rm -rf "$$place"' EXIT
chmod 755 "$$place"
export TMPDIR="$$place/$(1)"
mkdir -p "$$TMPDIR"
endef

.PHONY: test
test: setup git strace tmux systemd chromium ## the tests without the long ones, a sample of the rest by SEED; six files at a time
	@echo "sample: SEED=$(SEED)"
	$(call elsewhere,$(SPACED_PATH))
	BATCHD_SAMPLE_SEED=$(SEED) $(BIN)/python -m pytest $(FILES_AT_A_TIME) $(TESTS)

# What is of no account on a quiet machine, and shows on a busy one: what hangs on time, or on the length of a path.
LOAD ?= 8
LONG_PATH := a long path for temporary files
.PHONY: test-loaded
test-loaded: setup git strace tmux systemd chromium ## make test beside eight busy processes, with a long path for temporary files
	@echo "sample: SEED=$(SEED)"
	$(call elsewhere,$(LONG_PATH)/$(LONG_PATH)/$(LONG_PATH)/$(LONG_PATH))
	for _ in $$(seq $(LOAD)); do while :; do :; done & done
	BATCHD_SAMPLE_SEED=$(SEED) $(BIN)/python -m pytest $(FILES_AT_A_TIME) $(TESTS)

.PHONY: test-all
test-all: setup git strace tmux systemd chromium ## all tests
	@$(call elsewhere,$(SPACED_PATH))
	$(BIN)/python -m pytest $(FILES_AT_A_TIME) $(TESTS)

# Ray has an environment of its own: it is 285 MB, which few need.
CLUSTER := .cluster
.PHONY: cluster
cluster: bubblewrap
	@key=$(CLUSTER)/made-$(KEY)-$$(sha256sum constraints-cluster.txt | cut -c1-16)
	if [ ! -e "$$key" ]; then
	  echo 'Installing batchd with Ray into $(CLUSTER) (once) …'
	  rm -rf $(CLUSTER)
	  $(BASE) -m venv $(CLUSTER)
	  $(CLUSTER)/bin/python -m pip install -q --disable-pip-version-check -r constraints.txt -r constraints-cluster.txt
	  $(CLUSTER)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	  touch "$$key"
	fi

.PHONY: test-cluster
test-cluster: cluster ## the tests of workers on a Ray cluster of several nodes, all of them on this machine
	@$(CLUSTER)/bin/python -m pytest tests/cluster

STRIKES ?= 20
.PHONY: chaos-cluster
chaos-cluster: cluster ## kills, freezes, drains and restarts on a Ray cluster, TASKS=… STRIKES=… SEED=…; prints its seed and figures
	@BATCHD_CHAOS_SEED=$(SEED) BATCHD_CHAOS_TASKS=$(or $(filter-out 2000,$(TASKS)),500) BATCHD_CHAOS_STRIKES=$(STRIKES) $(CLUSTER)/bin/python -m pytest -s -o faulthandler_timeout=0 tests/cluster/test_cluster_chaos.py

.PHONY: demo-cluster
demo-cluster: cluster ## the demo's tasks on a Ray cluster of two nodes, and where each ran
	@$(CLUSTER)/bin/python tests/cluster/demo.py

.PHONY: systemd-test
systemd-test: setup systemd ## the units on a machine with a real systemd, booted for it: needs root
	@if [ "$$(id -u)" != 0 ]; then echo 'Only root can boot a machine: sudo make systemd-test' >&2; exit 3; fi
	$(BIN)/python -m pytest tests/systemd

# Another seed: `make chaos SEED=7`. More or less of it: `make chaos TASKS=500 STORM_MINUTES=2`.
TASKS ?= 2000
STORM_MINUTES ?= 10
.PHONY: chaos
chaos: setup git strace ## the long form of tests/chaos: kills, outages, full disks, a storm of all of it; prints its seed and figures
	@BATCHD_CHAOS_SEED=$(SEED) BATCHD_CHAOS_TASKS=$(TASKS) BATCHD_CHAOS_STORM_S=$$(($(STORM_MINUTES) * 60)) $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/chaos

# One gust of it again: `make chaos-hour SEED=7 GUST=12`. Without what is known: `make chaos-hour WITHOUT="poison clock"`.
HOURS ?= 1
.PHONY: chaos-hour
chaos-hour: setup ## an hour (HOURS=…) of random weather, kills, clocks, orders, files and disks; goes on after a fault; disks need root
	@$(BIN)/python tests/chaos/storm.py --seed $(SEED) --minutes $$(($(HOURS) * 60)) --gust $(or $(GUST),1) --go-on --without $(WITHOUT)

# One or some of them: `make attacks-weakened LAYERS="seccomp mounts"`.
.PHONY: attacks-weakened
attacks-weakened: setup ## shows that each attack can succeed: takes away one layer of the sandbox at a time; needs root
	@$(BIN)/python tests/attacks/weakened.py $(LAYERS)

SOAK_MINUTES ?= 5
.PHONY: soak
soak: setup ## thousands of small tasks for SOAK_MINUTES: memory, descriptors, files must stay flat
	@$(BIN)/python tests/chaos/soak.py --minutes $(SOAK_MINUTES)

.PHONY: soak-hour
soak-hour: setup ## the same for an hour (HOURS=…), with a storm of 429s in every third minute
	@$(BIN)/python tests/chaos/soak.py --minutes $$(($(HOURS) * 60)) --storms

.PHONY: generated
generated: setup ## make completions, man page and schemas in batchd/data from the code
	@PYTHONPATH=tests $(BIN)/python -m generated batchd/data

.PHONY: pictures
pictures: setup tmux chromium ## draw the pictures of README.md: `top` and the report, from the demo's model at work
	@$(BIN)/python benchmarks/pictures.py

.PHONY: wheel
wheel: setup ## build dist/batchd-….whl, which pip, pipx and uv install: needs no network
	@rm -f dist/batchd-*.whl
	$(BIN)/python -m hatchling build -t wheel -d dist

.PHONY: lint
lint: setup ## ruff, its formatter, mypy --strict
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: rivals
rivals: setup ## batchd beside other agents' libraries, which get an environment of their own
	test -x .rivals/bin/python || $(PYTHON) -m venv .rivals
	.rivals/bin/pip install -q -r benchmarks/rivals/requirements.txt
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/rivals/compare.py .rivals/bin/python

.PHONY: scale
scale: setup ## the ceiling of one daemon: 1,000, 5,000 and 10,000 simulated agents over real pipes
	@$(BIN)/python benchmarks/scale/scale.py

.PHONY: scale-ray
scale-ray: cluster ## the same batch on this machine's workers and on a Ray cluster of three nodes: results, accounting, CPU
	@$(CLUSTER)/bin/python benchmarks/scale/pair.py

.PHONY: bench
bench: setup chromium ## every benchmark, against a floor taken in the same run
	@missed=0
	for b in benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python "$$b" || missed=1; done
	exit $$missed

.PHONY: clean
clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) $(CLUSTER) .mypy_cache .pytest_cache .ruff_cache

$(STAMP):
	@if [ -z '$(BASE)' ]; then echo 'There is no $(PYTHON); install Python 3.11 or newer.' >&2; exit 3; fi
	if ! $(BASE) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	  echo '$(PYTHON) is older than 3.11; name a newer one: make … PYTHON=python3.13' >&2; exit 3
	fi
	if ! $(BASE) -c 'import ensurepip, venv' 2>/dev/null; then $(call apt,python3-venv); fi
	echo 'Installing batchd into $(VENV) (once) …'
	rm -rf $(VENV)
	$(BASE) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	# The user who runs it may not be allowed to write here, and would compile it again at each start.
	$(BIN)/python -m compileall -q batchd
	touch $@

# Setting a checkout up means that its config.toml counts. Where there is no home for the list, all but that works.
.PHONY: trust
trust: $(STAMP)
	@$(BIN)/batchd trust '$(CURDIR)' >/dev/null || true

# Versions before 0.12 can be led astray by symlinks while they set a sandbox up (CVE-2026-87766).
.PHONY: bubblewrap
bubblewrap:
	@new() { printf '0.12\n%s\n' "$$(bwrap --version 2>/dev/null | cut -d' ' -f2)" | sort -VC; }
	if new; then exit 0; fi
	echo 'Installing bubblewrap …'
	$(call apt,bubblewrap)
	if ! new; then echo 'bubblewrap 0.12 or newer is needed; this system offers an older one.' >&2; exit 3; fi

# Shows the tests that what is promised is on the disk first.
.PHONY: git
git:
	@if command -v git >/dev/null; then exit 0; fi
	echo 'Installing git …'
	$(call apt,git)

.PHONY: strace
strace:
	@if command -v strace >/dev/null; then exit 0; fi
	echo 'Installing strace …'
	$(call apt,strace)

# The terminal of the tests that look at a screen.
.PHONY: tmux
tmux:
	@if command -v tmux >/dev/null; then exit 0; fi
	echo 'Installing tmux …'
	$(call apt,tmux)

# Reads the reports in tests/browser. Without windows it is 70 MB to fetch.
.PHONY: chromium
chromium:
	@for name in chromium-headless-shell chromium chromium-browser google-chrome; do
	  if command -v "$$name" >/dev/null; then exit 0; fi
	done
	echo 'Installing chromium-headless-shell …'
	$(call apt,chromium-headless-shell)

# A machine for tests/systemd: its first process, its users' sessions and its accounts; git, as docs/operating.md installs by it.
.PHONY: systemd
systemd:
	@missing=()
	[ -x /lib/systemd/systemd ] && command -v systemctl >/dev/null || missing+=(systemd)
	command -v dbus-daemon >/dev/null || missing+=(dbus)
	ls /lib/*/security/pam_systemd.so >/dev/null 2>&1 || missing+=(libpam-systemd)
	command -v nsenter >/dev/null && command -v setpriv >/dev/null || missing+=(util-linux)
	command -v useradd >/dev/null || missing+=(passwd)
	command -v git >/dev/null || missing+=(git)
	if [ "$${#missing[@]}" = 0 ]; then exit 0; fi
	echo "Installing $${missing[*]} …"
	$(call apt,$${missing[*]})
