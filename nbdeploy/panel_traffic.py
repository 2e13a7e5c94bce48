"""The panel's section on traffic: a slider for the split, and buttons that say what they will do before they do it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from nbdeploy import deployment, model_store, panel_release, releases, routing, validation, version_numbers
from nbdeploy.errors import InputError, NbdeployError, ReleaseError
from nbdeploy.panel_parts import Kit, Work, put
from nbdeploy.panel_release import MAX_STEPS, Release
from nbdeploy.panel_static import error_box, said
from nbdeploy.routing import Traffic

CHANGES = frozenset({"traffic", "promote", "rollback", "rollout"})  # of which one can be at work
VALIDATE = "validate candidate"  # beside which a rollback must be possible
ORDERS = {"pause": "Pausing the rollout", "resume": "Resuming the rollout", "abort": "Aborting the rollout"}

Start = Callable[[str, str, Callable[[Work], object]], None]  # a verb, what it is called meanwhile, and what it does


class TrafficPart:
    """Who answers whom, and what can be done about it.

    The browser asks by messages such as ``{"do": "promote", "version": "v2", "live": "v1", "why": ""}``, in which `live`
    is the version that was live when the user decided.

    Parameters
    ----------
    start : callable
        Has a thread of its own do something.
    """

    verbs = CHANGES | {VALIDATE}

    def __init__(self, name: str, kit: Kit, start: Start) -> None:
        self._name, self._start = name, start
        self.release = Release(Traffic(name))
        self.error = ""
        self.control = kit.traffic()
        self.control.on_msg(self.told)
        self._heading, self._table, self._said, self._history = (
            kit.html(),
            kit.html("versions"),
            kit.html(),
            kit.html("history"),
        )
        self.box = kit.box(
            "traffic", self._heading, self._table, self.control, self._said, self._history, vertical=True
        )

    def look(self) -> Release:
        """What is on the disk."""
        name = self._name
        traffic = routing.traffic(name)
        saved = tuple(version.version for version in model_store.versions(name))
        refused = {}
        for version in panel_release.choices(traffic, saved):
            try:
                releases.must_be_promotable(name, version)
            except NbdeployError as error:
                refused[version] = said(error)
        numbers: Mapping[str, Any] = {}
        with suppress(NbdeployError, OSError, ValueError):  # another nbdeploy wrote them
            listening = version_numbers.read(name, shadows=True) if traffic.shadow else {}
            shadows = {version: listening[version] for version in traffic.shadow if version in listening}
            numbers = {**version_numbers.read(name), **shadows}
        steps = tuple(routing.history(name)[:MAX_STEPS])
        return Release(traffic, saved, steps, refused, numbers, deployment.find(name) is not None)

    def show(self, busy: Mapping[str, Work]) -> None:
        """Bring the widgets up to date."""
        release, mine = self.release, [work for verb, work in busy.items() if verb in self.verbs]
        put(self._heading, '<div class="nbdeploy-section">Traffic</div>')
        put(self._table, release.table())
        occupied = not busy.keys().isdisjoint({*CHANGES, "serve", "stop"})
        orders = _public("rollout") is not None
        self.control.facts = release.control(busy=occupied, validating=VALIDATE in busy, orders=orders)
        put(self._said, "".join(work.markup() for work in mine) + error_box(self.error))
        put(self._history, release.history())

    # -- what is done -----------------------------------------------------------------------------------

    def told(self, _widget: Any, message: Any, _buffers: Any) -> None:
        """Do what the browser asks for."""
        version, live, why = (str(message.get(key, "")) for key in ("version", "live", "why"))
        do = message.get("do")
        if do == "traffic":
            self._start(do, "Changing the split", lambda _: self._split(version, live, message.get("share")))
        elif do == "promote":
            self._start(do, f"Promoting {version}", lambda _: self._promote(version, live, why))
        elif do == "rollback":
            self._start(do, f"Rolling back to {version}", lambda _: self._roll_back(version, live, why))
        elif do == "validate":
            self._start(VALIDATE, f"Validating {version}", lambda work: self._validate(version, work))
        elif do == "rollout" and message.get("order") in ORDERS:
            order = str(message["order"])
            self._start(do, ORDERS[order], lambda _: _public("rollout")(self._name, **{order: True}))

    def _split(self, version: str, live: str, share: object) -> Traffic:
        held = self._still(live)
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            msg = f"{share!r:.40} is no share"
            raise InputError(msg)
        rest = held.share(live) + held.share(version)
        weights: dict[str, Any] = {**held.weights, version: share, live: round(rest - share, 2)}
        shadow = [other for other in held.shadow if other != version] if share else None
        return releases.traffic(self._name, shadow=shadow, progress=False, **weights)

    def _promote(self, version: str, live: str, why: str) -> Traffic:
        self._still(live)
        return releases.promote(self._name, version, why=why, progress=False)

    def _roll_back(self, version: str, live: str, why: str) -> Traffic:
        held = self._still(live)
        if Release(held, self.release.saved).back != version:
            raise _changed(held)
        return releases.rollback(self._name, why=why, progress=False)

    def _validate(self, version: str, work: Work) -> object:
        run: Any = validation.validate(self._name, version, wait=False, progress=False, on_progress=work.on_progress)
        return run.result()

    def _still(self, live: str) -> Traffic:
        """The traffic, in which the same version is live as when the user decided."""
        held = routing.traffic(self._name)
        if held.live != live:
            raise _changed(held)
        return held


def _changed(held: Traffic) -> ReleaseError:
    return ReleaseError(
        f"the traffic of {held.name!r} has been changed: {held.live} is live now", "Look again, and decide anew."
    )


def _public(verb: str) -> Any:
    """A verb that this nbdeploy may not have."""
    return getattr(importlib.import_module("nbdeploy"), verb, None)
