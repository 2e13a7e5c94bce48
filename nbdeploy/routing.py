"""Which versions of a deployment answer whom: one small file, replaced atomically under a lock, with its whole history.

Workers watch the file; what they make of it is `nbdeploy.loaded_versions`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nbdeploy import processes, traffic_split
from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, folder, lock, read_json, write_json


@dataclass(frozen=True)
class Traffic:
    """Which version answers whom.

    Attributes
    ----------
    generation : int
        Goes up with every change. Workers acknowledge the generation that they have applied.
    live : str or None
        The champion; None before the first release.
    weights : mapping
        Percent by version, of those that get requests: the live one and candidates. Together 100.
    shadow : tuple of str
        Versions that answer into the log only.
    sticky : str
        What keeps one version for one asker: a column, or a header such as ``X-Client-ID``; '' splits request by request.
    pin : bool
        Whether a request may name its version, ``?version=v2``.
    before : tuple of str
        The versions that were live before, newest last: where `rollback` goes.
    warm : tuple of str
        Versions that are loaded without getting requests, while they are prepared to.
    guard, rollout : mapping or None
        What `nbdeploy.guard` and `nbdeploy.rollout` were told, and how far they are.
    gates : tuple of mapping
        What a promotion needs beside the gate that comes with nbdeploy; see `nbdeploy.validate`.
    slots : tuple of str
        Who has each slot of the split; see `nbdeploy.traffic_split`. Empty where one version has all.
    memory : tuple of pair
        After a change: bytes that each worker held before and holds after it.
    """

    name: str
    generation: int = 0
    live: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    shadow: tuple[str, ...] = ()
    sticky: str = ""
    pin: bool = True
    before: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    guard: Mapping[str, Any] | None = None
    rollout: Mapping[str, Any] | None = None
    gates: tuple[Mapping[str, Any], ...] = ()
    slots: tuple[str, ...] = field(default=(), repr=False)
    memory: tuple[tuple[int, int], ...] = field(default=(), repr=False, compare=False)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The versions beside the live one that get requests."""
        return tuple(version for version in self.weights if version != self.live)

    @property
    def used(self) -> tuple[str, ...]:
        """The versions that answer somebody or the log: none of them may be deleted."""
        live = (self.live,) if self.live else ()
        return tuple(dict.fromkeys((*live, *self.weights, *self.shadow)))

    def share(self, version: str) -> float:
        """Percent of the requests that `version` gets."""
        return self.weights.get(version, 0.0)

    def split(self, **weights: float) -> Traffic:
        """The same with other weights, of which those above 0 count."""
        chosen = {version: float(weight) for version, weight in weights.items() if weight > 0}
        slots = traffic_split.assign(chosen, self.slots or (self.live or next(iter(chosen)),) * traffic_split.SLOTS)
        return replace(self, weights=chosen, slots=slots if len(chosen) > 1 else ())

    def to_live(self, version: str) -> Traffic:
        """The same with all requests for `version`, and the one that was live before it remembered."""
        if version == self.live:
            return self.split(**{version: 100})
        before = (*self.before, self.live) if self.live else self.before
        return replace(self.unshadowed(version), live=version, before=before).split(**{version: 100})

    def back(self, exists: Callable[[str], bool] = lambda _version: True) -> Traffic | None:
        """The same with the version live before, of those that still exist; None where there is none."""
        left = [version for version in self.before if exists(version)]
        if not left:
            return None
        gone = replace(self.unshadowed(left[-1]), live=left[-1], before=tuple(left[:-1]))
        return gone.split(**{left[-1]: 100})

    def without(self, version: str) -> Traffic:
        """The same without `version` among those that are remembered or prepared: it is deleted."""
        kept = [tuple(each for each in held if each != version) for held in (self.before, self.warm)]
        return replace(self, before=kept[0], warm=kept[1])

    def unshadowed(self, version: str) -> Traffic:
        """The same without `version` as a shadow."""
        return replace(self, shadow=tuple(each for each in self.shadow if each != version))

    def to_dict(self) -> dict[str, Any]:
        """What a reader may want to know, as JSON."""
        return {
            "name": self.name, "generation": self.generation, "live": self.live, "weights": dict(self.weights),
            "shadow": list(self.shadow), "sticky": self.sticky, "pin": self.pin, "before": list(self.before),
            "guard": self.guard, "rollout": self.rollout, "gates": list(self.gates),
        }  # fmt: skip

    def __repr__(self) -> str:
        if self.live is None:
            return f"Traffic({self.name}: nothing is live)"
        told = [shares(self.weights)]
        told += [f"shadow {version}" for version in self.shadow]
        told += [f"sticky by {self.sticky}"] if self.sticky and len(self.weights) > 1 else []
        told += [self._told_memory()] if self.memory else []
        told = [", ".join(told), *self._told_plans()]
        return f"Traffic({self.name}: {'; '.join(told)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align: left">{html.escape(version)}</td>'
            f'<td style="text-align: left">{self.role(version)}</td>'
            f"<td>{f'{self.share(version):g} %' if version in self.weights else ''}</td>"
            f'<td style="text-align: left">{_bar(self.share(version)) if version in self.weights else ""}</td></tr>'
            for version in self.used
        )
        sticky = f"<div>sticky by <code>{html.escape(self.sticky)}</code></div>" if self.sticky else ""
        back = f"<div>rollback goes to {html.escape(self.before[-1])}</div>" if self.before else ""
        memory = f"<div>{self._told_memory()}</div>" if self.memory else ""
        plans = "".join(f"<div>{html.escape(plan)}</div>" for plan in self._told_plans())
        return f"<b>{html.escape(self.name)}</b><table>{rows}</table>{sticky}{back}{plans}{memory}"

    @property
    def told_guard(self) -> str:
        """What the guard allows, and what it has done; '' without one."""
        if self.guard is None:
            return ""
        told = [self.guard["told"]]
        if tripped := self.guard["tripped"]:
            told.append(f"{tripped['version']} was taken out of traffic: {tripped['why']}")
        told += [f"{version}: {run['said']}" for version, run in self.guard["watch"].items() if run["said"]]
        return "; ".join(told)

    @property
    def told_rollout(self) -> str:
        """How far the rollout is, and what it waits for; '' without one."""
        if self.rollout is None:
            return ""
        said = self.rollout["run"]["said"]
        return str(self.rollout["told"]) + (f"; {said}" if said else "")

    def _told_plans(self) -> list[str]:
        plans = [f"guard: {self.told_guard}"] if self.guard is not None else []
        return [*plans, f"rollout of {self.told_rollout}"] if self.rollout is not None else plans

    def _told_memory(self) -> str:
        each = [f"{old >> 20} → {new >> 20} MB" if old else f"{new >> 20} MB" for old, new in self.memory]
        return "memory " + ", ".join(each)

    def role(self, version: str) -> str:
        """``live``, ``candidate``, ``shadow``, ``previous`` or ''."""
        if version == self.live:
            return "live"
        if version in self.weights:
            return "candidate"
        if version in self.shadow:
            return "shadow"
        return "previous" if self.before[-1:] == (version,) else ""


def shares(weights: Mapping[str, float]) -> str:
    """Who gets how much, in words: ``v1 90 %, v2 10 %``."""
    return ", ".join(f"{version} {share:g} %" for version, share in weights.items())


def traffic(name: str) -> Traffic:
    """Who answers for `name` now; nobody is live where nothing was released."""
    return read(path(name))


def live(name: str) -> str | None:
    """The live version of `name`, or None before its first release."""
    return traffic(name).live


def history(name: str) -> list[dict[str, Any]]:
    """What happened to the traffic of `name`, newest first."""
    state = _state(path(name))
    return [{"action": "served", "evidence": "", **step} for step in reversed(state.get("history", []))]


def change(
    name: str,
    edit: Callable[[Traffic], Traffic],
    *,
    action: str = "",
    to: str = "",
    why: str = "",
    evidence: str = "",
) -> Traffic:
    """Replace the traffic of `name` by what `edit` makes of it. After a crash at any point it is the old or the new.

    Parameters
    ----------
    edit : callable
        Gets the traffic as it is. What it raises is passed on, and nothing is changed.
    action : str
        What the history calls it; '' writes nothing there.
    to : str
        What it leads to; by default the live version.
    why, evidence : str
        Also for the history.

    Returns
    -------
    Traffic
        As it is now. An edit that changes nothing leaves the generation and the history alone.
    """
    with lock("traffic", check_name(name)):
        state = _state(path(name))
        old = _read(path(name), state)
        new = edit(old)
        if new == old:
            return old
        new = replace(new, generation=old.generation + 1)
        steps = state.get("history", [])
        if action:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            steps = [*steps, {"time": now, "who": processes.user(), "action": action, "from": old.live,
                              "to": to or new.live, "why": why, "evidence": evidence}]  # fmt: skip
        facts = {**new.to_dict(), "warm": list(new.warm), "slots": traffic_split.pack(new.slots) if new.slots else None}
        write_json(path(name), {**facts, "history": steps})
        return new


def go_live(name: str, version: str, why: str) -> Traffic:
    """Make `version` the live one, with all requests, and write down who did it, when and why."""
    return change(name, lambda old: old if old.live == version else old.to_live(version), action="served", why=why)


def path(name: str) -> Path:
    """The file that workers watch."""
    return folder("traffic") / f"{check_name(name)}.json"


def read(place: Path) -> Traffic:
    """The traffic that the file at `place` holds.

    Raises
    ------
    NbdeployError
        It holds something else: somebody edited it, say.
    """
    return _read(place, _state(place))


def _read(place: Path, state: Mapping[str, Any]) -> Traffic:
    try:
        return _traffic(place.stem, state)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unreadable(place, type(error).__name__) from error


def _state(place: Path) -> dict[str, Any]:
    state = read_json(place)
    if state is None:
        return {}
    steps = state.get("history", []) if isinstance(state, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise _unreadable(place, type(state if steps is None else steps).__name__)
    return dict(state)


def _unreadable(place: Path, what: str) -> NbdeployError:
    msg = f"{place} holds no traffic of {place.stem!r} ({what})"
    return NbdeployError(msg, "Put it right; or move it away, stop the service and serve it again.")


def _traffic(name: str, state: Mapping[str, Any]) -> Traffic:
    gates, generation = tuple(state.get("gates") or ()), int(state.get("generation", 1 if state.get("live") else 0))
    if not state.get("live"):
        return Traffic(name, gates=gates, generation=generation)
    current = _version(state["live"])
    weights = {_version(version): float(share) for version, share in (state.get("weights") or {current: 100.0}).items()}
    shadow, before, warm = (tuple(map(_version, state.get(key) or ())) for key in ("shadow", "before", "warm"))
    slots = traffic_split.unpack(state["slots"]) if state.get("slots") else ()
    plans = (state.get("guard"), state.get("rollout"))
    if len(slots) not in (0, traffic_split.SLOTS) or not {*slots} <= {current, *weights}:
        raise ValueError
    if not all(plan is None or isinstance(plan, dict) for plan in plans):
        raise TypeError
    return Traffic(
        name=name, generation=generation, live=current, weights=weights, shadow=shadow, before=before, warm=warm,
        sticky=str(state.get("sticky", "")), pin=bool(state.get("pin", True)), guard=plans[0], rollout=plans[1],
        gates=gates, slots=slots,
    )  # fmt: skip


def _version(told: object) -> str:
    if not isinstance(told, str):
        raise TypeError
    return told


def _bar(percent: float) -> str:
    return (
        '<div style="width: 8em; background: var(--jp-layout-color2, #eee)"><div style="height: 0.6em; '
        f'background: var(--jp-brand-color1, #1976d2); width: {percent:.2f}%"></div></div>'
    )
