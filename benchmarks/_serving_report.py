"""What `serving.py` measured, as text: the tables, the targets, and the plot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from _load import python_of
from serving_peers import OURS, PEERS, PLAIN, Peer

DOCS = Path(__file__).parent.parent / "docs"
TIMES = "\N{MULTIPLICATION SIGN}"
BEGIN, END = "<!-- serving.py begins -->", "<!-- serving.py ends -->"
SHOWN = ["uvicorn", "uvloop", "httptools", "pydantic", "scikit-learn", "numpy", "pandas"]
TUNED = ", batching"  # peers whose batching, off by default, was switched on and tuned


def machine() -> str:
    import psutil

    said = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", said)
    processor = found[1].strip() if found else platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {processor}, {memory:.0f} GB, {platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"


def versions(peers: Iterable[Peer]) -> dict[str, dict[str, str]]:
    """Per environment the versions that matter."""
    found = {}
    for venv in dict.fromkeys(peer.venv for peer in peers):
        site = (
            [str(each) for each in Path(python_of(venv)).parent.parent.glob("lib/python3*/site-packages")]
            if venv
            else None
        )
        all_of_it = importlib.metadata.distributions(path=site) if site else importlib.metadata.distributions()
        held = {each.metadata["Name"].lower(): each.version for each in all_of_it}
        wanted = [venv, *SHOWN] if venv else [OURS, PLAIN.lower(), *SHOWN]
        found[venv or OURS] = {name: held[name] for name in wanted if name in held}
    return found


def markdown(results: dict[str, Any]) -> str:
    """The section, without the plot."""
    parts = [_targets(results)]
    for name, peers in results["models"].items():
        parts.append(f"**{results['titles'][name][:1].upper()}{results['titles'][name][1:]}**\n\n" + _table(peers))
    return "\n\n".join(part for part in [*parts, _how(results)] if part)


def write(results: dict[str, Any]) -> None:
    """Put section and plot into ``docs``."""
    (DOCS / "serving.svg").write_text(plot(results))
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    image = "![Requests a second with 32 clients, by model and server](serving.svg)"
    section = f"{BEGIN}\n{image}\n\n{markdown(results)}\n{END}"
    if BEGIN not in text:
        msg = f"{page} has no line {BEGIN!r} to write after."
        raise SystemExit(msg)
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(before + section + after)


# -- the tables ---------------------------------------------------------------------------------------------


def _table(peers: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| served by | 32 clients: requests/s | p99, ms | 1 client: p50, ms | 1,000 rows as JSON, ms | worker, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    ordered = sorted(peers.items(), key=lambda item: -item[1].get("rate", 0))
    for name, facts in ordered:
        shown = f"**{name}**" if name == OURS else name
        if "failed" in facts:
            lines.append(f"| {shown} | failed | | | | |")
        else:
            lines.append(
                f"| {shown} | {facts['rate']:,.0f} | {_ms(facts['p99'])} | {facts['one_p50']:.2f} | {_ms(facts['thousand'])} "
                f"| {facts['resident_mb']:.0f} |"
            )
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _targets(results: dict[str, Any]) -> str:
    rows: list[tuple[str, str, str, bool | None]] = []
    for name, peers in results["models"].items():
        rows += _load_targets(name, peers)
    if log := results.get("log"):
        cost = 1 - log["ratio"]
        rows.append(
            (
                "what the log costs, 32 clients",
                f"{cost:.1%} of {log['without']:,.0f} requests/s",
                "at most 5 %",
                cost <= 0.05,
            )
        )
    if memory := _memory(results):
        rows.append(memory)
    if start := results.get("start"):
        ratio = start[OURS] / start[PLAIN]
        text = f"{ratio:.2f} {TIMES} ({start[OURS]:.2f} s against {start[PLAIN]:.2f} s)"
        rows.append(("`nbdeploy serve` to ready, against `bentoml serve`", text, f"at most 0.8 {TIMES}", ratio <= 0.8))
    verdict = {True: "met", False: "**not met**", None: ""}
    lines = ["| what | result | target | |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {what} | {got} | {target or 'none'} | {verdict[met]} |" for what, got, target, met in rows)]
    )


def _load_targets(name: str, peers: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, bool | None]]:
    ours, others = peers.get(OURS), {k: v for k, v in peers.items() if k != OURS and "failed" not in v}
    if not ours:
        return []
    rows: list[tuple[str, str, str, bool | None]] = []
    if others:
        target = f"at least 10 {TIMES}" if name != "linear" else ""
        as_started = {who: facts for who, facts in others.items() if not who.endswith(TUNED)}
        for among, what in ((others, "best peer's"), (as_started, "best of those as they start, without batching")):
            best, who = max((facts["rate"], other) for other, facts in among.items())
            times = ours["rate"] / best
            text = f"{times:.1f} {TIMES} the {what} ({ours['rate']:,.0f} against {best:,.0f}, {who})"
            rows.append((f"{name}: 32 clients, requests/s", text, target, times >= 10 if target else None))
        bounds = {
            "p99": ("32 clients, p99", 0.5),
            "one_p50": ("1 client, p50", 0.8),
            "thousand": ("1,000 rows as JSON", 1.0),
        }
        for key, (what, bound) in bounds.items():
            best, who = min((facts[key], other) for other, facts in others.items())
            text = f"{ours[key] / best:.2f} {TIMES} the best peer's ({ours[key]:.2f} ms against {best:.2f}, {who})"
            rows.append((f"{name}: {what}", text, f"at most {bound:g} {TIMES}", ours[key] / best <= bound))
    if "arrow" in ours:
        ratio = statistics_ratio(ours)
        text = f"{ratio:.2f} {TIMES} the bare `predict` ({ours['arrow']:.1f} ms against {ours['bare']:.1f})"
        rows.append((f"{name}: 10,000 rows as Arrow", text, f"at most 1.5 {TIMES}", ratio <= 1.5))
    return rows


def statistics_ratio(ours: dict[str, Any]) -> float:
    """Arrow against bare: the median of the rounds' ratios, since both were measured in turn."""
    ratios = sorted(each["arrow"] / each["bare"] for each in ours["rounds"])
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2


def _memory(results: dict[str, Any]) -> tuple[str, str, str, bool | None] | None:
    peers = results["models"].get("pipeline", {})
    ours, plain = peers.get(OURS), peers.get(PLAIN)
    if not ours or not plain or "failed" in plain:
        return None
    ratio, own = ours["resident_mb"] / plain["resident_mb"], ours["own_mb"] / plain["own_mb"]
    text = (
        f"{ratio:.2f} {TIMES} ({ours['resident_mb']:.0f} MB against {plain['resident_mb']:.0f}); "
        f"without shared pages {own:.2f} {TIMES} ({ours['own_mb']:.0f} against {plain['own_mb']:.0f})"
    )
    return (
        "pipeline: a worker's memory after the load, against plain BentoML's",
        text,
        f"at most 1.2 {TIMES}",
        ratio <= 1.2,
    )


def _how(results: dict[str, Any]) -> str:
    notes = {peer.name: peer.note for peer in PEERS}
    used = [name for name in notes if any(name in peers for peers in results["models"].values())]
    lines = [
        f"Measured {results['when']} on {results['machine']}; medians of {results['rounds']} rounds of {results['seconds']:g} s.",
        "",
    ]
    lines += [f"- {name}: {notes[name]}" for name in used]
    lines.append("")
    held = results["versions"]
    shared = {
        name: version
        for name, version in next(iter(held.values())).items()
        if all(each.get(name) == version for each in held.values())
    }
    own = [f"{venv}'s has {_listed({k: v for k, v in each.items() if k not in shared})}" for venv, each in held.items()]
    lines.append(f"Versions: {_listed(shared)} in every environment; {'; '.join(own)}.")
    failed = {
        f"{name}, {model}": facts["failed"]
        for model, peers in results["models"].items()
        for name, facts in peers.items()
        if "failed" in facts
    }
    lines += [f"\n{who} failed: {why.splitlines()[-1]:.200}" for who, why in failed.items()]
    return "\n".join(lines)


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# -- the plot -----------------------------------------------------------------------------------------------

STYLE = """
  .back { fill: #ffffff } text { fill: #1f2328; font: 13px system-ui, sans-serif }
  .head { font-weight: 600; font-size: 14px } .small { fill: #59636e; font-size: 12px }
  .peer { fill: #8c96a0 } .ours { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } text { fill: #e6edf3 } .small { fill: #9198a1 }
    .peer { fill: #6e7681 } .ours { fill: #4493f8 }
  }
"""
WIDTH, LEFT, RIGHT, BAR, GAP = 760, 170, 190, 16, 7


def plot(results: dict[str, Any]) -> str:
    """Bars of requests a second, one group per model; it has its own background, so it can be read on any."""
    y, shapes = 34, ['<text x="20" y="34" class="head">Requests a second, 32 clients, one row each</text>']
    for name, peers in results["models"].items():
        y += 36
        shapes.append(f'<text x="20" y="{y}" class="small">{escape(results["titles"][name])}</text>')
        y += 12
        fine = {who: facts for who, facts in peers.items() if "failed" not in facts}
        most = max(facts["rate"] for facts in fine.values())
        for who, facts in sorted(fine.items(), key=lambda item: -item[1]["rate"]):
            length = max(1.0, facts["rate"] / most * (WIDTH - LEFT - RIGHT))
            middle = y + BAR - 4
            shapes += [
                f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(who)}</text>',
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" class="{"ours" if who == OURS else "peer"}"/>',
                f'<text x="{LEFT + length + 8:.1f}" y="{middle}">{facts["rate"]:,.0f}',
                f'<tspan class="small" dx="8">p99 {_ms(facts["p99"])} ms</tspan></text>',
            ]
            y += BAR + GAP
    height = y + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
        f"<title>Requests a second with 32 clients, by model and server</title><style>{STYLE}</style>"
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>' + "".join(shapes) + "</svg>\n"
    )
