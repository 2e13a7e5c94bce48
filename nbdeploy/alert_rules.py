"""The rules of alerts: one line of text each, in a small grammar that lark parses.

    error_rate > 2% over 30m for 2 windows

docs/alerts.md has the grammar as it stands here, and what each measure means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from nbdeploy.answer_metrics import METRICS
from nbdeploy.errors import AlertError, RuleError, did_you_mean
from nbdeploy.worker_numbers import SECONDS

if TYPE_CHECKING:
    from lark import Lark, Token
    from lark.exceptions import UnexpectedInput

GRAMMAR = r"""
rule: condition part*
condition: MEASURE column? (COMPARISON NUMBER UNIT?)?
column: "(" STRING ")"
?part: version | window | times
version: "of" VERSION
window: "over" DURATION
times: "for" COUNT WINDOWS

MEASURE: /[A-Za-z_][A-Za-z0-9_.]*/
COMPARISON: ">=" | "<=" | ">" | "<"
NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?/
UNIT: /%|(ms|s)\b/
STRING: /"([^"\\]|\\(.|\n))*"|'([^'\\]|\\(.|\n))*'/
VERSION: /v[1-9][0-9]*\b/
DURATION: /[0-9]+(\.[0-9]+)?[smhdw]\b/
COUNT: /[0-9]+/
WINDOWS: /windows?\b/
%ignore /[ \t]+/
"""

MAX_TEXT = 500  # characters of a rule
MAX_WINDOWS = 100
WINDOW = 3600.0  # seconds, where a rule says none
SHORTEST, LONGEST = 60.0, 366 * 86_400.0  # seconds of a window: the numbers are kept by the minute
ENOUGH = {"p50": 10, "p99": 100}  # requests: of fewer, a quantile is nobody

_SIZES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ASKED = {
    "MEASURE": "a measure, error_rate say", "LPAR": "a column in brackets", "COMPARISON": "one of > >= < <=",
    "NUMBER": "a number", "UNIT": "a unit: % or ms", "STRING": "a column's name in quotes", "RPAR": "a closing bracket",
    "VERSION": "a version, v2 say", "DURATION": "a duration, 30m or 7d say", "COUNT": "a whole number",
    "WINDOWS": "the word windows", "OF": "of v2", "OVER": "over 1h", "FOR": "for 2 windows", "$END": "its end",
}  # fmt: skip
_MUST = frozenset({"MEASURE", "COMPARISON", "NUMBER", "STRING", "VERSION", "DURATION", "COUNT", "WINDOWS", "RPAR"})


@dataclass(frozen=True)
class Measure:
    """What a rule can be about.

    Attributes
    ----------
    kind : str
        ``"share"`` (0 to 1, also as percent), ``"ms"``, ``"count"``, ``"score"`` or ``"verdict"`` (compared with nothing).
    timed : bool
        Whether it is of a window; else it is of this moment.
    counted : bool
        Whether the service counts it; else it is read from the log.
    """

    name: str
    words: str
    kind: str
    timed: bool = True
    counted: bool = False


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("drift", "drift", "verdict"),
        Measure("drift.share", "share of the columns that drift", "share"),
        Measure("error_rate", "share of the requests with a status of 500 or more", "share", counted=True),
        Measure("refused_rate", "share of the requests with a status of 400 to 499", "share", counted=True),
        Measure("p50", "time in which half of the requests are answered", "ms", counted=True),
        Measure("p99", "time in which all but a hundredth of the requests are answered", "ms", counted=True),
        Measure("requests", "requests for predictions", "count", counted=True),
        Measure("quality", "the usual metric of the labelled predictions", "score"),
        *(
            Measure(f"quality.{name}", f"{metric.words} of the labelled predictions", "share" if metric.points else "score")
            for name, metric in METRICS.items()
        ),
        Measure("log.dropped", "rows that the log lost", "count", counted=True),
        Measure("log.unreadable", "damaged lines of the log", "count", timed=False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One rule, as `parse` understood it.

    Attributes
    ----------
    measure : str
        One of `MEASURES`.
    comparison : str
        ``>``, ``>=``, ``<``, ``<=``, or '' for a verdict of drift.
    limit : float
        A share from 0 to 1, milliseconds, or a plain number, by the measure.
    column : str or None
        Whose drift it is about.
    version : str
        ``"v2"``; '' for the live one, or in what the service counts for all together.
    window : float
        Seconds.
    windows : int
        How many of them, one after the other, have to break the limit.
    """

    measure: str
    comparison: str = ""
    limit: float = math.nan
    column: str | None = None
    version: str = ""
    window: float = WINDOW
    windows: int = 1

    @property
    def about(self) -> Measure:
        return MEASURES[self.measure]

    @property
    def metric(self) -> str | None:
        """The metric of `quality`, or None for the model's usual one."""
        return self.measure.partition(".")[2] or None

    @property
    def text(self) -> str:
        """The rule in the one way in which it is kept: `parse` makes the same of it."""
        column = "" if self.column is None else f"({_quoted(self.column)})"
        parts = [f"{self.measure}{column}"]
        if self.comparison:
            parts.append(f"{self.comparison} {self.told(self.limit)}")
        parts += [f"of {self.version}"] if self.version else []
        parts += [f"over {duration(self.window)}"] if self.about.timed else []
        parts += [f"for {self.windows} windows"] if self.windows > 1 else []
        return " ".join(parts)

    def breaks(self, value: float | bool) -> bool:
        """Whether a measured value is what the rule warns of."""
        if not self.comparison:
            return bool(value)
        return {
            ">": value > self.limit, ">=": value >= self.limit, "<": value < self.limit, "<=": value <= self.limit,
        }[self.comparison]  # fmt: skip

    def told(self, value: float | bool) -> str:
        """A value of its measure, with its unit."""
        if not self.comparison:
            return "drift" if value else "no drift"
        kind = self.about.kind
        if kind == "share":
            return f"{plain(round(value * 100, 10))}%"
        return f"{plain(value)}{' ms' if kind == 'ms' else ''}"


def parse(text: Any) -> Rule:
    """Read a rule.

    Raises
    ------
    RuleError
        It is none: it says what is wrong, and at which spot.
    """
    if not isinstance(text, str):
        msg = f"a rule is text, not a {type(text).__name__}"
        raise AlertError(msg, "For example 'error_rate > 2%'.")
    text = text.strip()
    if len(text) > MAX_TEXT or not _encodable(text):
        why = f"is {len(text):,} characters long" if len(text) > MAX_TEXT else "holds half a character"
        msg = f"the rule {text[:40].encode(errors='replace').decode()!r}… {why}"
        raise AlertError(msg, f"It has at most {MAX_TEXT}, all whole.")
    lark = _lark()
    from lark.exceptions import UnexpectedInput

    try:
        tree = lark.parse(text)
    except UnexpectedInput as error:
        raise _unexpected(text, error) from None
    return _Reader(text).rule(tree)


def duration(seconds: float) -> str:
    """``1h``, ``90m``, ``7d``: in the largest unit, but weeks, that gives a whole number."""
    return next(f"{seconds / _SIZES[unit]:.0f}{unit}" for unit in "dhms" if seconds % _SIZES[unit] == 0)


def plain(value: float) -> str:
    """A number as it is typed: 2, 0.5, 1e+20."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(float(value))


# -- helpers ------------------------------------------------------------------------------------------------


class _Reader:
    """What the words of a rule mean; whatever means nothing is shown where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text

    def rule(self, tree: Any) -> Rule:
        condition, *parts = tree.children
        told: dict[str, Any] = self._condition(condition.children)
        measure, first = MEASURES[told["measure"]], condition.children[0]
        for part in parts:
            token = part.children[0]
            if str(part.data) in told:
                self._fail(token, f"it says twice {_SAYS[part.data]}", "Say it once.")
            if not measure.timed:
                self._fail(token, f"{measure.name} is of this moment, for the whole deployment", f"Write {first} > 0.")
            told[str(part.data)] = getattr(self, f"_{part.data}")(token)
        names = {"times": "windows"}
        return Rule(**{names.get(key, key): value for key, value in told.items()})

    def _condition(self, children: list[Any]) -> dict[str, Any]:
        named, *rest = children
        column = None
        if rest and getattr(rest[0], "data", "") == "column":
            (quoted,) = rest.pop(0).children
            column = re.sub(r"\\(.|\n)", r"\1", quoted[1:-1])
            if str(named) != "drift":
                self._fail(named, f"{named} is not of a column", 'Only drift is: drift("carrier").')
        name = str(named)
        if name not in MEASURES:
            self._fail(named, f"{name!r} is no measure", did_you_mean(name, MEASURES))
        if not rest:
            if name != "drift":
                self._fail(
                    named,
                    f"{name} is compared with nothing",
                    f"For example {_EXAMPLES.get(name, f'{name} > 0.1')}.",
                    after=True,
                )
            return {"measure": name, "column": column}
        if name == "drift" and column is None:
            self._fail(
                named,
                "'drift' is a verdict, not a number",
                'Write drift alone, drift.share > 0.3, or drift("carrier") > 0.1.',
            )
        comparison, number, *unit = rest
        limit = self._limit(MEASURES[name], number, unit[0] if unit else None)
        return {"measure": name, "column": column, "comparison": str(comparison), "limit": limit}

    def _limit(self, measure: Measure, number: Token, unit: Token | None) -> float:
        limit = float(number)
        if not math.isfinite(limit):
            self._fail(number, f"{str(number)!r:.40} is beyond any number", "Write a smaller one.")
        fits = {"share": ("", "%"), "ms": ("", "ms", "s"), "score": ("", "%") if measure.name == "quality" else ("",)}
        if unit is not None and str(unit) not in fits.get(measure.kind, ("",)):
            self._fail(unit, f"{measure.name} is not measured in {unit}", "Leave the unit out.")
        limit = {"%": limit / 100, "s": limit * 1000}.get(str(unit), limit)
        if measure.kind == "share" and not 0 <= limit <= 1:
            self._fail(number, f"{measure.name} is a share, from 0 to 1", "Two percent is 0.02, or 2%.")
        if measure.kind in ("ms", "count") and limit < 0:
            self._fail(number, f"{measure.name} is never below 0", "Write a number from 0 on.")
        if measure.kind == "ms" and limit >= SECONDS[-1] * 1000:
            self._fail(number, "no time so long is told apart", f"Write less than {SECONDS[-1]:g}s.")
        return round(limit, 12) if measure.kind == "share" else limit

    def _version(self, token: Token) -> str:
        return str(token)

    def _window(self, token: Token) -> float:
        seconds = round(float(token[:-1]) * _SIZES[token[-1]]) if len(token) < 20 else math.inf
        if not SHORTEST <= seconds <= LONGEST:
            self._fail(token, "a window is from 1m to 366d long", "The numbers are kept by the minute.")
        return seconds

    def _times(self, token: Token) -> int:
        if len(token) > 9 or not 1 <= int(token) <= MAX_WINDOWS:
            self._fail(token, f"a rule looks at 1 to {MAX_WINDOWS} windows", "Take longer ones: over 1d.")
        return int(token)

    def _fail(self, token: Token, message: str, hint: str, *, after: bool = False) -> NoReturn:
        start, end = token.start_pos or 0, token.end_pos or 0
        raise RuleError(message, self._text, end if after else start, 1 if after else end - start, hint)


_SAYS = {"version": "of which version", "window": "how long a window is", "times": "how many windows"}
_EXAMPLES = {
    "error_rate": "error_rate > 2%", "refused_rate": "refused_rate > 10%", "p50": "p50 > 50 ms", "p99": "p99 > 200 ms",
    "requests": "requests < 1 over 1h", "drift.share": "drift.share > 0.3", "quality": "quality < 0.9 over 7d",
    "log.dropped": "log.dropped > 0", "log.unreadable": "log.unreadable > 0",
}  # fmt: skip


@lru_cache(maxsize=1)
def _lark() -> Lark:
    try:
        from lark import Lark
    except ImportError as error:
        msg = "rules are parsed by lark, which is not installed"
        raise AlertError(msg, "pip install 'nbdeploy[lab]'.") from error
    return Lark(GRAMMAR, start="rule", parser="lalr", maybe_placeholders=False)


def _unexpected(text: str, error: UnexpectedInput) -> RuleError:
    token = getattr(error, "token", None)
    asked = set(
        getattr(error, "allowed", None) or getattr(error, "accepts", None) or getattr(error, "expected", None) or ()
    )
    at, length = len(text.rstrip()), 1
    if token is not None and token.type != "$END":
        at, length = token.start_pos or 0, len(token)
    elif token is None:
        position: Any = error.pos_in_stream
        at = min(position, at)
    if word := re.match(r"[A-Za-z0-9_.]+", text[at:]):
        length = max(length, word.end())
    if not text:
        return RuleError("a rule that says nothing", text, 0, 1, "For example 'error_rate > 2%'.")
    found = text[at : at + length]
    message = f"{found!r:.60} is not expected here" if found.strip() else "the rule ends too early"
    must = asked & _MUST
    hint = _either([_ASKED[name] for name in _ASKED if name in (must or asked)])
    return RuleError(message, text, at, length, f"Expected: {hint}." if hint else "")


def _either(told: Iterable[str]) -> str:
    *others, last = [*told] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(column: str) -> str:
    escaped = column.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
