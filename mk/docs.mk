# The documentation site.

## docs         the documentation site in build/docs/html, with warnings as errors
## docs-links   the site, and whether each of its links and anchors leads somewhere (EXTERNAL=1: also other sites)

DOCS      := $(BUILD)/venv-docs
DOCS_HTML := $(BUILD)/docs/html
EXTERNAL  ?=

$(STAMP)/docs-venv: pyproject.toml $(STAMP)/python
	@echo "venv: $(DOCS)"
	$(call make_venv,$(DOCS))
	@packages=$(call group,docs) && $(DOCS)/bin/python $(PIP) install $$packages
	@touch $@

# The pages about functions and commands come from the installed wheel.
$(STAMP)/docs: $(STAMP)/wheel $(STAMP)/docs-venv
	@wheel=$$(echo $(BUILD)/release/*.whl) && \
	  $(DOCS)/bin/python $(PIP) install "$$wheel" && \
	  $(DOCS)/bin/python $(PIP) install --no-deps --force-reinstall "$$wheel"
	@touch $@

SPHINX = PYTHONDONTWRITEBYTECODE=1 $(DOCS)/bin/python -P -m sphinx -q -n -W --keep-going --doctree-dir $(BUILD)/docs/doctrees

.PHONY: docs docs-links
docs: $(STAMP)/docs
	@$(SPHINX) -b html docs $(DOCS_HTML)
	@echo "docs: $(DOCS_HTML)/index.html"

docs-links: docs
	@$(DOCS)/bin/python -P tools/check_links.py $(DOCS_HTML)
	@test -z "$(EXTERNAL)" || $(SPHINX) -b linkcheck docs $(BUILD)/docs/linkcheck
