"""What the panel says of releases: who answers whom, what can be done about it, and what that would do."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from nbdeploy.panel_static import escaped, moment, plain
from nbdeploy.routing import Traffic
from nbdeploy.version_numbers import VersionNumbers

MAX_CHOICES = 8  # versions to choose from; %deploy traffic and promote take all
MAX_SAVED = 3  # versions without requests that the table lists
MAX_STEPS = 5
MAX_WORDS = 300
P99_REQUESTS = 100  # of fewer, the slowest hundredth is nobody


@dataclass(frozen=True)
class Release:
    """Who answers for a deployment, and what may be done about it, at a moment.

    Attributes
    ----------
    traffic : Traffic
    saved : tuple of str
        Every version, the newest first.
    steps : tuple of mapping
        What happened last, the newest first.
    refused : mapping of str
        By version, in one line, why it cannot be promoted; nothing of those that can.
    numbers : mapping of VersionNumbers
        What each version has answered since the service was started.
    running : bool
        Whether the service runs.
    """

    traffic: Traffic
    saved: tuple[str, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, VersionNumbers] = field(default_factory=dict)
    running: bool = False

    @property
    def back(self) -> str:
        """The version that a rollback goes to; '' for none."""
        target = self.traffic.back(self.saved.__contains__)
        return target.live or "" if target is not None else ""

    # -- as facts for the browser -----------------------------------------------------------------------

    def control(self, *, busy: bool = False, validating: bool = False, orders: bool = True) -> dict[str, Any]:
        """What the browser needs to draw the slider and the buttons: texts and numbers only.

        Parameters
        ----------
        busy, validating : bool
            Whether a change is at work, so that no other can be asked for; whether a candidate is being validated.
        orders : bool
            Whether a rollout can be paused, resumed and aborted from here.
        """
        held = self.traffic
        if held.live is None:
            return {}
        others = choices(held, self.saved)
        newer = [version for version in others if _number(version) > _number(held.live)]
        return {
            "live": held.live,
            "busy": busy,
            "validating": validating,
            "chosen": next(iter([*held.candidates, *newer, *others]), ""),
            "others": [self._choice(version) for version in others],
            "back": {
                "version": self.back,
                "label": f"Roll back to {self.back}" if self.back else "Roll back",
                "says": self._said_of_rollback() if self.back else "",
                "refused": "" if self.back else f"Nothing was live before {held.live}.",
            },
            "rollout": {
                "says": _short(f"Rollout of {held.told_rollout}{_spent(held.rollout)}"),
                "orders": ["resume" if held.rollout.get("paused") else "pause", "abort"] if orders else [],
            }
            if held.rollout
            else None,
            "guard": _short(f"Guard: {held.told_guard}") if held.guard else "",
        }

    def _choice(self, version: str) -> dict[str, Any]:
        held = self.traffic
        rest = sum(share for other, share in held.weights.items() if other in (version, held.live))
        others = [f"{other} {share:g} %" for other, share in held.weights.items() if other not in (version, held.live)]
        return {
            "version": version,
            "share": held.share(version),
            "rest": round(rest, 2),  # percent of it and the live one together
            "most": max(0, math.ceil(rest) - 1),  # the live one keeps some
            "beside": ", ".join(others),
            "shadow": version in held.shadow,
            "label": f"Promote {version}" + (f" ({held.live} stays loaded)" if self.running else ""),
            "says": self._said_of_promotion(version),
            "refused": self.refused.get(version, ""),
        }

    def _said_of_promotion(self, version: str) -> str:
        loaded = "loaded" if self.running else "saved"
        said = f"All requests go to {version}, and none fails. {self.traffic.live} stays {loaded}: a rollback returns to it."
        return " ".join([said, *self._ended(version)])

    def _said_of_rollback(self) -> str:
        said = f"All requests go back to {self.back}, and none fails. {self.traffic.live} stays saved."
        return " ".join([said, *self._ended(self.back)])

    def _ended(self, version: str) -> Iterator[str]:
        held = self.traffic
        yield from (f"{other} gets none any more." for other in held.candidates if other != version)
        if version in held.shadow:
            yield f"{version} shadows no more."
        if held.rollout:
            yield f"The rollout of {held.rollout.get('version')} ends."

    # -- as HTML and as text ----------------------------------------------------------------------------

    def versions(self) -> list[tuple[str, str]]:
        """Version and role of what the table lists."""
        held = self.traffic
        roles = {version: held.role(version) for version in held.used}
        if self.back and self.back not in roles:
            roles[self.back] = "previous"
        newer = [v for v in self.saved if v not in roles and held.live and _number(v) > _number(held.live)]
        return [*roles.items(), *((version, "saved") for version in newer[:MAX_SAVED])]

    def table(self) -> str:
        """Who answers whom, as HTML."""
        held = self.traffic
        if held.live is None:
            return '<p>Nothing is live yet. "Serve" makes the newest version live.</p>'
        asked = max((numbers.requests for numbers in self.numbers.values()), default=0)
        counted = ["requests", "errors", "p99"][: (0 if not asked else 3 if asked >= P99_REQUESTS else 2)]
        heads = ["version", "", "share", "", *counted]
        rows = []
        for version, role in self.versions():
            share = held.share(version)
            bar = f'<i class="nbdeploy-share" style="width:{share:.2f}%"></i>' if share else ""
            cells = f"<td>{escaped(version)}</td><td>{role}</td>"
            cells += f"<td>{f'{share:g} %' if share else ''}</td><td>{bar}</td>"
            told = _told(self.numbers.get(version))
            cells += "".join(f"<td>{text}</td>" for text in told[: len(counted)])
            kind = f' class="nbdeploy-is-{role}"' if role in ("live", "candidate") else ""
            rows.append(f"<tr{kind}>{cells}</tr>")
        head = "".join(f"<th>{text}</th>" for text in heads)
        notes = f"<p>{escaped(' · '.join(self._notes()))}</p>" if self._notes() else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{notes}"

    def history(self) -> str:
        """The last steps, as HTML; nothing before the first."""
        if not self.steps:
            return ""
        rows = "".join(
            f"<tr>{''.join(f'<td>{escaped(text)}</td>' for text in _step(step))}</tr>"
            for step in self.steps[:MAX_STEPS]
        )
        return f'<div class="nbdeploy-section">History</div><table><tbody>{rows}</tbody></table>'

    def rows(self) -> list[tuple[str, str]]:
        """Heading and text of what is worth saying, for the table that needs no kernel."""
        held = self.traffic
        if held.live is None:
            return []
        who = [
            f"{version} {role}" + (f" {held.share(version):g} %" if held.share(version) else "")
            for version, role in self.versions()
        ]
        found = [
            ("traffic", ", ".join([*who, *self._notes()])),
            ("rollback", f"goes to {self.back}" if self.back else ""),
            ("rollout", _short(held.told_rollout)),
            ("guard", _short(held.told_guard)),
        ]
        lines = [" · ".join(filter(None, _step(step))) for step in self.steps[:MAX_STEPS]]
        found += [("" if index else "history", line) for index, line in enumerate(lines)]
        return [(heading, plain(text)) for heading, text in found if text]

    def _notes(self) -> list[str]:
        held = self.traffic
        notes = [f"sticky by {held.sticky}"] if held.sticky else []
        return notes if held.pin else [*notes, "requests may not name a version"]


def choices(traffic: Traffic, saved: Sequence[str]) -> list[str]:
    """The versions that can be given a share or be promoted: those in use first, then the newest."""
    asked = [*traffic.candidates, *traffic.shadow, *saved]
    there = [version for version in dict.fromkeys(asked) if version in saved and version != traffic.live]
    return sorted(there[:MAX_CHOICES], key=_number, reverse=True)


# -- helpers ------------------------------------------------------------------------------------------------


def _number(version: str) -> int:
    return int(version[1:]) if version[1:].isdecimal() else 0


def _told(numbers: VersionNumbers | None) -> tuple[str, str, str]:
    if numbers is None or not numbers.requests:
        return "", "", ""
    errors = f"{numbers.errors:,} ({numbers.error_rate:.1%})" if numbers.errors else "0"
    p99 = f"{numbers.quantile(0.99) * 1000:.3g} ms" if numbers.requests >= P99_REQUESTS else ""
    return f"{numbers.requests:,}", errors, p99


def _spent(rollout: Mapping[str, Any]) -> str:
    run = rollout["run"]
    minutes = (run["spent"] + (0 if rollout["paused"] else max(0.0, time.time() - run["since"]))) / 60
    return f"; {min(minutes, rollout['minutes']):.0f} min of this step are over"


def _short(text: object) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= MAX_WORDS else f"{line[: MAX_WORDS - 1]}…"


def _step(step: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Moment, who, what, from where to where, and why; short texts."""
    old, new = str(step.get("from") or ""), str(step.get("to") or "")
    way = f"{old} → {new}" if old and old != new and step.get("action") != "traffic" else new
    evidence = ", ".join(PurePath(path).name for path in str(step.get("evidence") or "").split(", "))
    short = _short(step.get("why") or evidence)
    return (
        moment(str(step.get("time", ""))),
        str(step.get("who", ""))[:40],
        str(step.get("action", ""))[:20],
        way[:80],
        short,
    )
