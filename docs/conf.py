"""Sphinx configuration."""

from comove import __version__

project = "comove"
author = "The comove maintainers"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"comove {__version__}"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_mock_imports = ["lightning", "transformers", "accelerate"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # several classes have attributes of one name (seed, bytes): any of them will do
