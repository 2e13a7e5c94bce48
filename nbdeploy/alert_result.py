"""The nouns of alerts: the rules of a deployment, and what came of looking at them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nbdeploy.drift_columns import visible

_STYLE = (
    "<style>.nbdeploy-alerts td, .nbdeploy-alerts th { text-align: left !important; vertical-align: top; padding: 2px 16px 2px 0 }"
    " .nbdeploy-alerts .firing { color: var(--jp-error-color1, #d32f2f); font-weight: 600 }</style>"
)
# 0: nothing fires. Apart from these, 1 is also that of an error, and 2 of a command line that does not parse.
FIRES, UNSURE = 1, 3


@dataclass(frozen=True)
class AlertRules:
    """The rules of one deployment, and whom they tell; of an address only what is no secret.

    Attributes
    ----------
    name : str
    rules : tuple of str
        In the one way in which they are kept. The first has the number 1.
    to : tuple of tuple of str
        For each rule.
    """

    name: str
    rules: tuple[str, ...] = ()
    to: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.rules)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rules)

    def to_dict(self) -> dict[str, Any]:
        rules = [
            {"number": number, "rule": rule, "to": list(to)}
            for number, (rule, to) in enumerate(zip(self.rules, self.to, strict=True), 1)
        ]
        return {"name": self.name, "rules": rules}

    def __repr__(self) -> str:
        if not self.rules:
            return f"{self.name} has no rules"
        return _text(self._summary, self._cells())

    def _repr_html_(self) -> str:
        return _html(self._summary, ("", "rule", "tells"), self._cells())

    @property
    def _summary(self) -> str:
        return f"{self.name}: {len(self.rules)} rule{'' if len(self.rules) == 1 else 's'}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (str(number), visible(rule), visible(", ".join(to)) or "nobody")
            for number, (rule, to) in enumerate(zip(self.rules, self.to, strict=True), 1)
        ]


@dataclass(frozen=True)
class Alert:
    """One rule, as it was found.

    Attributes
    ----------
    name : str
        The deployment.
    rule : str
    state : str
        ``"firing"``, ``"ok"``, ``"no data"`` (nothing was there to measure) or ``"failed"`` (it could not be measured).
    said : str
        What was measured, or why not.
    event, since : str
        Of one that fires: its id, and when that was first seen (UTC). Also of one that fired before and cannot be told now: it
        goes on.
    measured : tuple
        What was measured in each window, the newest first; None where it is not known.
    recovered : bool
        Whether it fired at the look before, and is over.
    """

    name: str
    rule: str
    state: str
    said: str
    event: str = ""
    since: str = ""
    measured: tuple[float | bool | None, ...] = ()
    recovered: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether it fires, or fired and nobody can tell that it is over."""
        return bool(self.event) and not self.recovered

    @property
    def word(self) -> str:
        if self.recovered:
            return "recovered"
        return f"firing, {self.state} now" if self.goes_on and self.state != "firing" else self.state


@dataclass(frozen=True)
class Delivery:
    """One message to one target.

    Attributes
    ----------
    to : str
        The target, without its secrets.
    delivered : bool
    why : str
        Why it was not delivered. It is tried again at the next look.
    """

    name: str
    rule: str
    what: str
    to: str
    delivered: bool
    why: str = ""


@dataclass(frozen=True)
class Alerts:
    """What came of looking at the rules of one deployment, or of all.

    Attributes
    ----------
    alerts : tuple of Alert
    deliveries : tuple of Delivery
        What was told to whom by this look.
    trouble : tuple of str
        What else went wrong: a deployment whose rules cannot be read, a disk that refuses.
    dry_run : bool
        Whether nothing was told or written down.
    """

    alerts: tuple[Alert, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    trouble: tuple[str, ...] = ()
    dry_run: bool = False
    looked: str = field(default="")

    @property
    def firing(self) -> tuple[Alert, ...]:
        """Those that fire."""
        return tuple(alert for alert in self.alerts if alert.goes_on)

    @property
    def exit_code(self) -> int:
        """0: nothing fires; 1: something does; 3: nothing that could be measured, and not all could, or was told."""
        if self.firing:
            return FIRES
        lost = any(not delivery.delivered for delivery in self.deliveries)
        return UNSURE if lost or self.trouble or any(alert.state == "failed" for alert in self.alerts) else 0

    @property
    def summary(self) -> str:
        """One line of plain text."""
        if not self.alerts:
            return "no deployment has rules" if not self.trouble else "no rule could be looked at"
        counts = {"firing": len(self.firing)}
        counts["recovered"] = sum(alert.recovered for alert in self.alerts)
        for state in ("failed", "no data"):
            counts[state] = sum(alert.state == state and not alert.goes_on for alert in self.alerts)
        told = [f"{count} {state}" for state, count in counts.items() if count or state == "firing"]
        return f"{len(self.alerts)} rule{'' if len(self.alerts) == 1 else 's'}: {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "looked": self.looked,
            "exit_code": self.exit_code,
            "firing": len(self.firing),
            "dry_run": self.dry_run,
            "alerts": [{**asdict(alert), "measured": list(alert.measured)} for alert in self.alerts],
            "deliveries": [asdict(delivery) for delivery in self.deliveries],
            "trouble": list(self.trouble),
        }

    def __repr__(self) -> str:
        return "\n".join([_text(self.summary, self._cells()), *(f"  {note}" for note in self._notes())])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return _html(self.summary, ("", "deployment", "rule", "measured"), self._cells()) + notes

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (alert.word, visible(alert.name), visible(alert.rule), visible(f"{alert.said}{_since(alert)}"))
            for alert in self.alerts
        ]

    def _notes(self) -> list[str]:
        told = [
            f"{one.what} of {one.name} {'told' if one.delivered else 'not told'}: {one.to}{f' ({one.why})' if one.why else ''}"
            for one in self.deliveries
        ]
        notes = [*told, *self.trouble, *(["dry run: nobody was told"] if self.dry_run else [])]
        return [visible(note) for note in notes]


def _since(alert: Alert) -> str:
    return f"; since {alert.since[:16].replace('T', ' ')} UTC" if alert.since else ""


def _text(summary: str, cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join([visible(summary), *(f"  {line}".rstrip() for line in lines)])


def _html(summary: str, heads: Iterable[str], cells: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    rows = "".join(f"<tr>{''.join(f'<td{_kind(text)}>{html.escape(text)}</td>' for text in row)}</tr>" for row in cells)
    return f'{_STYLE}<div class="nbdeploy-alerts"><p><b>{html.escape(summary)}</b></p><table><tr>{head}</tr>{rows}</table></div>'


def _kind(text: str) -> str:
    return ' class="firing"' if text.startswith("firing") else ""
