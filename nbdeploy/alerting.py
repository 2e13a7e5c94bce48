"""Rules that a deployment is watched by, looked at once per call: by cron, Airflow, a build, or a hand.

What is kept is in `nbdeploy.alert_store`; how a rule is measured in `nbdeploy.alert_measures`; how it is told in
`nbdeploy.alert_delivery`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from nbdeploy import alert_delivery, alert_store, model_store, processes, routing, watching
from nbdeploy.alert_delivery import data, shown
from nbdeploy.alert_measures import FAILED, FIRING, OK, Judged, Measuring, must_fit
from nbdeploy.alert_result import Alert, AlertRules, Alerts, Delivery
from nbdeploy.alert_rules import Rule, duration, parse
from nbdeploy.alert_store import Event, Kept, State, digest
from nbdeploy.errors import AlertError, NbdeployError, NotFound, RuleError, did_you_mean
from nbdeploy.home import check_name, lock

MAX_TARGETS = 20  # of one rule


def alert(
    name: str, rule: str | None = None, *, to: str | Sequence[str] | None = None, off: bool = False
) -> AlertRules:
    """Keep a rule with a deployment, or take it back; with a name alone, show the rules.

    A rule is looked at when `alerts` is called, and by nobody else. What it can say is in docs/alerts.md:
    ``"error_rate > 2% over 30m for 2 windows"``.

    Parameters
    ----------
    rule : str, optional
        One that is there already is kept once, and tells whom `to` says now. With `off` its number will do.
    to : str or list of str, optional
        Whom it tells: addresses as Apprise takes them (``mailto://``, ``slack://``, ``json://`` for a webhook …), or
        ``env:VARIABLE`` for one that stands in the environment of whoever calls `alerts`, so that it is not kept here. They
        are never shown whole. Without any the rule tells nobody; `alerts`, its exit code and the panel show it.
    off : bool
        Remove the rule. If it fires, that is not told any more, nor that it is over.

    Returns
    -------
    AlertRules
        All rules of the deployment.

    Raises
    ------
    RuleError
        The rule does not parse; it shows the spot.
    AlertError
        A column, a metric or a target does not fit; there are too many rules; or there is no such rule to remove.
    NotFound
    """
    check_name(name)
    watching.must_be_known(name)
    targets = None if to is None else _targets(to)
    if rule is None:
        if off or targets is not None:
            msg = "which rule is not said"
            raise AlertError(
                msg, f"Say it, or its number: %deploy alert {name} 1 {'--off' if off else '--to ADDRESS'}."
            )
        return _shown(name, alert_store.rules(name))
    if off:
        return _shown(name, alert_store.change(name, lambda old: _without(name, old, rule)))
    text = _numbered(alert_store.rules(name), rule) or _fitting(name, rule).text
    now = _now().isoformat(timespec="seconds")

    def edit(old: tuple[Kept, ...]) -> tuple[Kept, ...]:
        if any(kept.text == text for kept in old):
            return tuple(
                replace(kept, to=targets) if kept.text == text and targets is not None else kept for kept in old
            )
        if len(old) >= alert_store.MAX_RULES:
            msg = f"{name!r} has {len(old)} rules already, the most there can be"
            raise AlertError(msg, f"Remove one: %deploy alert {name} 1 --off.")
        return (*old, Kept(text, targets or (), now, processes.user()))

    return _shown(name, alert_store.change(name, edit))


def alerts(name: str | None = None, *, dry_run: bool = False) -> Alerts:
    """Look at the rules of a deployment, or of all, once; and tell what is new.

    A rule that begins to fire is told once to each of its targets, and once more when it is over. What nobody took is told
    at the next look. Two looks at the same time tell it once. No service has to run, and none is asked.

    Parameters
    ----------
    dry_run : bool
        Tell nobody, and write nothing down.

    Returns
    -------
    Alerts
        Its `exit_code` is 0 when nothing fires, 1 when something does, 3 when nothing is known to fire, but something could
        not be measured or delivered.

    Raises
    ------
    AlertError
        The deployment has no rules.
    NotFound
    """
    if name is not None:
        check_name(name)
        if not alert_store.rules(name):
            watching.must_be_known(name)
            msg = f"{name!r} has no rules of alerts"
            raise AlertError(msg, f"Set one: %deploy alert {name} 'error_rate > 2%'.")
    stamp = _now().isoformat(timespec="seconds")
    found: list[Alert] = []
    deliveries: list[Delivery] = []
    trouble: list[str] = []
    for each in [name] if name is not None else alert_store.names():
        try:
            look = _look(each, dry_run=dry_run) if alert_store.rules(each) else Alerts()
        except (NbdeployError, OSError) as error:
            if name is not None and isinstance(error, NbdeployError):
                raise
            trouble.append(f"{each}: {error}")
            continue
        found += look.alerts
        deliveries += look.deliveries
        trouble += look.trouble
    return Alerts(tuple(found), tuple(deliveries), tuple(trouble), dry_run=dry_run, looked=stamp)


def state(name: str) -> list[Event]:
    """The alerts of `name` that fire, as the last look found them. Nothing is measured."""
    return alert_store.firing(name)


# -- a look -------------------------------------------------------------------------------------------------


def _look(name: str, *, dry_run: bool) -> Alerts:
    if dry_run:
        found, _ = _judged(name, _now(), alert_store.rules(name), alert_store.state(name))
        return Alerts(tuple(found))
    with lock("alerts-look", name):  # two at once: the second finds that all is told
        kept, held = alert_store.rules(name), alert_store.state(name)
        lost = held.given_up
        found, held = _judged(name, _now(), kept, held)  # now, not when it began to wait
        trouble = _keep(name, held)
        deliveries = [] if not held.waiting else list(_delivered(name, kept, held, trouble))
        trouble += [f"{name}: {lost:,} messages that nobody took were given up"] if lost else []
        return Alerts(tuple(found), tuple(deliveries), tuple(trouble))


def _judged(name: str, now: datetime, kept: Sequence[Kept], held: State) -> tuple[list[Alert], State]:
    """Each rule as it is found, and the state after it: what begins to fire or is over waits to be told."""
    measuring, found = Measuring(name, now), []
    new = replace(held, firing={}, waiting=[*held.waiting], given_up=0, looked=now.isoformat(timespec="seconds"))
    for rule in kept:
        judged = _judge(measuring, rule)
        before = held.firing.get(rule.key)
        facts = _event(before, rule, judged, new.looked)
        over = before is not None and judged.state == OK
        if facts is not None and not over:
            new.firing[rule.key] = facts
        if facts is None:
            found.append(Alert(name, rule.text, judged.state, judged.said, measured=judged.measured))
            continue
        found.append(
            Alert(name, rule.text, judged.state, judged.said, facts["event"], facts["since"], judged.measured, over)
        )
        if over or judged.state == FIRING:
            new.waiting += _messages(name, rule, facts, judged, over=over, now=new.looked)
    known = {(rule.key, digest(target)) for rule in kept for target in rule.to}
    new.waiting = [each for each in new.waiting if (each["key"], each["target"]) in known]
    return found, new


def _judge(measuring: Measuring, rule: Kept) -> Judged:
    try:
        return measuring.judge(parse(rule.text))
    except RuleError as error:  # of an older nbdeploy, or a damaged file
        return Judged(FAILED, error.message)


def _event(before: dict[str, Any] | None, rule: Kept, judged: Judged, now: str) -> dict[str, Any] | None:
    if before is None and judged.state != FIRING:
        return None
    if before is None:
        before = {"event": secrets.token_hex(8), "rule": rule.text, "since": now, "told": []}
    return {**before, "said": judged.said if judged.state == FIRING else before.get("said", "")}


def _messages(
    name: str, rule: Kept, facts: dict[str, Any], judged: Judged, *, over: bool, now: str
) -> Iterator[dict[str, Any]]:
    """What is to be told, to those who were not told yet; that it is over, to those who were told that it fires."""
    told = facts.setdefault("told", [])
    for target in rule.to:
        key = digest(target)
        if (key in told) != over:
            continue
        if not over:
            told.append(key)
        title, body = _worded(name, rule, facts, judged, over=over, now=now)
        yield {"key": rule.key, "target": key, "what": "recovery" if over else "alert", "rule": rule.text,
               "title": title, "body": body, "since": now, "tries": 0}  # fmt: skip


def _worded(name: str, rule: Kept, facts: dict[str, Any], judged: Judged, *, over: bool, now: str) -> tuple[str, str]:
    """Title and body of a message. What others chose is in them as text that means nothing to any service."""
    asked = parse(rule.text)
    plain = rule.text if asked.column is None else replace(asked, column=data(asked.column)).text
    live = routing.live(name)
    lines = [
        f"{plain}",
        f"measured: {judged.said}",
        f"since: {facts['since']}" + (f", over: {now}" if over else ""),
        *([f"live version: {live}"] if live else []),
        f"event: {facts['event']}",
        "" if over else f"See: {_see(name, asked)}",
    ]
    return f"{'RECOVERED' if over else 'FIRING'}: {name}: {plain}", "\n".join(filter(None, lines))


def _see(name: str, rule: Rule) -> str:
    since = duration(rule.window * rule.windows)
    if rule.measure.startswith("drift"):
        return f"nbdeploy drift {name} --since {since}"
    if rule.measure.startswith("quality"):
        return f"nbdeploy quality {name} --since {since}"
    return f"nbdeploy status {name}, nbdeploy logs {name}"


def _keep(name: str, held: State) -> list[str]:
    # Told though it cannot be written down: rather twice than never, and a full disk is worth an alert.
    try:
        alert_store.keep(name, held)
    except (OSError, NbdeployError) as error:
        return [
            f"{name}: what was told cannot be written down, so it will be told again: {getattr(error, 'strerror', '') or error}"
        ]
    return []


def _delivered(name: str, kept: Sequence[Kept], held: State, trouble: list[str]) -> Iterator[Delivery]:
    """Deliver what waits, in order; a target that does not take one gets no other in this look."""
    targets = {digest(target): target for rule in kept for target in rule.to}
    dead: dict[str, str] = {}
    for message in [*held.waiting]:
        key, target = message["target"], targets[message["target"]]
        if key not in dead:
            why = alert_delivery.send(target, message["title"], message["body"], good=message["what"] == "recovery")
            if why:
                dead[key] = why
        if key in dead:
            message["tries"] += 1
        else:
            held.waiting.remove(message)
            if not trouble:
                trouble += _keep(name, held)
        yield Delivery(name, message["rule"], message["what"], shown(target), key not in dead, dead.get(key, ""))
    if dead and not trouble:
        trouble += _keep(name, held)


# -- rules --------------------------------------------------------------------------------------------------


def _fitting(name: str, text: str) -> Rule:
    """The rule in `text`, which means something for this deployment."""
    rule = parse(text)
    saved = model_store.versions(name)
    if rule.version and rule.version not in {version.version for version in saved}:
        msg = f"there is no {name}:{rule.version}"
        raise AlertError(msg, did_you_mean(rule.version, [version.version for version in saved]))
    if not saved:
        return rule
    must_fit(rule, model_store.get(name, rule.version or watching.live_version(name)))
    return rule


def _targets(to: str | Sequence[str]) -> tuple[str, ...]:
    told = [to] if isinstance(to, str) else list(to)
    if len(told) > MAX_TARGETS:
        msg = f"{len(told)} targets are too many for one rule"
        raise AlertError(msg, f"At most {MAX_TARGETS}.")
    return tuple(dict.fromkeys(map(alert_delivery.check, told)))


def _numbered(kept: Sequence[Kept], rule: str) -> str:
    """The text of the rule with that number; '' where it is no number of one."""
    told = str(rule).strip()
    number = int(told) if told.isascii() and told.isdecimal() and len(told) < 4 else 0
    return kept[number - 1].text if 1 <= number <= len(kept) else ""


def _without(name: str, old: tuple[Kept, ...], rule: str) -> tuple[Kept, ...]:
    text = _numbered(old, rule)
    if not text and not str(rule).strip().isdecimal():
        text = parse(rule).text
    left = tuple(kept for kept in old if kept.text != text)
    if len(left) == len(old):
        msg = f"{name!r} has no such rule" if old else f"{name!r} has no rules"
        raise NotFound(msg, f"See them: %deploy alert {name}." if old else "")
    return left


def _shown(name: str, kept: Sequence[Kept]) -> AlertRules:
    return AlertRules(name, tuple(rule.text for rule in kept), tuple(tuple(map(shown, rule.to)) for rule in kept))


def _now() -> datetime:
    return datetime.now(timezone.utc)
