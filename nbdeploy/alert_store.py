"""What is kept of alerts: the rules of a deployment with whom they tell, and what came of looking at them.

Two files below ``NBDEPLOY_HOME/alerts/NAME``, each with one lock: ``rules.json`` is the user's, ``state.json`` belongs to
whoever evaluates the rules. Both may hold secrets: an address for messages has its password in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nbdeploy.errors import NbdeployError
from nbdeploy.home import check_name, folder, home, lock, read_json, write_json

RULES, STATE = "rules.json", "state.json"
MAX_RULES = 100  # of one deployment
MAX_WAITING = 200  # messages that nobody took; the oldest are given up


@dataclass(frozen=True)
class Kept:
    """A rule as it is kept.

    Attributes
    ----------
    text : str
        In the one way in which `alert_rules` writes it.
    to : tuple of str
        Whom it tells: addresses as Apprise takes them, or ``env:VARIABLE``. Secrets.
    since, who : str
        When it was set, in UTC, and by whom.
    """

    text: str
    to: tuple[str, ...] = field(default=(), repr=False)
    since: str = ""
    who: str = ""

    @property
    def key(self) -> str:
        """A short name of the rule, the same for the same text."""
        return digest(self.text)


@dataclass(frozen=True)
class Event:
    """One time that a rule fired.

    Attributes
    ----------
    event : str
        Its id: the message that it fires and the one that it is over have the same.
    rule : str
        The text of the rule.
    since : str
        When it was first seen, in UTC.
    said : str
        What was measured when it was last seen.
    """

    event: str
    rule: str
    since: str
    said: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class State:
    """What came of looking at the rules of one deployment.

    Attributes
    ----------
    firing : dict of dict
        By the key of a rule: the facts of its `Event`, and in ``told`` the keys of those who were or will be told.
    waiting : list of dict
        Messages to deliver, the oldest first.
    given_up : int
        Messages that waited too long.
    looked : str
        When somebody looked last, in UTC.
    """

    firing: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    given_up: int = 0
    looked: str = ""


def digest(text: str) -> str:
    """A short name of a text, which says nothing of it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def names() -> list[str]:
    """The deployments that have rules, or had some."""
    return sorted(path.parent.name for path in (home() / "alerts").glob(f"*/{RULES}"))


def rules(name: str) -> tuple[Kept, ...]:
    """The rules of `name`, the oldest first."""
    return _rules(_place(name) / RULES)


def change(name: str, edit: Callable[[tuple[Kept, ...]], tuple[Kept, ...]]) -> tuple[Kept, ...]:
    """Replace the rules of `name` by what `edit` makes of them; what it raises is passed on, and nothing is changed."""
    with lock("alerts", check_name(name)):
        new = edit(rules(name))
        path = folder("alerts", name) / RULES
        write_json(path, {"rules": [asdict(kept) for kept in new]})
        return new


def state(name: str) -> State:
    """What came of the last look at the rules of `name`."""
    path = _place(name) / STATE
    told = read_json(path)
    if told is None:
        return State()
    known = {each.name: told[each.name] for each in fields(State) if each.name in told} if _is(told, Mapping) else {}
    made = State(**known)
    fits = _is(made.firing, dict) and _is(made.waiting, list) and _is(made.given_up, int) and _is(made.looked, str)
    if (
        not known
        or not fits
        or not all(map(_is_event, made.firing.values()))
        or not all(map(_is_message, made.waiting))
    ):
        msg = f"{path} holds no state of alerts"
        raise NbdeployError(msg, "Move it away: what fires now is then told once more.")
    return made


def keep(name: str, new: State) -> None:
    """Write down what came of a look. Its caller holds the lock ``alerts-look``."""
    over = max(0, len(new.waiting) - MAX_WAITING)
    new.given_up += over
    new.waiting = new.waiting[over:]
    write_json(folder("alerts", name) / STATE, asdict(new))


def firing(name: str) -> list[Event]:
    """The events of `name` that go on, as the last look saw them; those of rules that were removed are over."""
    held, there = state(name), {kept.key for kept in rules(name)}
    names_ = [each.name for each in fields(Event)]
    return [
        Event(**{key: str(facts.get(key, "")) for key in names_}) for key, facts in held.firing.items() if key in there
    ]


def told(name: str) -> str:
    """How the alerts of `name` stand, in one line; '' where it has no rule."""
    try:
        kept, found, looked = rules(name), firing(name), state(name).looked
    except (NbdeployError, OSError):
        return "cannot be read"
    if not kept:
        return ""
    if not looked:
        return f"{_count(len(kept), 'rule')}, not looked at yet"
    when = f"(as of {looked[:16].replace('T', ' ')} UTC)"
    if not found:
        return f"none of {_count(len(kept), 'rule')} fires {when}"
    return f"{_count(len(found), 'alert')} firing: {'; '.join(event.rule for event in found)} {when}"


# -- helpers ------------------------------------------------------------------------------------------------


def _place(name: str) -> Path:
    return home() / "alerts" / check_name(name)


def _rules(path: Path) -> tuple[Kept, ...]:
    told = read_json(path)
    if told is None:
        return ()
    try:
        return tuple(
            Kept(str(each["text"]), tuple(map(str, each["to"])), str(each["since"]), str(each["who"]))
            for each in told["rules"]
        )
    except (LookupError, TypeError) as error:
        msg = f"{path} holds no rules of alerts"
        raise NbdeployError(msg, "Move it away, and set the rules again.") from error


def _is_event(facts: Any) -> bool:
    wanted = {each.name for each in fields(Event)}
    return _is(facts, dict) and wanted <= facts.keys() and _is(facts.get("told"), list)


def _is_message(facts: Any) -> bool:
    return _is(facts, dict) and {"key", "target", "what", "rule", "title", "body", "tries"} <= facts.keys()


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
