"""What a gate knows and its evidence must not: taken out of everything that is written down."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nbdeploy.errors import GateError
from nbdeploy.gate_parameters import JSON, Declared
from nbdeploy.redaction import HIDDEN, SECRET_NAME

SHORTEST = 4  # characters of a value that can be taken out and leave a text that can be read
SHORTEST_UNASKED = 8  # of a variable that the user did not name
_NO_SECRETS = {"PWD", "OLDPWD"}  # a shell's working directories, which paths begin with
_COLOURS = r"(?:\x1b\[[0-9;]*m)*"  # a traceback may be coloured anywhere
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Secrets:
    """Values that are replaced by ``***`` wherever they stand, also as JSON, HTML, URLs and Base64 write them.

    Parameters
    ----------
    values : iterable of str
        Those of fewer than four characters are left: without them nothing could be read any more.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values if len(value) >= SHORTEST for form in _forms(value)}
        # The longest first: a secret may contain another.
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def hide(self, text: str) -> str:
        """`text` without any of them."""
        if "\x1b" in text:
            bare = _COLOUR.sub("", text)
            for form in self._forms:
                if form in bare:  # else the slow search would find nothing
                    text = re.sub(_COLOURS.join(map(re.escape, form)), HIDDEN, text)
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def hide_in(self, value: Any) -> Any:
        """A JSON value without any of them: in its texts, its keys and its numbers."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide(str(key)): self.hide_in(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide_in(item) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) in self._forms:
            return HIDDEN
        return value

    def clean(self, notebook: Any) -> None:
        """Take them out of an executed notebook: out of its sources, outputs and widgets, and what Papermill noted."""
        if not self._forms:
            return
        about = notebook.metadata.get("papermill", {})
        for key in about.keys() & {"parameters", "exception"}:
            about[key] = self.hide_in(about[key])
        if "widgets" in notebook.metadata:  # what they show is kept beside the cells
            notebook.metadata["widgets"] = self.hide_in(notebook.metadata["widgets"])
        for cell in notebook.cells:
            cell.source = self.hide(cell.source)
            for output in cell.get("outputs", ()):
                for key in output.keys() & {"text", "ename", "evalue", "traceback", "metadata"}:
                    output[key] = self.hide_in(output[key])
                for media, shown in output.get("data", {}).items():
                    output["data"][media] = self.hide_in(shown)

    def __repr__(self) -> str:
        return "Secrets(***)"


def environment(env: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """What a notebook's kernel is given beside our own environment.

    Parameters
    ----------
    env : mapping or list of str, optional
        Names and values; or names alone of variables that have to be there already.

    Raises
    ------
    GateError
        One is no name, has no value, or is too short to be kept out of the evidence. No value is ever told.
    """
    if env is None:
        return {}
    given: Any = env
    names: list[Any] = [env] if isinstance(env, str) else list(env)
    found = {}
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
            shown = name.partition("=")[0] if isinstance(name, str) else type(name).__name__
            if isinstance(name, str) and "=" in name:
                msg = f"env names variables, and {shown[:60]!r} came with a value"
                raise GateError(msg, "Give the name alone: the value would stand in a history.")
            msg = f"env names {shown[:60]!r}, which can be no environment variable"
            raise GateError(msg)
        value: Any = given[name] if isinstance(given, Mapping) else os.environ.get(name)
        if value is None:
            msg = f"the environment has no {name}, which this notebook needs"
            raise GateError(msg, f"Set it first; in a notebook: env={{{name!r}: getpass()}}.")
        if not isinstance(value, str) or "\0" in value:
            msg = f"env gives {name} a {type(value).__name__}" + (" with a NUL" if isinstance(value, str) else "")
            raise GateError(msg, "An environment variable is a text.")
        if 0 < len(value) < SHORTEST and SECRET_NAME.search(name):
            msg = f"{name} is shorter than {SHORTEST} characters, so it cannot be kept out of the evidence"
            raise GateError(msg, "Choose a longer one.")
        found[name] = value
    return found


def known(env: Mapping[str, str], tokens: Iterable[str] = ()) -> Secrets:
    """Everything that a gate with this environment must not write down.

    Beside what it is given these are `tokens`, and what our own environment holds under a name like a secret's.
    """
    inherited = (
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and name not in _NO_SECRETS and len(value) >= SHORTEST_UNASKED
    )
    return Secrets([*env.values(), *tokens, *inherited])


def refuse_secrets(parameters: Mapping[str, JSON], declared: Mapping[str, Declared]) -> None:
    """Raise `GateError` for a parameter that is named like a secret: it would stand in the evidence.

    What its notebook declares as a number is one, ``max_tokens`` for example.
    """
    for name, value in parameters.items():
        kind = declared[name].kind if name in declared else ""
        found = _named_like_a_secret(name, value) if kind not in {"int", "float", "bool"} else ""
        if found:
            msg = f"Parameter {found!r} is named like a secret, and parameters stand in the evidence"
            variable = re.sub(r"\W+", "_", found.rpartition(".")[2]).upper()
            raise GateError(msg, f"Use env={{{variable!r}: ...}} (--env {variable}), and os.environ in the notebook.")


def _named_like_a_secret(name: str, value: JSON) -> str:
    if isinstance(value, Mapping):
        inner = (_named_like_a_secret(str(key), item) for key, item in value.items())
        if within := next(filter(None, inner), ""):
            return f"{name}.{within}"
    if isinstance(value, list):
        inner = (_named_like_a_secret("", item) for item in value)
        if within := next(filter(None, inner), ""):
            return f"{name}{within}" if within.startswith(".") else f"{name}.{within}"
    empty = value is None or isinstance(value, bool) or value in ("", [], {})
    return name if not empty and SECRET_NAME.search(name) else ""


def _forms(value: str) -> set[str]:
    coded = value.encode("utf-8", "surrogateescape")
    # A key has many lines, and a check's name is put into one.
    plain = {value, " ".join(value.split()), *(line for line in value.splitlines() if len(line) >= SHORTEST_UNASKED)}
    forms = set(plain)
    for each in plain:
        for text in (each, repr(each)[1:-1]):
            forms |= {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], html.escape(text)}
    forms |= {quote(value, safe="", errors="surrogateescape"), base64.b64encode(coded).decode(), coded.hex()}
    forms.add(base64.urlsafe_b64encode(coded).decode())
    return {form for form in forms if len(form) >= SHORTEST}
