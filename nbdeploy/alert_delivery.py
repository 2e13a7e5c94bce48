"""Deliver a message by Apprise, and say of an address no more than may be seen.

An address holds passwords and tokens: it is shown as its scheme and, where that is no secret itself, its host. What Apprise
logs of it is kept off the log, and of an error only what kind it is.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbdeploy.drift_columns import inert
from nbdeploy.errors import AlertError, did_you_mean

ENV = "env:"
# In the others the place of the host holds a token, a topic or a number.
_HOSTED = frozenset({"mailto", "mailtos", "json", "jsons", "xml", "xmls", "form", "forms", "http", "https"})
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]{0,30})://")
_HOST = re.compile(r"(?:[^/?#]*@)?(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,100})(?::[0-9]{1,5})?(?=[/?#]|$)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_STATUS = re.compile(r"\berror=([0-9]{3})\b")

_LOGGERS = ("apprise", "urllib3", "requests")  # what it asks with quotes them too

_WIKI = "https://github.com/caronc/apprise/wiki"

_one = threading.Lock()  # a logger is one for the process


def shown(target: str) -> str:
    """A target without its secrets: ``env:NAME``, ``mailto://example.org``, ``slack://…``."""
    if target.startswith(ENV):
        return target if _VARIABLE.fullmatch(target[len(ENV) :]) else f"{ENV}…"
    scheme = _SCHEME.match(target)
    if scheme is None:
        return "…"
    name = scheme[1].lower()
    if name not in _HOSTED:
        return f"{name}://…"
    found = _HOST.match(target, scheme.end())
    host = found[1] if found else ""
    is_host = "." in host or ":" in host or host == "localhost"  # else it may be anything, a password too
    return f"{name}://{host if is_host else '…'}"


def check(target: Any) -> str:
    """Return `target` if something can be delivered to it.

    Raises
    ------
    AlertError
        It is no address that Apprise takes, nor the name of a variable.
    """
    hint = "Give an address of Apprise, mailto://… say, or env:VARIABLE, whose value is one."
    if not isinstance(target, str) or not target.strip():
        msg = f"a target of alerts is text, not {'empty' if isinstance(target, str) else type(target).__name__}"
        raise AlertError(msg, hint)
    address: str = target.strip()
    if address.startswith(ENV):
        if not _VARIABLE.fullmatch(address[len(ENV) :]):
            msg = "what follows env: is no name of a variable"
            raise AlertError(msg, "For example env:NBDEPLOY_ALERT_URL.")
        return address
    _service(address)
    return address


def send(target: str, title: str, body: str, *, good: bool) -> str:
    """Deliver a message of plain text; '' when it was taken, else why not, without a secret.

    Parameters
    ----------
    good : bool
        Whether it is good news, for services that have a colour for it.
    """
    try:
        apprise, service = _service(_address(target))
        from apprise import NotifyFormat, NotifyType

        sender = apprise.Apprise()
        sender.add(service)
        with _quiet() as records:
            taken = sender.notify(
                title=title, body=body, body_format=NotifyFormat.TEXT,
                notify_type=NotifyType.SUCCESS if good else NotifyType.FAILURE,
            )  # fmt: skip
    except AlertError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a plugin's own; its text may hold the address
        return f"Apprise failed: {type(error).__name__}"
    return "" if taken else _reason(records)


def data(text: str) -> str:
    """Text that others chose, such as a column's name, so that no service takes it for markup, a link or a mention."""
    return inert(text, 200).replace("@", "＠").replace("://", "：//")  # noqa: RUF001  they look like what they replace


# -- helpers ------------------------------------------------------------------------------------------------


def _address(target: str) -> str:
    if not target.startswith(ENV):
        return target
    variable = target[len(ENV) :]
    if not (address := os.environ.get(variable, "").strip()):
        msg = f"the variable {variable} is not set"
        raise AlertError(msg, "Set it for whoever runs nbdeploy alerts.")
    return address


def _service(address: str) -> tuple[Any, Any]:
    try:
        with _quiet():
            import apprise

            service = apprise.Apprise.instantiate(address, suppress_exceptions=True)
    except ImportError as error:
        msg = "alerts are delivered by Apprise, which is not installed"
        raise AlertError(msg, "pip install 'nbdeploy[lab]'.") from error
    if service is None:
        raise _not_taken(apprise, address)
    return apprise, service


def _not_taken(apprise: Any, address: str) -> AlertError:
    """Why Apprise does not take an address, as far as that can be said without it."""
    scheme = _SCHEME.match(address)
    if scheme is None:
        return AlertError("it is no kind of address that Apprise knows", f"It begins with a word and ://. See {_WIKI}.")
    name = scheme[1].lower()
    with _quiet():
        known = apprise.Apprise().details()["schemas"]
    names = [str(one) for each in known for one in [*(each["protocols"] or ()), *(each["secure_protocols"] or ())]]
    if name in names:
        msg = f"{shown(address)} is an address that Apprise cannot read: something is missing in it"
        return AlertError(msg, f"See {_WIKI} on {name}://.")
    near = did_you_mean(name, names)
    hint = f"{near} See {_WIKI}." if near.startswith("Did") else f"See {_WIKI}."
    return AlertError(f"{name}:// is no kind of address that Apprise knows", hint)


def _reason(records: list[logging.LogRecord]) -> str:
    said = " ".join(record.getMessage() for record in records)
    if status := _STATUS.search(said):
        return f"it was refused with status {status[1]}"
    if "timed out" in said.lower() or "timeout" in said.lower():
        return "there was no answer in time"
    if "onnection" in said:
        return "there was no connection"
    return "Apprise could not deliver it"


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _quiet() -> Iterator[list[logging.LogRecord]]:
    """A while in which what Apprise and its kin log goes nowhere but into the list: it quotes addresses.

    Of warnings it has its own, of what it imports.
    """
    keeper, loggers = _Keeper(), [logging.getLogger(name) for name in _LOGGERS]
    with _one:
        before = [(each, each.handlers[:], each.propagate, each.level, each.disabled) for each in loggers]
        for each in loggers:
            each.handlers, each.propagate, each.disabled = [keeper], False, False
            each.setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield keeper.records
        finally:
            for each, handlers, propagate, level, disabled in before:
                each.handlers, each.propagate, each.disabled = handlers, propagate, disabled
                each.setLevel(level)
