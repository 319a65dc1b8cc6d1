# Every target prints what it does with `make help`. Only Python >= 3.11 and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# one thread a process: the parallelism is in the trials; two threads on a shared core slow each other down
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
RUN := $(BIN)/python -m bench.run
MAIN_ROWS_DIGITS := --only amm --only aae --only ali_kmeans --only kmeans

.DEFAULT_GOAL := help
.PHONY: help install quickstart test faults soak verify check lint types format reproduce-table1 reproduce-table2 figures study report speed lock clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old: Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

install: $(READY) ## make the virtual environment .venv with everything in it

quickstart: $(READY) ## AMM, AAE, ALI and k-means, 10 seeds each, on the embedded data; prints the tables (12 minutes on 2 cores)
	$(RUN) --suite plane_unsup
	$(RUN) --suite digits_unsup $(MAIN_ROWS_DIGITS)
	$(BIN)/python -m bench.table --suite plane_unsup --out results/quickstart/plane_unsup.md
	$(BIN)/python -m bench.table --suite digits_unsup --out results/quickstart/digits_unsup.md
	@cat results/quickstart/plane_unsup.md results/quickstart/digits_unsup.md
	@echo "The tables lie in results/quickstart/, the records of every trial in results/runs/."

test: $(READY) ## the default tests, in two processes (5 minutes on 2 cores)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist worksteal

faults: $(READY) ## every fault of docs/faults.md injected for real, the slow ones too (5 minutes)
	AMM_FUZZ=300 $(ONE_THREAD) $(BIN)/python -m pytest -q -m "fault and not gpu and not data" tests

soak: $(READY) ## a hundred kills at random moments, then every record compared with an undisturbed run's (10 minutes)
	$(ONE_THREAD) $(BIN)/python -m tests.soak $(ARGS)

verify: $(READY) ## every committed table derived from the committed records again, and every record checked
	$(BIN)/python -m bench.verify

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test ## lint, types and tests

format: $(READY) ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce-table1: $(READY) ## Table 1: plan, run or resume, aggregate, write results/table1.md (ARGS="--yes --budget quick")
	$(BIN)/python -m bench.reproduce table1 $(ARGS)

reproduce-table2: $(READY) ## Table 2: the same for SVHN with 1,000 labels, results/table2.md
	$(BIN)/python -m bench.reproduce table2 $(ARGS)

figures: $(READY) ## pictures of every suite's rows beside the published values, in results/figures/
	@for suite in mnist_unsup mnist_whole mnist14_semi svhn_unsup svhn_semi digits_unsup digits_semi plane_unsup; do \
		$(BIN)/python -m bench.figures --suite $$suite || [ $$? = 3 ] || exit; done # 3: it has no result yet

study: $(READY) ## the studies' tables and curves from their records, docs/ablation_*.md, docs/checks_*.md and .png
	for suite in ablation_plane ablation_digits ablation_mnist14 checks_mnist14; do $(BIN)/python -m bench.study --suite $$suite --out docs/$$suite || exit; done

report: $(READY) ## one page with all tables, pictures and sources: results/report.html and .md
	$(BIN)/python -m bench.report

speed: $(READY) ## our steps against plain PyTorch and the machine's limit; the harness's own cost (20 minutes)
	$(BIN)/python -m bench.speed

lock: $(READY) ## write the versions installed here to requirements.lock
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip list --format=freeze --exclude-editable | grep -v -i -E '^(pip|setuptools|nvidia|cuda|triton)'; } > requirements.lock.part
	mv requirements.lock.part requirements.lock

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
