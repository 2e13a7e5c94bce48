"""Thirty strings that would like to be markup or script, a server that hears of one that ran, and how to see it.

Each has a word of its own (``p07``), so that a test can tell that a view shows it at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

RUN = "__pwned=1"  # sets a variable of the window
MARK = "data-pwn"  # an attribute of every element that a string would make

_PAYLOADS = (
    f"<script {MARK}>{RUN}</script>",
    f"</script><script {MARK}>{RUN}</script>",
    f'<img {MARK} src=x onerror="{RUN}">',
    f"<svg {MARK} onload={RUN}>",
    f'"><img {MARK} src=x onerror={RUN}>',
    f"'><img {MARK} src=x onerror={RUN}>",
    f"</td></table><img {MARK} src=x onerror={RUN}>",
    f"</pre></code><img {MARK} src=x onerror={RUN}>",
    f"</textarea></title><img {MARK} src=x onerror={RUN}>",
    f'<iframe {MARK} srcdoc="<script>parent.{RUN}</script>">',
    f'<a {MARK} href="javascript:{RUN}" autofocus>x</a>',
    f"[x](javascript:{RUN})",
    "![x](http://{canary}/markdown)",
    f"<style {MARK}>@import 'http://{{canary}}/style';</style>",
    f"<link {MARK} rel=stylesheet href=//{{canary}}/link>",
    f"<img {MARK} src=//{{canary}}/img>",
    f"<details {MARK} open ontoggle={RUN}>",
    f"<input {MARK} autofocus onfocus={RUN}>",
    f"<video {MARK}><source onerror={RUN}></video>",
    f"<math><mtext><table><mglyph><style><!--</style><img {MARK} src=x onerror={RUN}>",
    f"<!--><img {MARK} src=x onerror={RUN}>-->",
    f"]]><img {MARK} src=x onerror={RUN}>",
    f"&lt;img {MARK} src=x onerror={RUN}&gt;",
    f"\\u003cimg {MARK} src=x onerror={RUN}\\u003e",
    f"%3Cimg {MARK} src=x onerror={RUN}%3E",
    f"${{{RUN}}}`${{{RUN}}}`",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"\";{RUN};//';{RUN};//*/{RUN}/*",
    f"$$\\href{{javascript:{RUN}}}{{x}}$$",
    f"\x1b]8;;javascript:{RUN}\x07x\x1b]8;;\x07\u202e\u2028{RUN}",
)

DETECT = """(inside) => {
    const all = [...document.querySelectorAll(inside ? inside + ' *' : '*')];
    return {
        ran: window.__pwned ?? null,
        marked: document.querySelectorAll('[data-pwn]').length,
        handlers: all.filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).map(e => e.outerHTML.slice(0, 200)),
        scripts: inside ? all.filter(e => e.tagName === 'SCRIPT').length : 0,
        links: all.filter(e => /^(javascript|vbscript):/i.test(e.getAttribute('href') ?? '')).length,
    };
}"""
NOTHING = {"ran": None, "marked": 0, "handlers": [], "scripts": 0, "links": 0}


def payloads(canary: str) -> list[str]:
    """The strings; those that would ask a server for something ask `canary`, a host with its port."""
    return [f"p{place:02} {each.replace('{canary}', canary)}" for place, each in enumerate(_PAYLOADS)]


def words(text: str) -> set[int]:
    """Which of the strings a text shows."""
    return {place for place in range(len(_PAYLOADS)) if f"p{place:02}" in text}


@contextmanager
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine: its host and port, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join(10)


class Echo:
    """Answers each row with one of the strings, and writes all of them into its log."""

    def __init__(self, strings: list[str]) -> None:
        self.strings = strings
        self.classes_ = np.array(strings)

    def predict(self, X: Any) -> Any:
        for place in range(0, len(self.strings), 3):
            print(*self.strings[place : place + 3], flush=True)
        return np.array([self.strings[int(value) % len(self.strings)] for value in X["x"]])
