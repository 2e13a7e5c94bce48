"""A third party's HTML page, made inert, and shown in a notebook without being saved in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SLOT = "/*nbdeploy-bundle*/"

# A page may run the scripts it was made with, by their hash, and nothing else. It reaches no server.
_POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)

# Fits a page made for a wide screen, and tells an embedding view how high it is.
_FIT = """
(() => {
  const fit = () => { document.body.style.zoom = Math.min(1, document.documentElement.clientWidth / 1250); };
  const tell = () => { if (parent !== window) {
    parent.postMessage({ nbdeployHeight: document.body.getBoundingClientRect().height }, '*'); } };
  fit();
  addEventListener('resize', fit);
  new ResizeObserver(tell).observe(document.body);
})();
"""

_PAGE_STYLE = "body{margin:0}.nbdeploy-note{font:13px/1.5 system-ui,sans-serif;padding:10px 24px;color:#444;background:#f5f5f5}"

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


@dataclass(frozen=True)
class Bundle:
    """The part of a page that is the same for every page: its JavaScript library."""

    text: str

    @property
    def key(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def packed(self) -> bytes:
        """The gzip bytes, made once per process."""
        return _pack(self.text)


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
    scripts = [_FIT, *re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)]
    policy = _POLICY.format(hashes=" ".join(dict.fromkeys(map(_hash, scripts))))
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
    return gzip.compress(page.replace(bundle.text, SLOT, 1).encode(), 6, mtime=0)


def view(page: bytes, bundle: Callable[[], Bundle], *, title: str) -> Any:
    """Make a widget that shows a page from `pack` in an iframe that may run scripts and do nothing else.

    The page travels as bytes each time a live view asks for it, the bundle once per browser page.
    Neither is part of the widget's state, so neither is saved with the notebook.
    """
    return _widget_class()(page, bundle(), title=title)


def show(static: Mapping[str, str], page: bytes, bundle: Callable[[], Bundle], *, title: str) -> None:
    """Display `static` (MIME type to text, saved with the notebook) and, in a live kernel, the page below it."""
    from IPython import display, get_ipython

    display.display(dict(static), raw=True)
    if page and getattr(get_ipython(), "kernel", None) is not None:
        with suppress(ImportError):  # without anywidget the static part and its link are what there is
            display.display(view(page, bundle, title=title))


# Without a kernel JupyterLab writes "Error displaying widget" into an output of its own, which alone has this class.
HIDE_DEAD_WIDGET = (
    "<style>.jp-OutputArea:has(.nbdeploy-static) .jp-OutputArea-output.jupyter-widgets{display:none}</style>"
)


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
def _pack(text: str) -> bytes:
    return gzip.compress(text.encode(), 6, mtime=0)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
