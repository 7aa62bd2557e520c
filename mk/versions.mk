# Other projects' suites, other versions of Python.

## test-peers   other projects' suites with and without install(), and what differs (PEERS="cpython-fork joblib")
## test-versions  the tests on other Pythons (VERSIONS="python3.12 /srv/python/sid ..."), and without CPython's internals

PEERS ?=
# The packages of the other tests, and packages that only these suites need.
PEERS_VENV := $(BUILD)/peers/venv
$(STAMP)/peers: $(STAMP)/installed-heavy
	@echo "install: $(PEERS_VENV)"
	$(call make_venv,$(PEERS_VENV))
	@echo $(HEAVY)/lib/python*/site-packages > $$(echo $(PEERS_VENV)/lib/python*/site-packages)/tests.pth
	@$(PEERS_VENV)/bin/python $(PIP) install distributed loky
	@touch $@

.PHONY: test-peers
test-peers: $(STAMP)/peers
	@$(PEERS_VENV)/bin/python -P tests/peers/suites.py --sources $(BUILD)/peers $(PEERS)

# Interpreters by name or path, or folders with another Debian in them (tools/make_python_root.sh). Each has its own
# build folder, so nothing is built twice. All of them run and report, even when an earlier one has failed.
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

# As on an unknown version of Python: the public form of every entry of csrc/common/interp.h.
PUBLIC_TESTS := $(wildcard tests/unit/pickling/test_pickler*.py tests/unit/pickling/test_unpickler*.py) tests/unit/pickling/test_ndarray_template.py tests/fuzz
$(STAMP)/public: $(SOURCES) $(STAMP)/sources $(STAMP)/venv
	$(call build_wheel,public,PYRAY_SER_PUBLIC_API=1)
	@rm -rf $(BUILD)/public/site
	@$(VENV)/bin/python $(PIP) install --no-deps --target $(BUILD)/public/site $(BUILD)/public/*.whl
	@touch $@

test-public-api: $(STAMP)/installed $(STAMP)/public
	@PYTHONPATH=$(BUILD)/public/site $(PYTEST) -m "not heavy and not timing" $(PUBLIC_TESTS) $(PYTEST_ARGS)
