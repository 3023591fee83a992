"""Sphinx configuration. Pages are Markdown; the page of methods is written from the registry at build time."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import otbilevel
from otbilevel._core.registry import Registry
from otbilevel.bilevel.methods import METHODS as BILEVEL
from otbilevel.linalg.ihvp import METHODS as INVERSES
from otbilevel.ot.methods import METHODS

HERE = Path(__file__).parent

project = "otbilevel"
author = "otbilevel developers"
project_copyright = "2026, otbilevel developers"
version = release = otbilevel.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "generated", "gallery/*.md5", "race"]  # race is included by benchmarks.md
default_role = "code"
nitpicky = True
nitpick_ignore_regex = [(r"py:obj", r".*")]  # made by numpydoc from the names of attributes

html_theme = "pydata_sphinx_theme"
html_title = "otbilevel"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(?!study_)\w+\.py$",  # studies take minutes: their pictures are in docs/studies
    "write_computation_times": False,
    "show_memory": False,
}


def write_methods(registry: Registry, file: str, level: str) -> None:
    """Write the table of methods, and the options of each, from a registry."""
    parts = [registry.table()]
    for row in registry:
        summary = row.summary[0].upper() + row.summary[1:]
        limit = f"{row.max_iter:,}" if row.max_iter else "10 n"
        source = f" Source: {row.reference}." if row.reference else ""
        parts.append(f'{level} `"{row.name}"`\n\n{summary}.{source} By default at most {limit} iterations.\n')
        if dataclasses.fields(row.options):
            options = f"{row.options.__module__}.{row.options.__qualname__}"
            parts.append(f"```{{eval-rst}}\n.. autoclass:: {options}()\n   :no-index:\n```\n")
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    (folder / file).write_text("\n".join(parts), encoding="utf-8")


def escape_mathematics(*args: Any) -> None:
    """Let docstrings hold formulas as plain text: |x| is no substitution, a reference with an initial in front no list."""
    lines: list[str] = args[-1]
    for k, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            escaped = re.sub(r"(``.+?``|`.+?`)|\|", lambda match: match[1] or r"\|", line)
            lines[k] = re.sub(r"^(\s*)([A-Z]\. )", r"\1\\\2", escaped)


def setup(app: Any) -> None:
    """Connect what stands above to Sphinx, before numpydoc."""
    app.connect("autodoc-process-docstring", escape_mathematics, priority=1)


write_methods(METHODS, "methods.md", "##")
write_methods(INVERSES, "ihvp.md", "###")
write_methods(BILEVEL, "bilevel.md", "###")
