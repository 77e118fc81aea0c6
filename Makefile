# make demo      environment, then the whole study of config/demo.yaml
# make test      environment, then all tests, in two processes
# make check     what to run between two edits: style, types, the quickest telling tests (2 minutes)
# make lint      style, types, workflow
# make clean     remove results, rendered data and the workflow's notes (the environment stays)
# Others: pretrain-demo-world, generate, lock.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:

PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
READY := .venv/.ready
SMK := Snakefile $(wildcard workflow/rules/*.smk)

.PHONY: demo test check lint clean pretrain-demo-world generate lock environment

environment: $(READY)

# Made anew when the lock or the project's metadata change. --no-deps: the lock is complete, and some
# packages' own bounds are tighter than what works (envs/overrides.txt).
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --no-deps --disable-pip-version-check --retries 10 -r requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --disable-pip-version-check --no-build-isolation -e .
	touch $@

demo: $(READY)
	$(BIN)/python -m pipeline_steps.runtime.preloaded $(BIN)/snakemake --cores $(CORES)
	@echo; cat results/demo/tables/identity.md
	@echo; echo "All tables: results/demo/tables   Figures: results/demo/figures"
	@echo "Everything on one page: results/demo/report.html"

# One cluster takes one process, which mostly waits and so runs beside the others; its exit status 5:
# there is no cluster, and its tests are left out. All processes share one finished study.
test: $(READY)
	shared=$$(mktemp -d); trap 'rm -rf "$$shared"' EXIT; \
	export OMP_NUM_THREADS=1 FINISHED_STUDY="$$shared/study"; \
	$(BIN)/python -m pytest -q tests/cluster &>"$$shared/cluster.txt" & cluster=$$!; \
	others=0; $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore tests/cluster || others=$$?; \
	slurm=0; wait $$cluster || slurm=$$?; cat "$$shared/cluster.txt"; \
	test $$others -eq 0 && [[ $$slurm =~ ^[05]$$ ]]

check: $(READY)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x -m "not slow" $(QUICK)

# Imports and dependencies, settings, plan and key, command lines, numbers against their closed forms.
QUICK := tests/study/test_imports.py tests/test_dependencies.py \
	tests/study/test_base.py tests/study/test_command.py tests/study/test_key.py \
	tests/study/test_store.py tests/study/test_registry.py tests/runtime/test_errors.py \
	tests/io/test_atomic.py tests/io/test_checkpoint.py tests/test_seeds.py tests/test_naming.py \
	tests/metrics/test_frechet.py tests/metrics/test_mmd.py tests/metrics/test_verification.py \
	tests/recognition/test_margins.py tests/recognition/test_protocol.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check $(SMK)
	$(BIN)/snakemake --lint
	$(BIN)/python -m pipeline_steps.study.generate --check

clean:
	rm -rf results data/demo_world .snakemake .pytest_cache .ruff_cache .mypy_cache

# The weights of the embedded world, from where the last training ended; ends by itself after MINUTES.
# KEEP=resources/pretraining also writes there what the next training goes on from.
DEVICE ?= cpu
MINUTES ?= inf
KEEP ?=
pretrain-demo-world: $(READY)
	$(BIN)/python -m pipeline_steps.demo_world.pretrain --device $(DEVICE) --minutes $(MINUTES) \
		$(if $(KEEP),--keep $(KEEP))

# Schema, commented default configuration and pinned hashes, from the settings models.
generate: $(READY)
	$(BIN)/python -m pipeline_steps.study.generate

# The lock, from pyproject.toml; versions already in it are kept. Needs uv (pip install uv).
UV ?= uv
lock:
	$(UV) pip compile pyproject.toml --extra dev --override envs/overrides.txt --universal \
		--python-version 3.11 --no-emit-index-url --no-header --no-annotate --system-certs \
		--quiet --output-file requirements.lock
	$(PYTHON) envs/clean_lock.py requirements.lock
