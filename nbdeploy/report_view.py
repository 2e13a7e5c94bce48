"""A third party's HTML page, made inert, and shown in a notebook without being saved in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

SLOT = "/*nbdeploy-bundle*/"

# A page may run the scripts it was made with, by their hash, and nothing else. It reaches no server.
_POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)

# Fits a page made for a wide screen, and tells an embedding view how high it is.
_FIT = """
(() => {
  const fit = () => { document.body.style.zoom = Math.min(1, document.documentElement.clientWidth / 1000); };
  const tell = () => { if (parent !== window) {
    parent.postMessage({ nbdeployHeight: document.body.getBoundingClientRect().height }, '*'); } };
  fit();
  addEventListener('resize', fit);
  new ResizeObserver(tell).observe(document.body);
})();
"""

_PAGE_STYLE = (
    "body{margin:0}.nbdeploy-note{font:13px/1.5 system-ui,sans-serif;padding:10px 24px;color:#444;background:#f5f5f5}"
)

_ESM = """
const ask = (model, what) => new Promise((ok, no) => {
  const id = crypto.getRandomValues(new Uint32Array(2)).join('-');
  const end = (act, value) => { clearTimeout(timer); model.off('msg:custom', on); act(value); };
  const on = (m, buffers) => { if (m.id !== id) return;
    m.error ? end(no, new Error(m.error)) : end(ok, buffers[0]); };
  const timer = setTimeout(() => end(no, new Error('the kernel does not answer')), 20000);
  model.on('msg:custom', on);
  model.send({ id, what });
});
const unzip = (buffer) => new Response(
  new Blob([buffer]).stream().pipeThrough(new DecompressionStream('gzip'))).text();

export default { async render({ model, el }) {
  const say = (text) => { const p = document.createElement('p'); p.textContent = text;
    p.style.cssText = 'margin:4px 0;font-size:12px;color:var(--jp-ui-font-color2,#666)'; el.replaceChildren(p); };
  say('Loading the full report…');
  try {
    const cache = (globalThis.__nbdeployBundles ??= new Map());
    const key = model.get('key');
    if (!cache.has(key)) {
      const loading = ask(model, 'bundle').then(unzip);
      loading.catch(() => cache.delete(key));
      cache.set(key, loading);
    }
    const [bundle, page] = await Promise.all([cache.get(key), ask(model, 'page').then(unzip)]);
    const frame = document.createElement('iframe');
    frame.setAttribute('sandbox', 'allow-scripts');
    frame.title = model.get('title');
    frame.style.cssText = 'display:block;width:100%;height:480px;background:#fff;color-scheme:light;'
      + 'box-sizing:border-box;border:1px solid var(--jp-border-color2,#ddd);border-radius:4px';
    const on = (event) => { if (event.source !== frame.contentWindow) return;
      const height = Number(event.data?.nbdeployHeight);
      if (height > 0) frame.style.height = Math.min(Math.ceil(height) + 4, 2400) + 'px'; };
    addEventListener('message', on);
    frame.srcdoc = page.replace(SLOT, () => bundle);
    el.replaceChildren(frame);
    return () => removeEventListener('message', on);
  } catch (error) {
    say('The full report is not shown: ' + error.message + '. Run the cell again, or open the saved page.');
  }
} };
"""


_TONES = {"drift": "bad", "failed": "bad", "no drift": "good", "passed": "good"}

# Colours are JupyterLab's, so that they follow its theme. The first rule hides the "Error displaying widget" that it
# writes when the kernel is gone: only that output carries the class itself.
_STYLE = """<style>
.jp-OutputArea:has(.nbdeploy-static) .jp-OutputArea-output.jupyter-widgets{display:none}
.nbdeploy-static{font-size:13px;color:var(--jp-content-font-color1,inherit);overflow-x:auto}
.nbdeploy-static p{margin:6px 0}
.nbdeploy-static ul{margin:6px 0;padding-left:20px}
.nbdeploy-static table{border-collapse:collapse;margin:0}
.nbdeploy-static th,.nbdeploy-static td{text-align:left!important;padding:4px 10px 4px 8px;white-space:nowrap;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.35))}
.nbdeploy-static td:nth-child(1),.nbdeploy-static td:nth-child(3){white-space:normal;overflow-wrap:break-word;
max-width:26em}
.nbdeploy-static td:nth-child(n+4),.nbdeploy-static th:nth-child(n+4){text-align:right!important;
font-variant-numeric:tabular-nums}
.nbdeploy-static .bad td:nth-child(2){color:var(--jp-error-color1,#d32f2f);font-weight:600}
.nbdeploy-static .good td:nth-child(2){color:var(--jp-success-color1,#388e3c)}
.nbdeploy-static .none td{color:var(--jp-content-font-color2,gray)}
</style>"""


@dataclass(frozen=True)
class Bundle:
    """The part of a page that is the same in every page: the file of its JavaScript library."""

    path: Path

    @property
    def text(self) -> str:
        return _read(self.path)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def packed(self) -> bytes:
        """The gzip bytes, made once per process."""
        return _packed(self.path)


def seal(page: str, *, title: str, note: str) -> str:
    """Return `page` with a policy that lets only its present scripts run, a title and a line of text on top.

    Data inside the scripts must have been escaped before: what is a script element now may run.

    Parameters
    ----------
    page : str
        A whole HTML document with ``<head>`` and ``<body>``, whose scripts are all inline.
    title, note : str
        Plain text; they are escaped here.

    Returns
    -------
    str
        A document that runs no other script, inline handler or ``javascript:`` link, and reaches no server.
    """
    policy = _POLICY.format(hashes=" ".join(dict.fromkeys(map(_hash, [_FIT, *_scripts(page)]))))
    head = (
        f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(title)}</title><style>{_PAGE_STYLE}</style>"
    )
    body = f'<body><div class="nbdeploy-note">{html.escape(note)}</div><script>{_FIT}</script>'
    for tag, replacement in (("<head>", head), ("<body>", body)):
        if tag not in page:
            msg = f"the page has no {tag}"
            raise ValueError(msg)
        page = page.replace(tag, replacement, 1)
    return page.strip()


def pack(page: str, bundle: Bundle) -> bytes:
    """Gzip bytes of `page` with its bundle left out, for a `view` that gets the bundle by itself."""
    return gzip.compress((page.replace(bundle.text, SLOT, 1) if bundle.text else page).encode(), 6, mtime=0)


def view(page: bytes, bundle: Bundle, *, title: str) -> Any:
    """Make a widget that shows a page from `pack` in an iframe that may run scripts and do nothing else.

    The page travels as bytes each time a live view asks for it, the bundle once per browser page.
    Neither is part of the widget's state, so neither is saved with the notebook.
    """
    return _widget_class()(page, bundle, title=title)


def show(static: Mapping[str, str], page: bytes, bundle: Bundle | None, *, title: str) -> None:
    """Display `static` (MIME type to text, saved with the notebook) and, in a live kernel, the page below it."""
    from IPython import display, get_ipython

    display.display(dict(static), raw=True)
    if bundle and getattr(get_ipython(), "kernel", None) is not None:
        with suppress(ImportError):  # without anywidget the static part and its link are what there is
            display.display(view(page, bundle, title=title))


def verdict_table(
    summary: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    more: str = "",
    below: tuple[str, Sequence[str], Sequence[Sequence[str]]] | None = None,
    link: Path | None = None,
    plain: bool = False,
) -> str:
    """Render a line of text, a table and a link to a page; all of it plain text, escaped here.

    Parameters
    ----------
    notes : sequence of str
        Sentences above the table. What stands in backticks at the beginning of one, or of a third cell, is set as code.
    more : str
        A line below the table.
    below : tuple, optional
        The title, the head and the rows of a second table.
    plain : bool
        Whether the second cell of a row is no verdict.
    """
    parts = [f"<p><b>{html.escape(summary)}</b></p>"] if summary else []
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{_note(note)}</li>' for note in notes)}</ul>")
    parts.append(_table(head, rows, plain=plain))
    if more:
        parts.append(f"<p>{html.escape(more)}</p>")
    if below:
        parts.append(f"<p><b>{html.escape(below[0])}</b></p>{_table(*below[1:])}")
    if link:
        parts.append(f"<p>Full report: {link_to(link)}</p>")
    return f'{_STYLE}<div class="nbdeploy-static">{"".join(parts)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, plain: bool = False) -> str:
    heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(
        f'<tr class="{"plain" if plain else _TONES.get(row[1], "none")}">'
        + "".join(f"<td>{_note(cell) if place == 2 else html.escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{heads}</tr>{lines}</table>"


def _note(text: str) -> str:
    return re.sub(r"^`([^`]*)`", r"<code>\1</code>", html.escape(text))


def link_to(path: Path) -> str:
    """A link where the notebook's page can follow it: below the working directory."""
    try:
        below = path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return html.escape(str(path))
    return f'<a href="{html.escape(quote(below))}" target="_blank" rel="noopener">{html.escape(path.name)}</a>'


@lru_cache(maxsize=1)
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class PageView(anywidget.AnyWidget):
        _esm = f"const SLOT = {SLOT!r};{_ESM}"
        key = traitlets.Unicode().tag(sync=True)
        title = traitlets.Unicode().tag(sync=True)

        def __init__(self, page: bytes, bundle: Bundle, *, title: str) -> None:
            super().__init__(key=bundle.key, title=title)
            self._parts: dict[object, Callable[[], bytes]] = {"page": lambda: page, "bundle": bundle.packed}
            self.on_msg(self._answer)

        def _answer(self, _widget: object, message: object, _buffers: object) -> None:
            if not isinstance(message, dict) or "id" not in message:
                return
            answer = {"id": message["id"]}
            try:
                self.send(answer, buffers=[self._parts[message.get("what")]()])
            except Exception as error:  # noqa: BLE001 - shown in the view instead of an endless wait
                self.send({**answer, "error": f"{type(error).__name__}: {error}"})

        def _repr_mimebundle_(self, **kwargs: Any) -> Any:
            made = super()._repr_mimebundle_(**kwargs)
            data, metadata = made if isinstance(made, tuple) else (made, {})
            return {**(data or {}), "text/plain": ""}, metadata  # the static output above says it in words

    return PageView


@lru_cache(maxsize=1)
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@lru_cache(maxsize=1)
def _packed(path: Path) -> bytes:
    return gzip.compress(_read(path).encode(), 6, mtime=0)


def _scripts(page: str) -> Iterator[str]:
    """The scripts as a browser finds them: from a start tag to the next end tag, whatever is between."""
    end = 0
    while (start := page.find("<script", end)) >= 0:
        start = page.index(">", start) + 1
        end = page.index("</script>", start)
        yield page[start:end]


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
