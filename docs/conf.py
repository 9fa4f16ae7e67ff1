"""Settings of Sphinx: `make docs` builds this folder into site/, without a network."""

from pygments.lexers.data import JsonLexer
from sphinx.application import Sphinx

from acontrol import __version__

project = "AnomalyControl"
copyright = "the acontrol contributors, Apache-2.0"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["conf.py"]
# Links to headings, as GitHub makes them.
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"acontrol {__version__}"
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Requests files are one JSON object a line."""
    app.add_lexer("jsonl", JsonLexer)
