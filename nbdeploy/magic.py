"""``%deploy VERB`` in a notebook: arguments that name models and frames are its variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class, needs_local_scope, no_var_expand
from IPython.utils.process import arg_split

from nbdeploy import notebook_source, verbs
from nbdeploy.errors import NotFound, did_you_mean
from nbdeploy.verbs import Argument, Kind, Verb

PROG = "%deploy"
MATCHER = "nbdeploy.deploy"
PANEL_VERBS = ("deploy", "serve")  # what they start, the panel shows


@magics_class
class DeployMagics(Magics):
    """Holds the ``%deploy`` magic."""

    @needs_local_scope
    @no_var_expand  # braces and dollars stay as typed; variables are looked up by name
    @line_magic
    def deploy(self, line: str, local_ns: dict[str, Any] | None = None) -> Any:
        scope = {**self.shell.user_ns, **(local_ns or {})}
        try:
            words = arg_split(line, posix=True)
        except ValueError as error:
            msg = f"{PROG}: {error} in: {verbs.without_addresses(line)}"
            raise UsageError(msg) from None
        if words and words[0] not in verbs.VERBS and words[0] in scope:
            words = ["deploy", *words]
        try:
            verb, values = verbs.parse(words, PROG, [name for name, _ in _named(Kind.MODEL, scope)])
        except verbs.HelpAsked as asked:
            print(asked)
            return None
        except verbs.UsageProblem as problem:
            # Exactly UsageError: IPython shows that one in a line, and no subclass of it.
            raise UsageError(str(problem)) from None
        result = verb(verbs.resolve(verb, values, lambda kind, text: _variable(kind, text, scope)))
        if said := verbs.note(verb, result):
            print(said)
        return self._show(verb, result)

    def _show(self, verb: Verb, result: Any) -> Any:
        if verb.name in PANEL_VERBS and hasattr(self.shell, "kernel"):
            from IPython.display import display

            import nbdeploy
            from nbdeploy import drift_warming

            display(nbdeploy.panel(result.name))
            drift_warming.in_background()
            return None
        if verb.name == "logs":
            print(result)
            return None
        return result


DeployMagics.deploy.__doc__ = verbs.overview(PROG)


def load(shell: Any) -> None:
    """Register the magic and its completion; twice is as good as once."""
    unload_completion(shell)
    shell.register_magics(DeployMagics)
    notebook_source.watch_cells(shell)
    shell.Completer.custom_matchers.append(_matcher(shell))


def unload(shell: Any) -> None:
    """Take the magic and its completion away."""
    unload_completion(shell)
    shell.magics_manager.magics["line"].pop("deploy", None)


def unload_completion(shell: Any) -> None:
    """Take the completion away."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != MATCHER]


def completions(text: str, scope: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """What may stand at the end of ``%deploy …``: the fragment typed so far, and (text, type) candidates."""
    words = arg_split(text, posix=False, strict=False)
    fragment = "" if not words or text[-1:].isspace() else words[-1]
    before = words if fragment == "" else words[:-1]
    if not before:
        found = [(name, "verb") for name in verbs.VERBS] + list(_named(Kind.MODEL, scope))
    else:
        verb = verbs.VERBS.get(before[0])
        if verb is None and before[0] in scope:
            verb, before = verbs.VERBS["deploy"], ["deploy", *before]
        found = list(_candidates(verb, before[1:], scope)) if verb else []
    return fragment, [(text, kind) for text, kind in found if text.startswith(fragment)]


def _candidates(verb: Verb, before: list[str], scope: dict[str, Any]) -> Iterator[tuple[str, str]]:
    options = {flag: a for a in verb.arguments if not a.positional for flag in (a.flag, a.short) if flag}
    expected = _expected(verb, options, before)
    if expected is not None:
        yield from _named(expected.names or expected.kind, scope, before)
    if expected is None or expected.positional:
        yield from ((flag, "option") for flag in [*options, "--help"] if flag.startswith("--"))


def _expected(verb: Verb, options: dict[str, Argument], before: list[str]) -> Argument | None:
    """The argument that the next word would be."""
    filled, waiting = 0, None
    for word in before:
        if waiting is not None:
            waiting = None
        elif word in options:
            waiting = options[word] if options[word].kind not in (Kind.FLAG, Kind.OFF) else None
        else:
            filled += 1
    positionals = [argument for argument in verb.arguments if argument.positional]
    if waiting is None and filled >= len(positionals) and positionals and positionals[-1].kind is Kind.SHARES:
        return positionals[-1]  # which may be given any number of times
    return waiting or (positionals[filled] if filled < len(positionals) else None)


def _named(kind: Kind, scope: dict[str, Any], before: list[str] | None = None) -> Iterator[tuple[str, str]]:
    if kind is Kind.DEPLOYMENT:
        from nbdeploy import model_store

        yield from ((name, "deployment") for name in model_store.names())
    elif kind is Kind.VERSION and before:
        from nbdeploy import model_store

        yield from ((v.version, "version") for v in model_store.versions(before[0]))
    elif kind is Kind.SHARES and before:
        from nbdeploy import model_store

        given = {word.partition("=")[0] for word in before}
        saved = (v.version for v in reversed(model_store.versions(before[0])))
        yield from ((f"{version}=", "version") for version in saved if version not in given)
    elif kind in (Kind.MODEL, Kind.FRAME, Kind.LABELS):
        yield from ((name, "variable") for name, value in list(scope.items()) if _fits(kind, name, value))


def _fits(kind: Kind, name: str, value: Any) -> bool:
    if name.startswith("_") or isinstance(value, type):
        return False
    if kind is Kind.MODEL:
        with suppress(Exception):  # anybody's property
            return callable(getattr(value, "predict", None))
        return False
    frames = ("DataFrame", "ndarray", "Table", "csr_matrix", "csr_array")
    wanted = {Kind.FRAME: frames, Kind.LABELS: ("Series", "ndarray", "DataFrame")}[kind]
    return type(value).__name__ in wanted


def _variable(kind: Kind, text: str, scope: dict[str, Any]) -> Any:
    if text in scope:
        return scope[text]
    if kind is Kind.MODEL and (":/" in text or Path(text).exists()):
        return text  # of a stored model
    similar = [name for name, value in scope.items() if _fits(kind, name, value)]
    msg = f"this notebook has no variable {text!r}"
    raise NotFound(msg, did_you_mean(text, similar) or "Run the cell that makes it first.")


def _matcher(shell: Any) -> Any:
    @context_matcher(identifier=MATCHER, priority=100)
    def match(context: CompletionContext) -> dict[str, Any]:
        typed = re.match(r"\s*%deploy(\s.*)$", context.text_until_cursor.rpartition("\n")[2])
        if typed is None:
            return {"completions": [], "suppress": False}
        try:
            fragment, found = completions(typed[1], shell.user_ns)
        except Exception:  # noqa: BLE001
            return {"completions": [], "suppress": False}
        shown = [SimpleCompletion(text=text, type=kind) for text, kind in found]
        # Others are silenced only when there is an answer: file names stay available otherwise.
        return {"completions": shown, "suppress": bool(shown), "matched_fragment": fragment, "ordered": True}

    return match
