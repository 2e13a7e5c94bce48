"""What the protocols of others have in common: strict JSON, columns of their forms, and their words for in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from nbdeploy.answers import PREDICTION, STRING
from nbdeploy.exchange import Answer, Asked, Question, Refused, Reply
from nbdeploy.request_body import MAX_ROWS, read_json
from nbdeploy.signature import MAX_PROBLEMS, UNNAMED, Column, Signature, problem, refusal, shown
from nbdeploy.signature_tensors import cell_problems
from nbdeploy.signature_values import kind_of, short, value_problems

PROBABILITIES = "probabilities"
PURPOSE_HEADER, GATE = "x-nbdeploy-purpose", "gate"
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
REQUEST_HEADER, VERSION_HEADER = "X-NBDeploy-Request", "X-NBDeploy-Version"


# -- bodies -------------------------------------------------------------------------------------------------


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that is a body.

    Raises
    ------
    Unreadable
        It is not JSON, or nested too deeply.
    Refused
        It is no object.
    InputError
        An object in it has a key twice.
    """
    value = read_json(body)
    if not isinstance(value, dict):
        reject("a JSON object", kind_of(value))
    return value


def only_keys(value: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse an object with a key that is not one of `known`."""
    if unknown := sorted(map(str, value.keys() - set(known))):
        words = ", ".join(map(repr, known))
        reject(f"no other keys than {words}", f"the key {short(unknown[0])!r}")


def reject(expected: str, got: str, hint: str = "", column: str | None = None) -> NoReturn:
    """Refuse with 400 what is not in a protocol's form, whatever the model."""
    raise Refused(400, f"expected {expected}, got {got}", [problem(None, column, expected, got, hint)])


# -- questions and replies ----------------------------------------------------------------------------------


def ask(
    asked: Asked, columns: dict[str, list[Any]], write: Callable[[Answer], Reply], *, proba: bool = False
) -> Question:
    """The question of checked columns."""
    rows = len(next(iter(columns.values())))
    return Question(columns, rows, write, proba=proba, purpose=purpose_of(asked))


def purpose_of(asked: Asked) -> str:
    """Why a client asks, as the log has it: for a gate or, whatever else it says, as a user."""
    return GATE if asked.headers.get(PURPOSE_HEADER, "") == GATE else ""


def wants_proba(asked: Asked, signature: Signature, told: Any = None) -> bool:
    """Whether probabilities are asked for: by `told`, the protocol's own parameter, or by ``?proba=true``.

    Raises
    ------
    InputError
        `told` is no boolean, or the model has no probabilities.
    """
    word = asked.query.get("proba", "false").lower()
    wanted = _TRUTH.get(word, word) if told is None else told
    if not isinstance(wanted, bool):
        raise refusal([problem(None, None, "proba as true or false", shown(wanted))])
    if wanted and signature.classes is None:
        raise refusal([problem(None, None, "no 'proba': this model has no probabilities", "proba=true")])
    return wanted


def naming(answer: Answer) -> dict[str, str]:
    """Headers that say which version answered, and what the ids of its rows begin with."""
    return {REQUEST_HEADER: answer.request, VERSION_HEADER: answer.version}


def told_by(answer: Answer) -> dict[str, Any]:
    """An answer as our own routes and BentoML's client have it."""
    told = {"predictions": answer.values, "prediction_ids": answer.ids, "version": answer.version}  # noqa: PD011
    if answer.versions:
        told["versions"] = answer.versions
    if answer.scores is not None:
        told |= {"probabilities": answer.scores, "classes": list(answer.classes or ())}
    return told


def rows_of(answer: Answer) -> list[Any]:
    """One JSON value per row; an object where outputs have names or probabilities were asked for."""
    rows = answer.values  # noqa: PD011  not pandas
    if answer.scores is None:
        return rows
    names = [output.name for output in answer.outputs]
    key = _free(PROBABILITIES, names)
    named = rows if any(names) else [{PREDICTION: value} for value in rows]
    return [{**row, key: scores} for row, scores in zip(named, answer.scores, strict=True)]


def version_number(version: str) -> str:
    """The version as those have it who count: ``1`` for ``v1``."""
    numbers = [each.removeprefix("v") for each in version.split(",")]  # of rows that several versions answered
    return ",".join(numbers) if all(number.isdecimal() for number in numbers) else version


# -- columns ------------------------------------------------------------------------------------------------


def check_columns(signature: Signature, lists: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values by column, all of which may stand there.

    Raises
    ------
    InputError
        With one problem per fault, at most 100.
    """
    if problems := signature.name_problems(list(lists)):
        raise refusal(problems)
    columns = signature.columns
    odd = (c for c in columns if not isinstance(lists[c.name], list) or not lists[c.name])
    problems = [problem(None, c.name, "a list with one value per row", _told(c, lists[c.name])) for c in odd]
    if problems:
        raise refusal(problems[:MAX_PROBLEMS])
    rows = len(lists[columns[0].name])
    refuse_many(rows)
    uneven = (c for c in columns if len(lists[c.name]) != rows)
    problems = [problem(None, c.name, f"{rows} values, as in {columns[0].name!r}", f"{len(lists[c.name])} values")
                for c in islice(uneven, MAX_PROBLEMS)]  # fmt: skip
    if problems:
        raise refusal(problems)
    for column in columns:
        problems += problems_of(column, lists[column.name], MAX_PROBLEMS - len(problems))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise refusal(problems)
    return {column.name: lists[column.name] for column in columns}


def refuse_many(rows: int) -> None:
    """Refuse more rows than one request may have."""
    if rows > MAX_ROWS:
        hint = "Send them in several requests."
        raise refusal([problem(None, None, f"at most {MAX_ROWS:,} rows", f"{rows:,} rows", hint)])


def problems_of(column: Column, values: Sequence[Any], limit: int = MAX_PROBLEMS) -> list[dict[str, Any]]:
    """What in `values`, which came as JSON, may not stand in `column`: the first `limit` problems."""
    return (cell_problems if column.shape else value_problems)(column, values, limit)


def check_table(signature: Signature, names: Any, rows: Any) -> dict[str, list[Any]]:
    """`check_columns` of a list of rows and the names of their values.

    Rows of a model whose columns nobody named need none: None, or 0, 1, 2 ….
    """
    known = signature.names
    if signature.container in UNNAMED and (names is None or names == list(range(len(known)))):
        names = known
    # pandas has integers for labels.
    if not isinstance(names, list) or not all(isinstance(n, str) or type(n) is int for n in names):
        raise refusal([problem(None, None, "'columns' as a list of names", kind_of(names))])
    names = list(map(_text, names))
    if not isinstance(rows, list) or not rows:
        raise refusal([problem(None, None, "'data' as a list of at least one row", kind_of(rows))])
    problems = signature.name_problems(names)
    for row, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != len(names):
            got = f"{len(values)} values" if isinstance(values, list) else kind_of(values)
            problems.append(problem(row, None, f"a list of {len(names)} values", got))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise refusal(problems[:MAX_PROBLEMS])
    return check_columns(signature, dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def check_rows(signature: Signature, rows: Any) -> dict[str, list[Any]]:
    """The values by column of a list of records, or of bare values where the model has one column or unnamed ones."""
    if not isinstance(rows, list):
        # Without the value, which may be of a private column.
        raise refusal([problem(None, None, "a list of rows", kind_of(rows))])
    refuse_many(len(rows))
    bare = len(signature.columns) == 1 and signature.container not in UNNAMED
    if bare and rows and not isinstance(rows[0], dict):
        return check_columns(signature, {signature.columns[0].name: rows})
    return signature.check(rows)


def check_tensors(signature: Signature, value: Any) -> dict[str, list[Any]]:
    """The values by column of an object with a list per column, of a single record, or of a list of rows."""
    if not isinstance(value, dict):
        return check_rows(signature, value)
    scalars = not any(column.shape for column in signature.columns)
    if value and scalars and not any(isinstance(part, (list, dict)) for part in value.values()):
        return signature.check([value])
    return check_columns(signature, value)


# -- what goes in and comes out, as tensors -----------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One tensor of a model, without its first axis, the rows.

    Attributes
    ----------
    dtype : str
        NumPy's name of a boolean, integer or float; ``string`` for all else.
    shape : tuple of int
        Of one row's value; -1 for a size that differs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


def input_slots(signature: Signature) -> list[Slot]:
    """One tensor per column; one for all columns of an array, whose columns nobody named."""
    columns = signature.columns
    if is_matrix(signature):
        return [Slot("x", dtype_of(columns[0]), (len(columns),))]
    return [Slot(c.name, dtype_of(c), tuple(-1 if size is None else size for size in c.shape)) for c in columns]


def is_matrix(signature: Signature) -> bool:
    """Whether all columns may come as one tensor of two axes."""
    columns = signature.columns
    unnamed = signature.container in UNNAMED and len(columns) > 1
    return unnamed and not any(column.shape for column in columns) and len({c.kind for c in columns}) == 1


def output_slots(signature: Signature) -> list[Slot]:
    """One tensor per output, then one of probabilities per target, which is given only if it is asked for."""
    found = [Slot(o.name or PREDICTION, *_dense(o.dtype, o.shape)) for o in signature.outputs]
    return found + [Slot(name, "float64", (size,)) for name, size in proba_names(signature)]


def proba_names(signature: Signature) -> list[tuple[str, int]]:
    """Name and width of each tensor of probabilities."""
    classes = signature.classes
    if classes is None:
        return []
    key = _free(PROBABILITIES, [output.name for output in signature.outputs])
    if signature.several:
        return [(f"{key}_{i}", len(held)) for i, held in enumerate(classes)]
    return [(key, len(classes))]


def dtype_of(column: Column) -> str:
    """NumPy's name of a column's values, or ``string``."""
    return _plain_dtype((column.category_dtype or "object") if column.kind == "category" else column.dtype)


# -- helpers ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _plain_dtype(name: str) -> str:
    dtype = pd.api.types.pandas_dtype(name)
    plain = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", np.dtype(object))
    return _dense(str(plain), ())[0]


def _told(column: Column, value: Any) -> str:
    if isinstance(value, list):
        return "an empty list"
    return kind_of(value) if column.private else shown(value)


def _text(name: str | int) -> str:
    # Integers of thousands of digits cannot even be formatted.
    return name if isinstance(name, str) else str(name) if name.bit_length() <= 64 else "an integer beyond 64 bits"


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _dense(dtype: str, shape: Sequence[int | None]) -> tuple[str, tuple[int, ...]]:
    """An output as a tensor: what no NumPy dtype holds, or has rows of several sizes, is one text per row."""
    textual = dtype in (STRING, "object") or np.dtype(dtype).kind not in "biuf"
    if None in shape or (dtype == "object" and shape):
        return STRING, ()
    name = STRING if textual else "float64" if np.dtype(dtype).itemsize > 8 else dtype
    return name, tuple(size for size in shape if size is not None)
