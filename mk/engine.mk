# The C engine alone: its tests, their coverage, planted bugs and models.

## ctest        the C engine alone: plain, address + undefined, thread sanitizer
## tsan         the C tests under the thread sanitizer
## torture      the long runs: death after every instruction, 100,000 random kills, 10 million damaged inputs
## failpoints   every failpoint and every failing system call, in every scenario, counted
## mutation     bugs planted in the engine, one at a time: each must be caught (MUTATION_ARGS="--only lock.c")
## model        the Spin models of the engine's protocols and the errors planted in them (needs spin)
## coverage-c   lines and branches of the engine under the C tests alone, and unreached branches without a reason

# Every tests/c/test_*.c and tests/torture/torture_*.c is a separate program; the torture programs run briefly here
# and at full length under `make torture`.
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
# All handles of a store in a process map its tables at one address; tests/c/tsan/one_address.c says why.
CTEST_tsan_also := $(BUILD)/ctest/tsan/tests/c/tsan/one_address.o
CTEST_tsan_link := -Wl,--wrap=prs_os_map,--wrap=prs_os_map_fixed,--wrap=prs_os_map_zero_fixed,--wrap=prs_os_unmap
CTEST_cover  := -O0 --coverage -fprofile-update=atomic -D_GNU_SOURCE=1 -include tests/c/coverage.h
CTEST_VARIANTS := plain asan tsan cover
# The programs to run, all by default: make ctest-asan CTEST_ONLY="test_fill".
CTEST_ONLY   ?=

define ctest_variant
$(BUILD)/ctest/$(1)/%.o: %.c mk/engine.mk
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
	@failed=; for program in $(or $(CTEST_ONLY),$(CTEST_PROGS) $(TORTURE_PROGS)); do \
	  echo "run: $(1) $$$$program"; \
	  ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  TSAN_OPTIONS=halt_on_error=1:die_after_fork=0:second_deadlock_stack=1 \
	  $(BUILD)/ctest/$(1)/$$$$program || { echo "ctest: $(1) $$$$program failed"; failed=yes; }; \
	done; test -z "$$$$failed"
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

# Cases that only reach the same code again, later or longer, are left out, because every run of CI runs this.
COVER_PROGS := $(filter-out test_engine_storm test_engine_errors,$(CTEST_PROGS)) torture_fuzz
COVER_test_engine_crash    := killed_alone errors_are
COVER_test_engine_segments := named pulls no_store others image truncated versions several descriptors newcomer janitor exec living fork
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
	@$(PYTHON) tools/coverage_table.py $(BUILD)/ctest/cover/coverage.json $(ROOT)

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
