# Two commands: `make demo` trains a GAN on real handwritten digits, `make test` proves the package.
# Both make .venv with the pinned, tested set first.

PYTHON ?= python3
VENV ?= .venv
RUN ?=
# What `make sanitize` runs: the operations by every backend of the CPU.
SANITIZE ?= tests/ops -k "not compile and not export and not trac"
# What suits small digits best; larger pictures want the defaults.
DEMO := --data digits --latent-dim 16 --critic-steps 1 --lr 0.001
bin := $(VENV)/bin
install = $(bin)/python -m pip install --quiet --constraint constraints.txt
# What fastgen._C is made of: a change compiles again what it touches.
sources := $(shell find csrc build_support -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu')
test_build := $(or $(FASTGEN_BUILD),$(if $(shell command -v nvcc),cuda,auto))

# Sanitizers find what a test of results does not: a read beyond a tensor, a signed overflow. Checks of
# accesses are calls: written out at each of them, kernels take half as long again to compile.
sanitizers := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1 \
	--param asan-instrumentation-with-call-threshold=0
# libstdc++ too: without it in the preload, a C++ exception ends the process.
preload = $$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)
sanitized := $(CURDIR)/build/sanitize
reports := $(sanitized)/report
sanitizing = LD_PRELOAD="$(preload)" ASAN_OPTIONS=detect_leaks=0:log_path=$(reports) \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=$(reports) PYTHONPATH=$(sanitized) FASTGEN_REQUIRE_MODULE=$(sanitized)

# What `make emulate` runs: the tests for a GPU, but for those of speed and of machine code, and but for
# what Triton's interpreter takes minutes for.
EMULATE ?= tests/ops/test_on_gpu.py tests/ops/test_on_gpu_surroundings.py tests/data/test_batches.py \
	tests/training/test_capture_gpu.py \
	-k "not compiles and not reach_every and not (surroundings and triton and edge)"
emulation := $(CURDIR)/build/emulation
emulated := $(emulation)/venv/bin
emulating = LD_LIBRARY_PATH=$(emulation)/lib PYTHONPATH=$(emulation)/package:$(CURDIR)/tests/emulation \
	TRITON_INTERPRET=1 FASTGEN_EMULATED_GPUS=2 FASTGEN_REQUIRE_GPU=1

.PHONY: help demo test lint typecheck sanitize emulate clean

help:
	@echo "make demo   install into $(VENV), train a Wasserstein GAN on handwritten digits, show where the picture is"
	@echo "make test   install into $(VENV), check style and types, run the test suite"
	@echo "make sanitize  the same tests of the CPU kernels under AddressSanitizer and UBSan"
	@echo "make emulate   the tests for a GPU on an emulated one (fetches a CUDA build of torch; see docs/gpu.md)"
	@echo "make clean  remove build products (not $(VENV), not runs/)"

demo: $(VENV)/.train
	$(bin)/fastgen train wgan $(DEMO) $(if $(RUN),--run $(RUN))

test: $(VENV)/.dev lint typecheck
	FASTGEN_REQUIRE_CUDA_BUILD=$(if $(filter cuda,$(test_build)),1) $(bin)/pytest -n 2

# The kernels for CPUs, in a copy of the package; reports go to files, or they would be lost with the process.
sanitize: $(VENV)/.dev
	CXXFLAGS="$(sanitizers)" LDFLAGS="$(sanitizers)" FASTGEN_BUILD=cpu FASTGEN_BUILD_DIR=$(sanitized) \
		$(bin)/python -m build_support --into $(sanitized)
	@# A read beyond a tensor, planted, has to be found.
	rm -f $(reports).*
	! $(sanitizing) $(bin)/python tests/planted.py
	grep -q 'AddressSanitizer: heap-buffer-overflow' $(reports).*
	rm -f $(reports).*
	$(sanitizing) $(bin)/pytest -q -n 2 -p no:cacheprovider --timeout 900 $(SANITIZE) || \
		{ cat $(reports).* 2> /dev/null; exit 1; }

# A CUDA build of torch without CUDA's libraries, which tests/emulation stands in for.
$(emulation)/.made: tests/emulation/toolkit.py $(wildcard tests/emulation/*.cpp tests/emulation/*.h)
	$(PYTHON) -m venv $(emulation)/venv
	$(emulated)/pip install --quiet --no-deps torch==2.11.0 triton==3.6.0
	$(emulated)/pip install --quiet 'numpy<2.4' sympy networkx jinja2 fsspec filelock typing_extensions setuptools \
		hypothesis pybind11 ninja pytest pytest-benchmark pytest-timeout pytest-xdist pillow rich safetensors scikit-learn scipy tqdm
	PYTHONPATH=$(CURDIR) $(emulated)/python tests/emulation/toolkit.py $(emulation)
	@touch $@

emulate: $(emulation)/.made
	CUDA_HOME=$(emulation)/cuda FASTGEN_BUILD=cuda FASTGEN_CUDA_ARCHS=90 FASTGEN_BUILD_DIR=$(emulation) \
		$(emulated)/python -m build_support --into $(emulation)/package
	$(emulating) $(emulated)/pytest -n 2 -p emulation -m gpu -p no:cacheprovider --timeout 900 $(EMULATE)

lint: $(VENV)/.dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

typecheck: $(VENV)/.dev
	$(bin)/mypy

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastgen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its pin alone, so that no other package's wish picks another build of it; then the
# build tools, since the package is built in this environment, where torch's headers are.
$(VENV)/.tools: $(bin)/python constraints.txt
	$(install) torch
	$(install) setuptools pybind11 ninja
	@touch $@

# Beside a CPU build of torch the demo leaves CUDA kernels out: they could not run and take a minute.
$(VENV)/.train: $(VENV)/.tools pyproject.toml setup.py $(sources)
	FASTGEN_CUDA_ARCHS="$${FASTGEN_CUDA_ARCHS-$$($(bin)/python -c 'import torch; print("" if torch.version.cuda else "none")')}" \
		$(install) --no-build-isolation --editable '.[train]'
	@$(bin)/python -m build_support --pure
	@touch $@

# The tests compile everything, CUDA too where there is a CUDA compiler. Of CUTLASS the headers are
# all that is needed, not the Python packages that it asks for.
$(VENV)/.dev: $(VENV)/.tools pyproject.toml setup.py $(sources)
	$(install) --no-deps --upgrade --target $(VENV)/cutlass nvidia-cutlass
	FASTGEN_BUILD=$(test_build) $(install) --no-build-isolation --editable '.[dev]'
	@$(bin)/python -m build_support --pure
	@touch $(VENV)/.train $@

clean:
	rm -rf build dist *.egg-info fastgen/_C.*.so fastgen/_build.json .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
