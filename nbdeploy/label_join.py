"""Labels by keys of the user's own, joined on what the log holds of the inputs; and which predictions there are."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nbdeploy import prediction_log
from nbdeploy.errors import InputError, did_you_mean
from nbdeploy.home import home
from nbdeploy.label_log import Given, column_of, plain_values
from nbdeploy.log_tables import holds_json, json_values
from nbdeploy.signature import Column, Signature

if TYPE_CHECKING:
    from nbdeploy.prediction_log import Rows

Values = np.ndarray[Any, Any]
_Same = Callable[[Any], Any]  # what a value is among those of a column, None where it is none of them


def by_keys(
    name: str,
    frame: pd.DataFrame,
    on: Sequence[str],
    label: str,
    signatures: Sequence[Signature] = (),
    *,
    since: Any = None,
    until: Any = None,
) -> Given:
    """The labels of all predictions whose inputs have a row's keys.

    Keys are compared as the log's column is: ``5`` and ``5.0`` are one whole number, ``2026-07-14`` is that day's
    midnight whether text, date or moment; a moment without a zone is UTC. A missing key matches nothing. Of several rows
    with the same keys the last counts. Only these columns of the log are read, a piece at a time.

    Parameters
    ----------
    on : sequence of str
        Columns of `frame`, and inputs of the deployment.
    label : str
        The column of labels.
    signatures : sequence of Signature
        Of the saved versions: which inputs there are, and which can be joined.
    since, until : see `nbdeploy.prediction_log.moment`
        Among which predictions.

    Raises
    ------
    InputError
        `on` names what the frame or the log does not have.
    """
    on = list(dict.fromkeys(on))
    _must_be_there(name, frame, on, signatures)
    values = column_of(frame, label)
    kept = values.notna().to_numpy()
    told, keys = plain_values(values[kept]), [column_of(frame, key)[kept] for key in on]
    matchers: dict[tuple[Any, ...], _Matcher] = {}
    used = np.zeros(len(told), dtype=bool)
    found: dict[str, Any] = {}
    for rows in prediction_log.scan(name, columns=on, own=("prediction_id",), since=since, until=until):
        columns = [rows.header.column(key) for key in on]
        if not {*on} <= {*rows.table.column_names} or any(column is not None and column.hashed for column in columns):
            continue  # a version with other inputs
        kinds = tuple(_kind(column) for column in columns)
        if kinds not in matchers:
            matchers[kinds] = _Matcher(keys, [_same(*kind) for kind in kinds])
        places = matchers[kinds].places(rows, on)
        hits = np.flatnonzero(places >= 0)
        ids = rows.table.column(rows.own["prediction_id"]).take(hits).to_pylist()
        found.update(zip(ids, [told[place] for place in places[hits]], strict=True))
        used[places[hits]] = True
    if not matchers:
        distinct = len(pd.concat(keys, axis=1).drop_duplicates())
        return Given({}, len(told) - distinct, distinct, len(kept) - len(told))
    distinct = next(iter(matchers.values())).distinct
    unknown = distinct - min(distinct, int(used.sum()))
    return Given(found, len(told) - distinct, unknown, len(kept) - len(told))


def known(name: str, ids: Collection[str]) -> set[str]:
    """Which of these prediction ids the log has. It reads no other column, and no further than it has to."""
    wanted, found = set(ids), set[str]()
    if wanted:
        for rows in prediction_log.scan(name, columns=(), own=("prediction_id",)):
            found |= wanted.intersection(rows.table.column(rows.own["prediction_id"]).to_pylist())
            if len(found) == len(wanted):
                break
    return found


def owner(ids: Collection[str], other_than: str) -> str:
    """The deployment whose log has all of these predictions; '' where none has."""
    folder = home() / "predictions"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name != other_than and path.is_dir() and len(known(path.name, ids)) == len(ids):
            return path.name
    return ""


def _must_be_there(name: str, frame: pd.DataFrame, on: Sequence[str], signatures: Sequence[Signature]) -> None:
    if not on:
        msg = f"labels for {name} are to be joined on nothing"
        raise InputError(msg, hint="Name the inputs that tell the predictions apart: on=['flight', 'day'].")
    for key in on:
        if key not in frame.columns:
            msg = f"the frame of labels has no column {key!r:.80} to join on"
            raise InputError(msg, hint=did_you_mean(key, map(str, frame.columns)))
        columns = [column for each in signatures for column in each.columns if column.name == key]
        if signatures and not columns:
            msg = f"{name} has no input {key!r:.80} to join labels on"
            names = [column.name for column in signatures[0].columns if not column.private]
            raise InputError(msg, hint=did_you_mean(key, names))
        if columns and all(column.private for column in columns):
            held = "only hashes of" if columns[0].hashed else "none of"
            msg = f"the input {key!r:.80} of {name} is private: its log holds {held} its values to join labels on"
            raise InputError(msg, hint="Join on other inputs, or label by prediction_id.")
        if columns and all(column.shape for column in columns):
            msg = f"the input {key!r:.80} of {name} holds arrays, and labels cannot be joined on them"
            raise InputError(msg, hint="Join on other inputs, or label by prediction_id.")


class _Matcher:
    """Rows of a frame by their keys, as columns of these kinds have them."""

    def __init__(self, keys: Sequence[pd.Series], sames: Sequence[_Same]) -> None:
        self._sames = sames
        self._lookups: list[dict[Any, int]] = []  # by column: the values that occur, with their codes
        self._steps: list[Values] = []  # by further column: the pairs of codes that occur, sorted
        rows = len(keys[0])
        codes: Values = np.zeros(rows, dtype=np.int64)
        for series, same in zip(keys, sames, strict=True):
            try:
                places, values = pd.factorize(series.astype(object))
            except TypeError as error:
                msg = f"the column {series.name!r:.80} of the frame of labels holds what is no single value"
                raise InputError(msg, hint="Join on plain values.") from error
            lookup: dict[Any, int] = {}
            found = [same(_plain(value)) for value in values]
            coded = np.array([-1 if v is None else lookup.setdefault(v, len(lookup)) for v in found] + [-1])
            self._lookups.append(lookup)
            codes = self._step(codes, coded[places], learn=True)
        # Of several rows with the same keys the last is kept.
        self._rows = np.full(len(self._steps[-1]) if self._steps else 0, -1)
        whole = np.flatnonzero(codes >= 0)
        self._rows[codes[whole]] = whole
        self.distinct = len(self._rows) + int((codes < 0).sum())

    def _step(self, codes: Values, more: Values, *, learn: bool = False, level: int = 0) -> Values:
        """One code for each pair of codes that occurs in the frame; -1 for any other."""
        size = len(self._lookups[-1] if learn else self._lookups[level]) or 1
        pairs = np.where((codes < 0) | (more < 0), -1, codes * size + more)
        if learn:
            self._steps.append(np.unique(pairs[pairs >= 0]))
        known = self._steps[-1] if learn else self._steps[level]
        if not len(known):
            return np.full(len(pairs), -1)
        places = np.minimum(np.searchsorted(known, pairs), len(known) - 1)
        return np.where(known[places] == pairs, places, -1)

    def places(self, rows: Rows, on: Sequence[str]) -> Values:
        """Which row of the frame has the keys of each of these predictions; -1 for none."""
        codes: Values = np.zeros(rows.table.num_rows, dtype=np.int64)
        for level, (key, same) in enumerate(zip(on, self._sames, strict=True)):
            places, values = _distinct(rows, key)
            lookup = self._lookups[level]
            coded = np.array([lookup.get(same(value), -1) for value in values] + [-1], dtype=np.int64)
            codes = self._step(codes, coded[places], level=level)
        return np.where(codes >= 0, self._rows[codes], -1) if len(self._rows) else np.full(len(codes), -1)


def _distinct(rows: Rows, key: str) -> tuple[Values, list[Any]]:
    """The distinct values of a column of the log, and which of them each row has; -1 for a missing one."""
    field, column = rows.table.field(key), rows.table.column(key)
    if holds_json(field):
        values = json_values(field, column)
        held: dict[Any, int] = {}
        places = [-1 if _is_nested(value) else held.setdefault((type(value), value), len(held)) for value in values]
        return np.array(places, dtype=np.int64), [value for _, value in held]
    array = column.combine_chunks()
    encoded = array.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _is_nested(value: Any) -> bool:
    return value is None or isinstance(value, (list, dict))


# -- what values are the same -------------------------------------------------------------------------------


def _kind(column: Column | None) -> tuple[str, str]:
    """What the values of a column are compared as, and the type that they have."""
    if column is None:
        return "string", ""
    if column.kind != "category":
        return column.kind, column.dtype
    kind = np.dtype(column.category_dtype).kind if column.category_dtype in _PLAIN else "O"
    return {"i": "int", "u": "int", "f": "float", "b": "bool"}.get(kind, "string"), column.category_dtype


_PLAIN = frozenset(
    {"bool", "float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}
)


def _same(kind: str, dtype: str) -> _Same:
    if kind == "float":
        return partial(_real, small=np.float32 if dtype.lower().startswith(("float32", "float16", "float[")) else None)
    found: Mapping[str, _Same] = {"int": _whole, "bool": _flag, "datetime": _instant, "date": _day}
    return found.get(kind, _text)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) and not isinstance(value, np.datetime64) else value


def _whole(value: Any) -> int | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        value = value.strip()
        with suppress(ValueError):
            return int(value)
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _real(value: Any, small: Any) -> float | None:
    number = _number(value)
    if number is None or small is None:
        return number
    with np.errstate(over="ignore"):
        return float(small(number))


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else None


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, (np.datetime64, dt.date)):
        moment = _timestamp(value)
        if moment is None:
            return None
        return str(moment.date() if moment == moment.normalize() else moment.isoformat())
    return None if value is None or value is pd.NA else str(value)


def _instant(value: Any) -> int | None:
    moment = _timestamp(value)
    if moment is None:
        return None
    utc = moment.tz_convert("UTC") if moment.tzinfo is not None else moment
    with suppress(ValueError, OverflowError):  # beyond what nanoseconds can tell
        return int(utc.as_unit("ns").value)
    return None


def _day(value: Any) -> dt.date | None:
    moment = _timestamp(value)
    return moment.date() if moment is not None and moment == moment.normalize() else None


def _timestamp(value: Any) -> pd.Timestamp | None:
    # Of texts only ISO 8601: 07/08 is July to some and August to others.
    if isinstance(value, str):
        if not re.match(r"\s*\d{4}-\d\d-\d\d", value):
            return None
    elif not isinstance(value, (dt.date, np.datetime64)):
        return None
    try:
        found = pd.Timestamp(value)
    except (ValueError, OverflowError):
        return None
    return None if found is pd.NaT else found
