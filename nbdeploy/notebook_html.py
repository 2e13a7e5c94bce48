"""An executed notebook as one page: everything is in it, nothing in it runs, and it asks no server for anything."""

from __future__ import annotations

import logging
from typing import Any

# Over nbconvert's own page: without its scripts, which it loads from elsewhere, and closed to all others.
_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
font-src data:; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
{%- endblock html_head_js -%}
{%- block jupyter_widgets -%}{%- endblock jupyter_widgets -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
"""
_NAME = "nbdeploy.html.j2"

# What can be seen without a script, the best first.
_SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
HIDDEN_INPUTS = ("remove-input", "hide-input")  # tags, as Jupyter Book has them


logging.getLogger("nbdeploy.notebook").addHandler(logging.NullHandler())


def page(notebook: Any, title: str) -> str:
    """The HTML of an executed notebook, whose cells tagged ``remove-input`` show their outputs alone.

    Scripts in outputs, widgets and formulas are not shown by it: they need code to run. What a notebook of nbformat
    holds is not changed.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
    title : str
        Of the page.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    hidden = {*HIDDEN_INPUTS}
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if any(hidden & {*cell.metadata.get("tags", [])} for cell in tagged):
        hidden.add("injected-parameters")
    config = Config()
    config.NbConvertBase.display_data_priority = _SHOWN
    config.HTMLExporter.exclude_anchor_links = True
    config.HTMLExporter.exclude_output_prompt = True
    config.HTMLExporter.embed_images = True
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_input_tags = hidden
    config.TagRemovePreprocessor.remove_cell_tags = {"remove-cell"}
    log = logging.getLogger("nbdeploy.notebook")  # nbconvert says there what it misses, an image's description say
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        config=config, extra_loaders=[DictLoader({_NAME: _TEMPLATE})], template_file=_NAME, log=log
    )
    metadata = {
        key: value for key, value in notebook.metadata.items() if key != "widgets"
    }  # what needs code to be seen
    inert = nbformat.from_dict({**notebook, "metadata": metadata})
    html, _ = exporter.from_notebook_node(inert, resources={"metadata": {"name": title}})
    return str(html)
