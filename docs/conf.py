"""Configuration of the documentation site; `make docs` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import pyray_ser

project = "pyray_ser"
author = "The pyray_ser developers"
copyright = author
release = version = pyray_ser.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "accessibility",
    "repository_pages",
    "short_names",
]
exclude_patterns = ["README.md", "internals/plan.md", "pictures/*.md"]
root_doc = "index"

# ---- Markdown ---------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# A code block without a language holds a command line or its output.
highlight_language = "text"

# ---- API --------------------------------------------------------------------------------------------------------------

# The build documents the integrations without installing the packages that they support.
autodoc_mock_imports = ["dask", "distributed", "mpi4py", "prometheus_client"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
# A name in single backticks is a link if the site describes it, and code otherwise.
default_role = "py:obj"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

# ---- HTML -------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "pyray_ser"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b6e4f",
        "color-brand-content": "#0b6e4f",
        "color-brand-visited": "#4b5f8a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fd3a5",
        "color-brand-content": "#5fd3a5",
        "color-brand-visited": "#9db4e8",
    },
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
