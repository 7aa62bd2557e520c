# The pictures of the documentation, and pages in a browser.

## pictures     draw docs/pictures again: diagrams, charts of bench/data, terminals (PICTURES="diagrams charts terminal")
## browser      the pictures and pages in Chromium: errors, overflow, accessibility; screenshots in build/screenshots

PICTURES ?=
PICTURES_VENV := $(BUILD)/venv-pictures
AXE := $(BUILD)/npm/node_modules/axe-core/axe.min.js

# The packages of the group `docs` that draw and look; the group also has the packages of all tests.
$(STAMP)/pictures: $(STAMP)/wheel
	@echo "install: $(PICTURES_VENV)"
	$(call make_venv,$(PICTURES_VENV))
	@packages=$$(printf '%s\n' $(call group,docs) | grep -E '^(matplotlib|playwright|rich)') && \
	  $(PICTURES_VENV)/bin/python $(PIP) install $(BUILD)/release/*.whl "pytest>=8.1" "pytest-timeout>=2.3" psutil $$packages
	@touch $@

.PHONY: pictures browser
pictures: $(STAMP)/pictures
	@$(PICTURES_VENV)/bin/python -P tools/pictures/draw.py --out docs/pictures $(PICTURES)

$(AXE):
	@echo "fetch: axe-core"
	@npm install --silent --no-audit --no-fund --cache $(BUILD)/npm/cache --prefix $(BUILD)/npm axe-core@4

# PYRAY_SER_SITE names the folder of a built site; build/docs/html by default.
browser: $(STAMP)/pictures $(AXE)
	@PYRAY_SER_AXE=$(AXE) $(PICTURES_VENV)/bin/python -P -m pytest tests/browser $(PYTEST_ARGS)
