"""How Sphinx makes the site from these pages: `make docs`.

The pages are Markdown that GitHub shows as well. What only the site has is put in when a page is
read: the marker `<!-- site: NAME -->` becomes what `generated.py` beside this file makes of NAME,
and a link to a file outside of docs/ becomes the name of that file.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]
os.environ["COLUMNS"] = "100"  # of help texts, whatever the terminal

import generated  # type: ignore[import-not-found]  # noqa: E402  (beside this file)

from ssl_selmix import __version__  # noqa: E402

project = "ssl_selmix"
author = "ssl_selmix maintainers"
project_copyright = "ssl_selmix maintainers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["_build"]
nitpicky = False  # docstrings name types of torch, whose documentation is elsewhere
default_role = "code"  # docstrings have Markdown's `code`

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # results/ begins with tables at the second level

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "ssl_selmix"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for files on a disk
html_show_sphinx = False
smartquotes = False  # --init is an option, no dash

MARKER = re.compile(r"^<!-- site: ([\w-]+) ?(.*?) -->$", re.M)
LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^]]*\])+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def without_outside_links(text: str, page: Path) -> str:
    """Links to folders, and to files outside of docs/, as their text and the name of the file."""

    def shown(found: re.Match[str]) -> str:
        goal = (page.parent / found[2]).resolve()
        if not goal.exists() or (goal.is_relative_to(DOCS) and goal.is_file()):
            return found[0]
        name = f"`{goal.relative_to(DOCS.parent)}`"
        return found[1] if name.strip("`") in found[1] else f"{found[1]} ({name})"

    return LINK.sub(shown, text)


def on_source_read(app: Any, docname: str, source: list[str]) -> None:
    """Complete a page as it is read; see the top of this file."""
    page = Path(app.env.doc2path(docname))
    made = MARKER.sub(lambda found: generated.made(found[1], found[2]), source[0])
    source[0] = without_outside_links(made, page)


def outdated(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """The pages with generated parts: the code that these follow is not among Sphinx's files."""
    found = env.found_docs
    return [name for name in found if MARKER.search(Path(env.doc2path(name)).read_text("utf-8"))]


def setup(app: Any) -> dict[str, Any]:
    """Have Sphinx complete the pages."""
    app.connect("source-read", on_source_read)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
