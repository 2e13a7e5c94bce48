"""What the panel shows, as facts, as plain text and as a table that needs no kernel."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from nbdeploy.errors import NbdeployError

MAX_RESULT = 6_000  # characters of the last result in the saved notebook
STATES = {"live": "●", "starting": "◐", "stopping": "◐", "stopped": "○"}

# Escape sequences of a terminal, other control characters, and what reverses or hides text.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

# A live panel in the same output area hides the table. ipywidgets marks a panel whose kernel is gone, saved
# widgets included; then the panel hides. Without its saved state JupyterLab writes "Error displaying widget" into
# an output that alone has the class jupyter-widgets.
STYLE = """<style>
.jp-OutputArea:has(> .jp-OutputArea-child .nbdeploy-panel:not(.jupyter-widgets-disconnected))
  > .jp-OutputArea-child:has(.nbdeploy-panel-static),
.jp-OutputArea:has(> .jp-OutputArea-child .nbdeploy-panel-static)
  > .jp-OutputArea-child:has(.nbdeploy-panel.jupyter-widgets-disconnected),
.jp-OutputArea:has(> .jp-OutputArea-child .nbdeploy-panel-static)
  > .jp-OutputArea-child > .jp-OutputArea-output.jupyter-widgets { display: none }
.jp-OutputArea:has(.nbdeploy-panel.jupyter-widgets-disconnected) .nbdeploy-panel-note { font-weight: bold }
.nbdeploy-panel-static { overflow-x: auto }
.nbdeploy-panel-static table { margin: 0 0 8px; font-size: inherit; border-collapse: collapse }
.nbdeploy-panel-static th, .nbdeploy-panel-static td { text-align: left !important; vertical-align: top;
  padding: 4px 16px 4px 0; white-space: normal; overflow-wrap: anywhere }
.nbdeploy-panel-static th { white-space: nowrap }
.nbdeploy-panel-static pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0 }
</style>"""


@dataclass(frozen=True)
class Facts:
    """A row of `nbdeploy.status`.

    Attributes
    ----------
    name, state, version, candidates, shadow, url, since : str
        Empty where there is none.
    pid : int
    predictions : int
        How many rows were answered and logged.
    workers : int
        How many processes answer.
    unreadable : int
        How many lines of the log are damaged.
    alerts : str
        Which rules fired when they were looked at last.
    stale : str
        Why what runs is not what this notebook would deploy now.
    """

    name: str
    state: str = "stopped"
    version: str = ""
    candidates: str = ""
    url: str = ""
    pid: int = 0
    since: str = ""
    predictions: int = 0
    workers: int = 0
    unreadable: int = 0
    stale: str = ""
    shadow: str = ""
    alerts: str = ""

    @property
    def running(self) -> bool:
        return self.state in ("live", "starting")

    def rows(self) -> list[tuple[str, str]]:
        """Heading and text of what is worth saying about it."""
        found = [
            ("deployment", self.name),
            ("state", f"{STATES.get(self.state, '')} {self.state}"),
            ("version", self.version or "none served yet"),
            ("candidates", self.candidates),
            ("shadow", self.shadow),
            ("URL", self.url),
            ("since", moment(self.since)),
            ("predictions", f"{self.predictions:,}"),
            ("alerts", self.alerts),
            ("stale", self.stale),
        ]
        return [(heading, plain(text)) for heading, text in found if text]


@dataclass(frozen=True)
class Snapshot:
    """What a panel shows at a moment; `chosen` is None where it is only a list."""

    chosen: Facts | None
    everyone: Sequence[Facts] | None = None
    result: str = ""
    releases: Sequence[tuple[str, str]] = ()  # heading and text, as `Facts.rows`

    def text(self) -> str:
        """Plain text, for a console and where HTML is not shown."""
        blocks = []
        if self.everyone is not None:
            blocks.append("\n".join(self._line(facts) for facts in self.everyone) or NOTHING)
        if self.chosen is not None:
            blocks.append("\n".join(f"{heading:<12} {text}" for heading, text in self._rows()))
        if self.result:
            blocks.append(plain(self.result)[:MAX_RESULT])
        return "\n\n".join(blocks)

    def markup(self, now: datetime | None = None) -> str:
        """HTML that reads well with no kernel, no script and no style."""
        blocks = []
        if self.everyone is not None:
            blocks.append(overview(self.everyone) if self.everyone else f"<p>{escaped(NOTHING)}</p>")
        if self.chosen is not None:
            rows = "".join(f"<tr><th>{h}</th><td>{escaped(text)}</td></tr>" for h, text in self._rows())
            blocks.append(f"<table>{rows}</table>")
        if self.result:
            blocks.append(f"<pre>{escaped(self.result[:MAX_RESULT])}</pre>")
        seen = f"{now or datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
        note = (
            f"<p><small>As it was at {seen}. "
            '<span class="nbdeploy-panel-note">Disconnected? Run this cell again for the live panel.</span></small></p>'
        )
        return f'{STYLE}<div class="nbdeploy-panel-static">{"".join(blocks)}{note}</div>'

    def _rows(self) -> list[tuple[str, str]]:
        own = self.chosen.rows() if self.chosen is not None else []
        return [*own, *((heading, plain(text)) for heading, text in self.releases)]

    @staticmethod
    def _line(facts: Facts) -> str:
        return "  ".join(text for _, text in facts.rows())


NOTHING = "Nothing is saved yet. Start with: %deploy model --name NAME --data X_train --target y_train"


def overview(everyone: Sequence[Facts]) -> str:
    """All deployments as an HTML table."""
    heads = ("deployment", "state", "version", "candidates", "since", "predictions")
    rows = (
        f"<td>{escaped(facts.name)}</td><td>{pill(facts.state)}</td><td>{escaped(facts.version or 'none yet')}</td>"
        f"<td>{escaped(facts.candidates)}</td><td>{escaped(moment(facts.since))}</td><td>{facts.predictions:,}</td>"
        for facts in everyone
    )
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def pill(state: str) -> str:
    """A state as a dot and a word; only a known one becomes part of a class name."""
    kind = state if state in STATES else "stopped"
    return f'<span class="nbdeploy-state nbdeploy-{kind}">{STATES[kind]} {escaped(state)}</span>'


def title(facts: Facts) -> str:
    """Name, version and state as HTML."""
    name = f"<b>{escaped(facts.name)}</b><span>{escaped(facts.version)}</span>{pill(facts.state)}"
    return f'<div class="nbdeploy-title">{name}</div>'


def facts_list(facts: Facts) -> str:
    """The smaller facts as HTML."""
    since = f"{moment(facts.since)}, {ago(facts.since)}" if facts.running and facts.since else ""
    pairs = [("since", since), ("predictions", f"{facts.predictions:,}")]
    pairs += [("damaged log lines", f"{facts.unreadable:,}")] if facts.unreadable else []
    pairs += [("stale", facts.stale)] if facts.stale else []
    pairs += [("alerts", facts.alerts)] if facts.alerts else []
    return "".join(
        f'<span{_tone(key, text)}><span class="nbdeploy-quiet">{key}</span> {escaped(text)}</span>'
        for key, text in pairs
        if text
    )


def _tone(key: str, text: str) -> str:
    return ' class="nbdeploy-firing" role="status"' if key == "alerts" and " firing: " in text else ""


def error_box(text: str) -> str:
    """An error as HTML; nothing where there is none."""
    return f'<div class="nbdeploy-error" role="alert">{escaped(text)}</div>' if text else ""


def moment(since: str) -> str:
    """``2026-01-31 08:15 UTC`` for ISO 8601; what is none is returned as it is."""
    try:
        return f"{datetime.fromisoformat(since).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return since


def ago(since: str, now: datetime | None = None) -> str:
    """How long ago, in its largest unit; empty for what is no time."""
    try:
        seconds = ((now or datetime.now(timezone.utc)) - datetime.fromisoformat(since)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"


def plain(text: object) -> str:
    """Text without escape sequences, control characters and what reverses or hides other text."""
    return _UNSEEN.sub("", _ANSI.sub("", str(text).replace("\r\n", "\n").replace("\r", "\n")))


def escaped(text: object) -> str:
    """`plain` text as HTML."""
    return html.escape(plain(text))


def said(error: BaseException) -> str:
    """An error in one line: what nbdeploy raises on purpose speaks for itself, the rest is named."""
    text = " ".join(plain(error).split())
    return text if isinstance(error, NbdeployError) else f"{type(error).__name__}: {text}".rstrip(": ")
