"""What passes between HTTP and the model: one request, one reply, and in between the same question and answer for all.

A protocol is a small translation: it makes a `Question` of an `Asked`, and a `Reply` of the `Answer`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from nbdeploy import answers

if TYPE_CHECKING:
    import pandas as pd

    from nbdeploy.answers import Output, Predicted, Probabilities
    from nbdeploy.signature import Signature

JSON = "application/json"


@dataclass(frozen=True)
class Asked:
    """One HTTP request whose body has been read.

    Attributes
    ----------
    path : str
        As the route table has it, without the place where the application is mounted.
    query, headers : mapping
        Lower-case header names. Of what came twice, the first.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def media(self) -> str:
        """The media type of the body, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Reply:
    """What is sent back."""

    body: bytes
    media: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """What is asked is not answered, and why: the status of the reply and its one line.

    Attributes
    ----------
    reason : str
        One word for the metrics: ``media``, ``size``, ``signature`` ….
    """

    def __init__(
        self,
        status: int,
        error: str,
        problems: Sequence[dict[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.problems = status, error, list(problems)
        self.headers = dict(headers or {})
        self.reason = reason or _REASONS.get(status, "other")


_REASONS = {
    400: "unreadable", 401: "token", 403: "origin", 404: "route", 405: "method", 408: "slow", 413: "size", 415: "media",
    421: "host", 422: "signature", 429: "overload", 431: "headers", 500: "model", 501: "missing", 503: "overload",
    504: "deadline",
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """Which model a protocol speaks for."""

    name: str
    version: str
    signature: Signature


@dataclass(frozen=True)
class Answer:
    """What the model said to one question: as JSON rows or as arrays, whichever it was asked for first.

    Attributes
    ----------
    request : str
        The id of the request, of which its rows' ids are made.
    values : list
        One plain JSON value per row; a list where a row has several values, an object where outputs have names.
    scores : list or None
        Per row the classes' probabilities, where they were asked for.
    version : str
        Which answered. Where rows went to several, all of them: ``v1,v2``.
    versions : tuple of str
        Then the version of each row; else empty.
    """

    request: str
    version: str
    outputs: Sequence[Output]
    classes: tuple[Any, ...] | None
    rows: int
    raw: Predicted | None = None
    raw_scores: Probabilities | None = None
    given: list[Any] | None = None
    given_scores: list[Any] | None = None
    versions: tuple[str, ...] = ()

    @cached_property
    def values(self) -> list[Any]:
        if self.given is not None:
            return self.given
        assert self.raw is not None
        return answers.rows_of(self.raw)

    @cached_property
    def scores(self) -> list[Any] | None:
        return self.given_scores if self.given is not None else answers.score_rows(self.raw_scores)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """`values` as a frame: one column per output, with the outputs' dtypes."""
        if self.raw is not None:
            return answers.frame_of(self.raw)
        return answers.from_json(self.values, self.outputs)

    @classmethod
    def merged(cls, parts: Sequence[tuple[Sequence[int], Answer]]) -> Answer:
        """The answer to one question whose rows several versions have answered.

        Parameters
        ----------
        parts : sequence of pair
            The numbers of the rows, and the answer to them.
        """
        first = parts[0][1]
        order = np.argsort(np.concatenate([np.asarray(rows) for rows, _ in parts]))
        each = [version for rows, answer in parts for version in [answer.version] * len(rows)]
        versions = tuple(each[place] for place in order)
        told = replace(
            first, rows=len(order), version=",".join(sorted(set(versions))), versions=versions,
            raw=None, raw_scores=None, given=None, given_scores=None,
        )  # fmt: skip
        if all(answer.raw is not None for _, answer in parts):
            raws, scores = [answer.raw for _, answer in parts], [answer.raw_scores for _, answer in parts]
            return replace(
                told, raw=_reordered(raws, order), raw_scores=None if scores[0] is None else _reordered(scores, order)
            )
        values = [value for _, answer in parts for value in answer.values]  # noqa: PD011  not pandas
        listed = None if first.scores is None else [score for _, answer in parts for score in answer.scores or ()]
        return replace(
            told, given=[values[place] for place in order],
            given_scores=listed and [listed[place] for place in order],
        )  # fmt: skip

    @property
    def ids(self) -> list[str]:
        """One id per row."""
        return [f"{self.request}-{row}" for row in range(self.rows)]


def new_request() -> str:
    """The id of one request: 16 hexadecimal digits."""
    try:
        return _ids.pop()
    except IndexError:
        # One system call for many: each lets another thread have Python's lock.
        digits = secrets.token_bytes(8 * 256).hex()
        _ids.extend(digits[i : i + 16] for i in range(16, len(digits), 16))
        return digits[:16]


_ids: list[str] = []
if hasattr(os, "register_at_fork"):  # or two processes would give the same ids
    os.register_at_fork(after_in_child=_ids.clear)


@dataclass(frozen=True)
class Question:
    """The checked rows of one request.

    Attributes
    ----------
    columns : dict of list, or None
        The values by column, as `Signature.check` gives them.
    frame : DataFrame, or None
        Instead of `columns`, the rows as the model takes them: where they came as tensors or as an Arrow stream.
    write : callable
        Makes the reply. It runs in the model's thread, before the answer is logged: what cannot be told is not logged.
    proba : bool
        Whether probabilities are wanted.
    purpose : str
        Why it is asked, where no user asks; see `nbdeploy.log_writer.Entry`.
    request : str
        The id of the request. It is made with the question, so that whoever answers it too gives the same one.
    part : sequence of int
        Where these are not all rows of the request: which of them they are.
    """

    columns: dict[str, list[Any]] | None
    rows: int
    write: Callable[[Answer], Reply]
    proba: bool = False
    purpose: str = ""
    frame: pd.DataFrame | None = None
    request: str = field(default_factory=new_request)
    part: Sequence[int] = ()

    def take(self, rows: Sequence[int]) -> Question:
        """The same question about some of its rows, which keep their ids."""
        frame = None if self.frame is None else self.frame.iloc[list(rows)].reset_index(drop=True)
        columns = self.columns and {name: [held[row] for row in rows] for name, held in self.columns.items()}
        return replace(self, columns=columns, frame=frame, rows=len(rows), part=tuple(rows))


@dataclass(frozen=True)
class Route:
    """One method and path of a protocol.

    Exactly one of `read` and `show` is there.

    Attributes
    ----------
    path : str
        Exact: the names of model and version are known when the routes are made.
    read : callable
        Makes the question of a body that asks for predictions. Raises `Refused`, `Unreadable` or `InputError`.
    show : callable
        The reply to a request that asks for no prediction; it may be a coroutine function.
    media : tuple of str
        Which media types the body may have; others are refused with 415. Empty: the protocol looks itself.
    refuse : callable, optional
        The body of a refusal where the protocol has a form of its own; by default `refusal_body`.
    limit : int, optional
        Bytes of the body, where fewer than usual are enough.
    threaded : bool
        `show` reads files or computes: it runs in a thread.
    open : bool
        It is answered without a token: health, for those who watch from outside.
    """

    method: str
    path: str
    read: Callable[[Asked], Question] | None = None
    show: Callable[[Asked], Reply | Awaitable[Reply]] | None = None
    media: tuple[str, ...] = (JSON,)
    refuse: Callable[[Refused], bytes] | None = None
    limit: int | None = None
    threaded: bool = False
    open: bool = False


def _reordered(raws: Sequence[Any], order: Any) -> Any:
    if isinstance(raws[0], dict):
        return {name: _reordered([raw[name] for raw in raws], order) for name in raws[0]}
    if isinstance(raws[0], list):  # of probabilities, one array per target
        return [_reordered(list(held), order) for held in zip(*raws, strict=True)]
    return np.concatenate(raws)[order]


def refusal_body(refused: Refused) -> bytes:
    """The body of every 4xx of our own routes: one line, and the problems one by one."""
    return dump({"error": refused.error, "problems": refused.problems})


def dump_exact(value: Any) -> bytes:
    """JSON of what a model answered.

    Raises
    ------
    TypeError
        JSON cannot hold it.
    """
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def dump(value: Any) -> bytes:
    """JSON. NaN in a fact becomes null; a lone surrogate from a client is replaced rather than refused."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError):
        return json.dumps(value, default=str).encode("utf-8", "replace")
