"""The front page of a deployment: its columns, a line to copy for each protocol, and Swagger UI."""

from __future__ import annotations

import html
import json
import shlex

from nbdeploy.exchange import Served
from nbdeploy.serving_docs import examples

_STATIC = "./static_content"  # Swagger UI's files, which BentoML ships and mounts


def index_page(served: Served, *, token: bool = False) -> str:
    """HTML whose scripts and styles are its own or the service's: nothing comes from a third party.

    Parameters
    ----------
    token : bool
        Whether a request needs a token.
    """
    signature = served.signature
    rows = "".join(
        f"<tr><td><code>{html.escape(column)}</code></td><td>{html.escape(facts['type'])}</td>"
        f"<td>{'yes' if facts['nulls'] else ''}</td><td>{html.escape(str(facts['seen']))}</td></tr>"
        for column, facts in signature.table().to_dict("index").items()
    )
    calls = "".join(
        f"<details{' open' if not i else ''}><summary>{html.escape(name)} <code>POST {html.escape(path)}</code></summary>"
        f"<pre>{html.escape(_curl(path, body, token=token))}</pre></details>"
        for i, (name, (path, body)) in enumerate(examples(served).items())
    )
    export = "export URL=<span id='url'>…</span>" + ("  TOKEN=…" if token else "")
    return _PAGE.format(
        title=html.escape(f"{served.name} {served.version}"), name=html.escape(served.name),
        version=html.escape(served.version), rows=rows, calls=calls, export=export, static=_STATIC,
        predicts=html.escape(f"Predicts {signature.target or 'one value'} ({signature.task})."),
    )  # fmt: skip


def _curl(path: str, body: object, *, token: bool) -> str:
    words = [f"curl -s \"$URL{path}\" -H 'Content-Type: application/json'"]
    if token:
        words.append('-H "Authorization: Bearer $TOKEN"')
    # Names of columns are anybody's: nothing in them may end the word.
    words.append(f"-d {shlex.quote(json.dumps(body, ensure_ascii=False, default=str))}")
    return " \\\n  ".join(words)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><link rel="stylesheet" href="{static}/swagger-ui.css">
<style>
 :root {{ --text: #24292f; --back: #fff; --soft: #f6f8fa; --line: #d0d7de; --link: #0969da; --faint: #57606a }}
 @media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6edf3; --back: #0d1117; --soft: #161b22; --line: #30363d; --link: #58a6ff; --faint: #9198a1 }}
  #swagger {{ filter: invert(.93) hue-rotate(180deg) }}
 }}
 body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto; padding: 24px;
  max-width: 1080px }}
 h1 {{ margin: 0; overflow-wrap: anywhere }} h1 small {{ color: var(--faint); font-weight: 500 }} a {{ color: var(--link) }}
 h2 {{ font-size: 18px; margin: 28px 0 8px }}
 .wide {{ overflow-x: auto; max-height: 420px; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px }}
 table {{ border-collapse: collapse; width: 100% }}
 th, td {{ text-align: left; padding: 5px 12px; border-bottom: 1px solid var(--line) }} tr:last-child td {{ border: 0 }}
 th {{ position: sticky; top: 0; background: var(--soft); font-weight: 600 }}
 code, pre {{ font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, monospace }}
 pre {{ background: var(--soft); padding: 12px; overflow: auto; border-radius: 6px; margin: 6px 0; max-height: 260px;
  white-space: pre-wrap; overflow-wrap: anywhere }}
 details {{ border-bottom: 1px solid var(--line); padding: 6px 0 }} summary {{ cursor: pointer }}
 summary code {{ color: var(--faint) }}
 .swagger-ui .information-container, .swagger-ui .scheme-container {{ display: none }}
 .swagger-ui .wrapper {{ padding: 0 }}
</style></head><body>
<h1>{name} <small>{version}</small></h1>
<p>{predicts} <a href="signature">signature</a> · <a href="card">model card</a> · <a href="metrics">metrics</a> ·
<a href="openapi.json">OpenAPI</a></p>
<h2>Columns</h2>
<div class="wide"><table><thead><tr><th>column</th><th>type</th><th>nulls</th><th>seen in training</th></tr></thead>
<tbody>{rows}</tbody></table></div>
<h2>Ask</h2>
<pre>{export}</pre>
{calls}
<h2>Routes</h2>
<div id="swagger"></div>
<script>
 const place = new URL(".", location.href), base = (place.origin + place.pathname).replace(/\\/$/, "");
 document.getElementById("url").textContent = /^[\\w:/.%[\\]~-]+$/.test(base) ? base : "…";
</script>
<script src="{static}/swagger-ui-bundle.js"></script>
<script>window.SwaggerUIBundle && SwaggerUIBundle({{
 url: "./openapi.json", dom_id: "#swagger", deepLinking: true, docExpansion: "list", defaultModelsExpandDepth: -1,
 validatorUrl: null
}});</script>
</body></html>
"""
