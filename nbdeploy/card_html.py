"""A card as HTML: a page of its own, and the same inline in a notebook. No script, and nothing from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbdeploy import artifact
from nbdeploy.card_blocks import (
    Bars,
    Code,
    Details,
    Fence,
    Items,
    Mark,
    Section,
    Strong,
    Table,
    Text,
    number,
    one_line,
    visible,
)
from nbdeploy.card_facts import collect
from nbdeploy.card_sections import sections
from nbdeploy.home import bentoml_home, read_json
from nbdeploy.model_store import ModelVersion

PAGE = "card.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MAX_INLINE = 48_000  # characters in a notebook

_LINKS = ("http://", "https://", "mailto:")


def page(title: str, parts: Sequence[Section | str]) -> str:
    """A whole document. What is a string among `parts` is the user's Markdown, in which HTML stays text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{_text(title)}</title><style>{_PAGE_STYLE}{_STYLE}</style></head>"
        f'<body><main class="nbdeploy-card">{_body(parts)}</main></body></html>\n'
    )


def facts_page(facts: Mapping[str, Any]) -> str:
    """The page of a version whose card nobody has made."""
    return page(f"{facts['name']} {facts['version']}", sections(facts))


def served(name: str, version: str, place: Path) -> str:
    """The page that a service shows: ``card.html`` where somebody has made the card, else the facts.

    Parameters
    ----------
    place : Path
        Where the service loaded the version from; in the store by now, if it was not yet when it started.
    """
    folder = place if place.is_dir() else bentoml_home() / "models" / name / version
    kept = folder / PAGE
    if kept.is_file():
        return kept.read_text(encoding="utf-8", errors="replace")
    # Not asked of the records: a version that came in a Bento has none here.
    told = read_json(folder / artifact.BENTOML_FILE) or {}
    digest, created = told.get("metadata", {}).get("digest", ""), told.get("creation_time", "")
    return facts_page(collect(ModelVersion(name, version, str(digest), folder, str(created), {})))


def inline(parts: Sequence[Section | str], note: str = "") -> str:
    """The same for a notebook: below 60 kB, whatever the card holds.

    What is folded away goes first, then whole sections from the last; `note` says where the rest is.
    """
    kept = list(parts)
    body = _body(kept)
    if len(body) > MAX_INLINE:
        kept = [part if isinstance(part, str) else _short(part) for part in kept]
        body = _body(kept)
    while len(body) > MAX_INLINE and len(kept) > 1:
        kept.pop()
        body = _body(kept)
    if len(body) > MAX_INLINE:
        body = "<p>This card is too long for a notebook.</p>"
    more = f'<p class="quiet">{_text(note, 600)}</p>' if note else ""
    # A name with dollar signs is a name, and no formula.
    kind = "nbdeploy-card nbdeploy-card-inline mathjax_ignore tex2jax_ignore"
    return f'<style>{_STYLE}</style><div class="{kind}">{body}{more}</div>'


def markdown(text: str) -> str:
    """The user's Markdown as HTML: tables and strikes too, HTML shown as text, links to http, https and mailto only."""
    return str(_parser().render(text))


# -- parts --------------------------------------------------------------------------------------------------


def _body(parts: Sequence[Section | str]) -> str:
    return "".join(
        f'<section class="own">{markdown(part)}</section>' if isinstance(part, str) else _section(part)
        for part in parts
    )


def _section(section: Section) -> str:
    level = "h1" if section.key == "summary" else "h2"
    return f"<section><{level}>{_text(section.title)}</{level}>{''.join(map(_block, section.blocks))}</section>"


def _short(section: Section) -> Section:
    blocks = [
        replace(block, rows=block.rows[:40]) if isinstance(block, Table) else block
        for block in section.blocks
        if not isinstance(block, Details)
    ]
    return replace(section, blocks=tuple(blocks))


def _block(block: Any) -> str:
    render_one: dict[type, Callable[[Any], str]] = {
        Text: _paragraph,
        Items: lambda it: f"<ul>{''.join(f'<li>{_said(line)}</li>' for line in it.lines)}</ul>",
        Table: _table,
        Fence: lambda it: f"<pre><code>{html.escape(visible(it.text))}</code></pre>",
        Details: lambda it: (
            f"<details><summary>{_text(it.summary)}</summary>{''.join(map(_block, it.blocks))}</details>"
        ),
        Bars: lambda it: f'<div class="plot">{svg(it)}</div>',
    }
    return render_one[type(block)](block)


def _paragraph(text: Text) -> str:
    quiet = ' class="quiet"' if text.quiet else ""
    return f"<p{quiet}>{_said(text.spans)}</p>"


def _said(spans: Any) -> str:
    words = []
    for span in spans if isinstance(spans, tuple) else (spans,):
        if isinstance(span, Code):
            words.append(f"<code>{_text(span.text, 400)}</code>")
        elif isinstance(span, Strong):
            words.append(f"<b>{_text(span.text)}</b>")
        elif isinstance(span, Mark):
            words.append('<span class="good">✓</span>' if span.good else '<span class="bad">✗</span>')
        else:
            words.append(html.escape(visible(str(span))))
    return "".join(words)


def _table(table: Table) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        tags = ["th" if i == 0 and not table.head else tag for i in range(len(cells))]
        kinds = [' class="number"' if i in table.numbers else "" for i in range(len(cells))]
        cells = [f"<{t}{k}>{_said(cell)}</{t}>" for t, k, cell in zip(tags, kinds, cells, strict=True)]
        return f"<tr>{''.join(cells)}</tr>"

    head = f"<thead>{line(table.head, 'th')}</thead>" if table.head else ""
    kind = "" if table.head else ' class="facts"'
    body = "".join(line(row, "td") for row in table.rows)
    return f'<div class="wide"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _text(value: object, longest: int = 200) -> str:
    return html.escape(one_line(value, longest))


# -- the plot -----------------------------------------------------------------------------------------------

_WIDTH, _ROW, _TOP, _VALUES = 600, 24, 8, 128
_LONGEST = 24  # characters of a name, at 7.6 pixels each


def svg(bars: Bars) -> str:
    """Horizontal bars with whiskers of one standard deviation; its colours are those of the text around it."""
    ends = [0.0] + [value for _, mean, std in bars.bars for value in (mean - std, mean + std) if math.isfinite(value)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    labels = [one_line(name, _LONGEST) for name, _, _ in bars.bars]
    # What is not ASCII may be twice as wide.
    names = min(200.0, 7.6 * max(sum(1 if char.isascii() else 1.8 for char in label) for label in labels) + 4)
    left, right = names + 12, _WIDTH - _VALUES
    height = _TOP + _ROW * len(bars.bars) + 34

    def x(value: float) -> float:
        return round(left + (value - low) / span * (right - left), 1)

    zero = x(0.0)
    lines = []
    for i, (_, mean, std) in enumerate(bars.bars):
        middle = _TOP + _ROW * i + _ROW / 2
        start, end = sorted((zero, x(mean)))
        lines.append(
            # Where a notebook is not trusted only the words are left: a space and a semicolon keep them apart.
            "<g>"
            f'<text class="name" x="{names:.1f}" y="{middle + 4.5}" text-anchor="end">{html.escape(labels[i])}</text>'
            f'<rect x="{start}" y="{middle - 7}" width="{max(end - start, 1.0):.1f}" height="14" rx="2"/>'
            f'<path class="whisker" d="M{x(mean - std)} {middle}H{x(mean + std)}M{x(mean - std)} {middle - 4}v8'
            f'M{x(mean + std)} {middle - 4}v8"/>'
            f'<text class="value" x="{right + 12}" y="{middle + 4.5}"> {_short_number(mean)}'
            f'<tspan class="std"> ± {_short_number(std)}</tspan></text><desc>; </desc></g>'
        )
    foot = _TOP + _ROW * len(bars.bars)
    axis = f'<path class="axis" d="M{zero} {_TOP - 4}V{foot + 4}"/>'
    unit = f'<text class="unit" x="{left:.1f}" y="{foot + 24}">{_text(bars.unit)} →</text>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Importance of the columns">'
        f"{''.join(lines)}{axis}{unit}</svg>"
    )


def _short_number(value: float) -> str:
    return "0" if abs(value) < 5e-5 else f"{value:.4f}" if abs(value) < 10 else number(float(f"{value:.4g}"))


# -- the user's Markdown ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _parser() -> Any:
    from markdown_it import MarkdownIt

    # Without images: they would be fetched from elsewhere.
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    # As markdown-it-py's documentation has it; its types know neither.
    renderer: Any = parser.renderer
    parser.validateLink = lambda url: url.strip().lower().startswith(_LINKS)  # type: ignore[method-assign]
    open_link = renderer.renderToken

    def link(tokens: Any, at: int, options: Any, _env: Any) -> str:
        tokens[at].attrSet("rel", "noopener noreferrer")
        tokens[at].attrSet("target", "_blank")
        return str(open_link(tokens, at, options, _env))

    renderer.rules["link_open"] = link
    return parser


# -- style --------------------------------------------------------------------------------------------------

# In a notebook the colours are JupyterLab's, so that they follow its theme; in a page, the browser's choice.
_PAGE_STYLE = """
:root{color-scheme:light dark;--nbd-page:#fff;--nbd-text:#1f2328;--nbd-soft:#59636e;--nbd-line:#d8dee4;--nbd-code:#f4f6f8;
--nbd-bar:#2f6fb3;--nbd-good:#1a7f37;--nbd-bad:#c62828;--nbd-link:#0b62c4}
@media (prefers-color-scheme:dark){:root{--nbd-page:#15191e;--nbd-text:#e3e7ec;--nbd-soft:#9aa5b1;--nbd-line:#343c46;
--nbd-code:#1e242b;--nbd-bar:#6ea8e6;--nbd-good:#56c271;--nbd-bad:#ff7b72;--nbd-link:#79b4ff}}
body{margin:0;background:var(--nbd-page)}
main.nbdeploy-card{max-width:860px;margin:0 auto;padding:32px 28px 64px;font-size:15px}
@media print{details>*{display:block}}
"""

_STYLE = """
.nbdeploy-card{--t:var(--nbd-text,var(--jp-content-font-color1,#1f2328));--s:var(--nbd-soft,var(--jp-content-font-color2,#59636e));
--l:var(--nbd-line,var(--jp-border-color2,#d8dee4));--c:var(--nbd-code,var(--jp-layout-color2,#f4f6f8));
--b:var(--nbd-bar,var(--jp-brand-color1,#2f6fb3));--g:var(--nbd-good,var(--jp-success-color1,#1a7f37));
--x:var(--nbd-bad,var(--jp-error-color1,#c62828));--a:var(--nbd-link,var(--jp-content-link-color,#0b62c4));
color:var(--t);font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:14px;line-height:1.5;max-width:860px}
.nbdeploy-card h1{font-size:1.75em;line-height:1.25;margin:0 0 .4em;font-weight:650;color:var(--t)}
.nbdeploy-card section{margin:0 0 1.9em}
.nbdeploy-card h2{font-size:1.2em;line-height:1.3;margin:0 0 .5em;padding:0;border:0;font-weight:650;color:var(--t)}
.nbdeploy-card h3{font-size:1.05em;margin:1.2em 0 .4em;font-weight:650;color:var(--t)}
.nbdeploy-card p{margin:.5em 0;overflow-wrap:anywhere}
.nbdeploy-card ul{margin:.5em 0;padding-left:1.4em}
.nbdeploy-card .quiet{color:var(--s);font-size:.93em}
.nbdeploy-card .wide{overflow-x:auto;margin:.6em 0}
.nbdeploy-card table{border-collapse:collapse;margin:.4em 0;font-size:.95em;border:0;width:auto;table-layout:auto;color:var(--t)}
.nbdeploy-card tr{background:none!important;border:0}
.nbdeploy-card th,.nbdeploy-card td{text-align:left!important;vertical-align:top;padding:5px 18px 5px 0;border:0;
border-bottom:1px solid var(--l);white-space:normal;max-width:34em;overflow-wrap:break-word;word-break:normal}
.nbdeploy-card thead th{color:var(--s);font-weight:600;font-size:.93em;overflow-wrap:normal;white-space:nowrap}
.nbdeploy-card th:first-child,.nbdeploy-card td:first-child{min-width:1.2em}
.nbdeploy-card .facts td{max-width:46em;overflow-wrap:anywhere}
.nbdeploy-card .facts th{color:var(--s);font-weight:400;white-space:nowrap;overflow-wrap:normal}
.nbdeploy-card .number{text-align:right!important;font-variant-numeric:tabular-nums;white-space:nowrap}
.nbdeploy-card code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.92em;background:var(--c);color:var(--t);
padding:1px 5px;border-radius:4px;white-space:pre-wrap}
.nbdeploy-card pre{background:var(--c);color:var(--t);padding:12px 14px;border-radius:6px;overflow-x:auto;line-height:1.45;margin:.6em 0}
.nbdeploy-card pre code{padding:0;background:none;white-space:pre-wrap;overflow-wrap:anywhere}
.nbdeploy-card details{margin:.5em 0}
.nbdeploy-card summary{cursor:pointer;color:var(--a)}
.nbdeploy-card a{color:var(--a)}
.nbdeploy-card .good{color:var(--g);font-weight:700}.nbdeploy-card .bad{color:var(--x);font-weight:700}
.nbdeploy-card .plot{margin:.8em 0;overflow-x:auto}
.nbdeploy-card svg{display:block;width:100%;max-width:720px;min-width:440px;height:auto;font-family:inherit}
.nbdeploy-card svg text{font-size:13px;fill:var(--t)}
.nbdeploy-card svg .name{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px}
.nbdeploy-card svg .value{font-variant-numeric:tabular-nums;font-size:12.5px}
.nbdeploy-card svg .std,.nbdeploy-card svg .unit{fill:var(--s);font-size:12px}
.nbdeploy-card svg rect{fill:var(--b)}
.nbdeploy-card svg .whisker{stroke:var(--t);stroke-width:1.2;fill:none;opacity:.75}
.nbdeploy-card svg .axis{stroke:var(--s);stroke-width:1;opacity:.6}
.nbdeploy-card-inline{padding:4px 2px}
""".replace(".nbdeploy-card ", ".nbdeploy-card.nbdeploy-card ")  # before JupyterLab's own rules
