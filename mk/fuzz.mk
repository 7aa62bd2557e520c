# The picklers with random and with changed input, and with an intruder at each point where foreign code can run.

## fuzz         change pickles for FUZZ_SECONDS, guided by coverage, and compare, under the sanitizers (needs clang)
## graphs       random graphs of objects through every pickler and the store (GRAPHS_ARGS="--count 1000000 --threads 8")
## intruder     what foreign code may do at each point of the picklers, for INTRUDER_GRAPHS graphs; then under the sanitizers
## mutation-picklers  faults planted in the picklers, one at a time: the intruder must find each (MUTATION_ARGS="--only f03")

# Guided by coverage: what unpickles, compiled by clang over an installed release, and libFuzzer. Input that aborts is
# kept as build/guided/crash-..., input that reaches new code in build/guided/pickles and arrays.
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

INTRUDER_TESTS := $(wildcard tests/unit/*/test_*pickler_cpython.py)
.PHONY: intruder
intruder: $(STAMP)/installed $(STAMP)/intruder $(STAMP)/intruder-asan
	@PYTHONPATH=$(INTRUDER) $(VENV)/bin/python -P tests/fuzz/intruder.py --graphs $(INTRUDER_GRAPHS)
	@PYTHONPATH=$(INTRUDER):tests/fuzz $(PYTEST) -p intruder_plugin $(INTRUDER_TESTS) $(PYTEST_ARGS)
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  PYTHONMALLOC=malloc PYTHONPATH=$(INTRUDER_ASAN) \
	  $(VENV)/bin/python -P tests/fuzz/intruder.py --points 10 --graphs $$(( $(INTRUDER_GRAPHS) / 10 ))

# Faults planted in the picklers: tests/mutation/picklers.toml. A mutant reuses the objects of the intruder's build.
.PHONY: mutation-picklers
mutation-picklers: $(STAMP)/installed $(STAMP)/intruder
	@CC="$(CC_TEST)" $(VENV)/bin/python -P tests/mutation/run_picklers.py --build $(BUILD)/intruder --site $(INTRUDER) \
	  --out $(BUILD)/mutation-picklers --jobs $(JOBS) $(MUTATION_ARGS)
