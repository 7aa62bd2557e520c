# The Python tests with instrumented builds.

## asan         the tests under the address and undefined behaviour sanitizers
## coverage     line coverage of the C sources under the tests

$(STAMP)/asan: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,asan,PYRAY_SER_DEBUG=1 PYRAY_SER_SANITIZE=address$(comma)undefined)
	@rm -rf $(ASAN)
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(ASAN) $(BUILD)/asan/*.whl
	@touch $@
comma := ,

# A test that expects a process to die of SIGSEGV must see SIGSEGV, not the sanitizer's own exit.
.PHONY: asan
asan: $(STAMP)/installed $(STAMP)/asan
	@cc=$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_config_var("CC").split()[0])'); \
	  LD_PRELOAD="$$($$cc -print-file-name=libasan.so) $$($$cc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1:max_allocation_size_mb=4096:abort_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  PYTHONMALLOC=malloc PYTHONPATH=$(ASAN) PYRAY_SER_DEBUG_PATH=$(ASAN) PYRAY_SER_UNDER_SANITIZER=1 \
	  $(PYTEST) -m "not heavy and not timing" -p no:cacheprovider $(PYTEST_ARGS)

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
	@# The isolated build environment with numpy's headers no longer exists, so their inline functions have no source.
	@$(VENV)/bin/gcovr --root $(ROOT) --filter 'csrc/' --gcov-ignore-errors=source_not_found $(BUILD)/coverage
