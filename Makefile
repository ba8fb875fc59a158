# make study | test | ui | check: each installs first, once, into .venv.

STUDY ?= studies/heads.yaml
ARGS ?=
MLRUNS ?= mlruns
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin

# Every question that needs nothing but the embedded corpus, those first whose pre-training others share.
EVIDENCE := heads depth label_fraction scratch convergence pretrain_data size lr_schedule batch_size dropout update_all search

.DEFAULT_GOAL := help
.PHONY: help install study evidence test test-slow test-browser check format ui lock clean

help:
	@echo "make study [STUDY=studies/heads.yaml] [ARGS='--preset smoke']   run a study, or go on with it"
	@echo "make evidence            every study of the embedded corpus, and the report: 2 hours on 2 cores"
	@echo "make ui [PORT=5000]      compare the runs in a browser, on 127.0.0.1"
	@echo "make test                the tests (make test-slow, make test-browser: the rest)"
	@echo "make check               lint, format, types"

install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@for python in $(PYTHON) python3 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
			echo "installing into $(VENV) with $$python: some minutes, about 6 GB"; \
			exec $$python -m venv $(VENV); \
		fi; \
	done; echo "needs Python 3.11 or 3.12; name yours with make PYTHON=..." >&2; exit 1
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

study: install
	@$(BIN)/python -m workbench.study $(STUDY) --root "$(MLRUNS)" $(ARGS)

evidence: install
	@$(BIN)/python -m workbench.study $(EVIDENCE:%=studies/%.yaml) --root "$(MLRUNS)" $(ARGS); status=$$?; \
		[ $$status -gt 2 ] || $(BIN)/python analysis/report.py --root "$(MLRUNS)" || exit; exit $$status

test: install
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: install
	@$(BIN)/python -m pytest -m slow

# Needs chromium (Debian: chromium).
test-browser: install
	@$(BIN)/python -m pytest -m browser

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# One worker and no job runner: up in 10 s instead of 30, with a quarter of the memory.
ui: install
	@echo "http://127.0.0.1:$(PORT)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 \
		--port $(PORT) --workers 1 --backend-store-uri "sqlite:///$$(realpath "$(MLRUNS)")/mlflow.db"

# The versions that were tested, for every platform and Python that pyproject.toml admits.
lock: install
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --upgrade --extra dev --no-header \
		--no-annotate --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
