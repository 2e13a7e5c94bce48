"""The files of one version: written from the kernel's live objects, verified, loaded and rehearsed anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy.errors import RehearsalError, SaveError
from nbdeploy.signature import Signature, Task, infer_columns, jsonable, restore_missing

MAX_REFERENCE_ROWS = 10_000
TOLERANCE = 1e-9  # relative; classes, strings and integers must match exactly
# Other batch sizes add up in another order; what JSON breaks is far further off than this.
JSON_TOLERANCE, JSON_TOLERANCE_SINGLE = 1e-6, 1e-3
JSON_ROWS = 200
MODEL, SIGNATURE, REFERENCE = "model.pkl", "signature.json", "reference.parquet"
EXPECTED, LABELS, PROVENANCE, SERVICE = "expected.parquet", "labels.parquet", "provenance.json", "service.py"
BENTOML_FILE = "model.yaml"  # BentoML's, and it names the digest: not part of it


@dataclass(frozen=True)
class LoadedModel:
    """A model in this process together with what it takes.

    The model gets a copy of the rows at each call: what it changes in place stays its own.
    """

    model: Any
    signature: Signature

    def predict(self, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        """One prediction per row."""
        return _rows_of(self.model.predict(self._handed(frame)), len(frame), "predict")

    def probabilities(self, frame: pd.DataFrame) -> np.ndarray[Any, Any] | None:
        """The classes' probabilities, shape (rows, classes), or None for a model without them."""
        if self.signature.classes is None:
            return None
        return _rows_of(self.model.predict_proba(self._handed(frame)), len(frame), "predict_proba")

    def outputs(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The column ``prediction`` and, for classifiers, one ``probability_<class>`` per class."""
        return outputs_frame(self.predict(frame), self.probabilities(frame), self.signature.classes)

    def _handed(self, frame: pd.DataFrame) -> Any:
        return _own_copy(frame, self.signature.container)


def outputs_frame(predictions: Any, probabilities: Any = None, classes: tuple[Any, ...] | None = None) -> pd.DataFrame:
    """Predictions, and probabilities where there are some, as one frame."""
    values = np.asarray(predictions)
    frame = pd.DataFrame({"prediction": values if values.ndim == 1 else values.tolist()})
    if probabilities is not None:
        scores = np.asarray(probabilities)
        for i, name in enumerate(classes or range(scores.shape[1])):
            frame[f"probability_{name}"] = scores[:, i]
    return frame


def write(folder: Path, model: Any, X: Any, y: Any, provenance: Mapping[str, Any]) -> Signature:
    """Write the files of a version into `folder`, which exists and is empty.

    Raises
    ------
    SaveError
        The model cannot predict, X does not fit it, or it cannot be pickled.
    """
    if not callable(getattr(model, "predict", None)):
        msg = f"a {type(model).__name__} has no predict method"
        raise SaveError(msg, "Pass a fitted model.")
    frame, container = as_frame(X)
    columns = infer_columns(frame)
    rows = sample_rows(len(frame))
    reference = frame.iloc[rows].reset_index(drop=True)
    labels = _labels(y, len(frame), rows)
    count = len(reference)
    try:
        predictions = _rows_of(model.predict(_own_copy(reference, container)), count, "predict")
        classes = _classes(model)
        scores = None
        if classes is not None:
            scores = _rows_of(model.predict_proba(_own_copy(reference, container)), count, "predict_proba")
        expected = outputs_frame(predictions, scores, classes)
    except SaveError:
        raise
    except Exception as error:
        msg = f"the model cannot predict the rows of X: {type(error).__name__}: {error}"
        raise SaveError(msg, "Pass the frame that it was fitted on.", traceback.format_exc()) from error
    signature = Signature(
        columns=columns,
        container=container,
        task=_task(model, predictions, classes, labels),
        output=str(np.asarray(predictions).dtype),
        classes=classes,
        example=example_row(reference, columns),
        target=str(labels.name) if labels is not None else "",
    )
    _pickle(model, folder / MODEL)
    stored = reference.set_axis(signature.names, axis=1)
    stored.attrs = {}  # may hold anything, and Parquet would want it as JSON
    _store(stored, folder / REFERENCE, "the rows of X")
    _store(expected, folder / EXPECTED, "the model's predictions")
    if labels is not None:
        _store(labels.to_frame("label"), folder / LABELS, "the labels")
    facts = {**provenance, "rows": len(frame), "reference_rows": len(reference), "columns": len(columns)}
    try:
        (folder / SIGNATURE).write_text(json.dumps(signature.to_dict(), indent=1))
    except TypeError as error:
        msg = f"what the model takes and gives cannot be written as JSON: {error}"
        raise SaveError(msg, "Are its classes_ numbers or strings?") from error
    (folder / PROVENANCE).write_text(json.dumps(facts, indent=1))
    return signature


def manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a version."""
    return {
        str(path.relative_to(folder)): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != BENTOML_FILE and "__pycache__" not in path.parts
    }


def digest(files: Mapping[str, str]) -> str:
    """One SHA-256 for a whole `manifest`."""
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_signature(folder: Path) -> Signature:
    """The signature stored with a version."""
    return Signature.from_dict(json.loads((folder / SIGNATURE).read_text()))


def read_reference(folder: Path, signature: Signature) -> pd.DataFrame:
    """The reference sample with the labels, dtypes and missing values of the training frame."""
    frame = read_frame(folder / REFERENCE)
    frame.columns = pd.Index([column.label for column in signature.columns])
    for column in signature.columns:
        if str(frame[column.label].dtype) != column.dtype:
            frame[column.label] = frame[column.label].astype(column.dtype)
        if column.missing:
            frame[column.label] = restore_missing(frame[column.label], column)
    return frame


def read_frame(path: Path) -> pd.DataFrame:
    """Read one Parquet file in this thread.

    Arrow's own threads, which pandas would use, make a short-lived process abort at its exit now and then.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False) as file:
        return file.read(use_threads=False).to_pandas(use_threads=False)


def load(folder: Path, files: Mapping[str, str] | None) -> LoadedModel:
    """Load a version after checking every file against its recorded SHA-256.

    The model is hashed and unpickled from one open file, so that it cannot be swapped in between.

    Parameters
    ----------
    files : mapping or None
        The recorded `manifest`. None skips the check: for a version that came without records of ours.

    Raises
    ------
    SaveError
        A file is missing or is not the recorded one.
    """
    import cloudpickle

    for name, sha in (files or {}).items():
        if name != MODEL and (not (folder / name).is_file() or _sha256(folder / name) != sha):
            raise _tampered(folder, name)
    with (folder / MODEL).open("rb") as file:
        if files is not None and _sha256_of(file) != files.get(MODEL):
            raise _tampered(folder, MODEL)
        file.seek(0)
        return LoadedModel(cloudpickle.load(file), read_signature(folder))


def rehearse(folder: Path, files: Mapping[str, str] | None, rows: int | None = None) -> LoadedModel:
    """Load a version and reproduce its expected outputs on the first `rows` of the sample (all by default).

    Its first rows, one alone and up to 200 together, go through JSON as a request's do.

    Raises
    ------
    RehearsalError
        It cannot be loaded here, or answers otherwise than the kernel did, or cannot answer what came as JSON.
    """
    try:
        loaded = load(folder, files)
    except (ImportError, AttributeError) as error:
        raise RehearsalError(*_explain_import(error), traceback.format_exc()) from error
    except SaveError:
        raise
    except Exception as error:
        msg = f"a fresh process cannot load the model: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "Does it hold a connection, a lock or an open file?", traceback.format_exc()
        ) from error
    reference = read_reference(folder, loaded.signature)
    expected = read_frame(folder / EXPECTED)
    if rows is not None:
        reference, expected = reference.head(rows), expected.head(rows)
    try:
        outputs = loaded.outputs(reference)
    except Exception as error:
        msg = f"in a fresh process the model fails on its own training rows: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "Does its class use a name that is defined only in the notebook?", traceback.format_exc()
        ) from error
    if difference := first_difference(expected, outputs):
        msg = f"in a fresh process the model answers otherwise: {difference}"
        raise RehearsalError(msg, "Fix its random_state, or take out what depends on the notebook's state.")
    for count in sorted({1, min(JSON_ROWS, len(reference))}):
        _rehearse_json(loaded, reference.head(count), expected.head(count))
    return loaded


def _rehearse_json(loaded: LoadedModel, rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    """One request of `rows` as the service would answer it."""
    signature = loaded.signature
    several = "one row" if len(rows) == 1 else f"{len(rows)} rows"
    about = f"the model fails on {several} that came as JSON"
    try:
        asked = signature.encode(rows)
        # orjson has no Infinity.
        again = json.loads(json.dumps(asked)) if signature.nonfinite else orjson.loads(orjson.dumps(asked))
        frame = signature.decode(again)
        predictions, scores = loaded.predict(frame), loaded.probabilities(frame)
    except Exception as error:
        msg = f"{about}: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "In a service it would answer no such request; see error.details.", traceback.format_exc()
        ) from error
    try:
        orjson.dumps([jsonable(predictions), None if scores is None else scores.tolist()])
    except (TypeError, ValueError) as error:
        msg = f"{about}: its predictions cannot be sent: {error}"
        raise RehearsalError(msg, "Let predict return numbers, strings, booleans or datetimes.") from error
    single = any(dtype.kind == "f" and dtype.itemsize < 8 for dtype in _numpy_dtypes(expected))
    tolerance = JSON_TOLERANCE_SINGLE if single else JSON_TOLERANCE
    if difference := first_difference(expected, outputs_frame(predictions, scores, signature.classes), tolerance):
        msg = f"{about}: it answers otherwise: {difference}"
        raise RehearsalError(msg, "Its answer to a row must not depend on the other rows, or on how rows arrive.")


def _numpy_dtypes(frame: pd.DataFrame) -> list[np.dtype[Any]]:
    return [dtype for dtype in frame.dtypes if isinstance(dtype, np.dtype)]


def first_difference(expected: pd.DataFrame, outputs: pd.DataFrame, tolerance: float = TOLERANCE) -> str:
    """Where two frames of outputs first differ, in words, or ''."""
    for name in expected.columns:
        if name not in outputs:
            return f"column {name!r} is missing"
        want, got = expected[name].to_numpy(), outputs[name].to_numpy()
        if len(want) != len(got):
            return f"{len(got)} rows, expected {len(want)}"
        if want.dtype.kind == "f" and got.dtype.kind in "fiu":
            same = np.isclose(got.astype(float), want, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        else:
            same = np.array([_same(a, b) for a, b in zip(want, got, strict=True)], dtype=bool)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            return (
                f"row {row}, column {name!r}: {got[row]!s:.80} ({outputs[name].dtype}) "
                f"instead of {want[row]!s:.80} ({expected[name].dtype})"
            )
    return ""


def as_frame(X: Any) -> tuple[pd.DataFrame, Any]:
    """The training data as a frame, and what the model is handed: ``frame`` or ``array``."""
    if isinstance(X, pd.DataFrame):
        return X, "frame"
    if X is None:
        msg = "a version needs the frame that the model was fitted on"
        raise SaveError(msg, "Pass X=X_train (in the magic: --data X_train).")
    array = np.asarray(X)
    if array.ndim != 2:
        msg = f"X is a {type(X).__name__} with {array.ndim} dimensions"
        raise SaveError(msg, "Pass a DataFrame or a two-dimensional array.")
    return pd.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])]), "array"


def sample_rows(count: int, limit: int = MAX_REFERENCE_ROWS) -> np.ndarray[Any, Any]:
    """The positions of a reproducible sample of at most `limit` rows, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def example_row(frame: pd.DataFrame, columns: Any) -> dict[str, Any]:
    """The first row without gaps (else the first row) as JSON."""
    complete = frame.notna().all(axis=1).to_numpy()
    row = int(np.argmax(complete))
    return {c.name: jsonable(frame.iloc[row : row + 1, i])[0] for i, c in enumerate(columns)}


def failure(outcome: dict[str, Any] | None, code: int, log: str) -> SaveError:
    """The error behind a failed rehearsal, with what the kernel knows and the fresh process could not."""
    if outcome is None:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return RehearsalError(f"the process that rehearses the model {how}", "See error.details.", log[-4000:])
    kind = RehearsalError if outcome["kind"] == "RehearsalError" else SaveError
    return kind(outcome["message"] + _where_defined(outcome["message"]), outcome["hint"], outcome["details"])


def _where_defined(message: str) -> str:
    for word in message.replace("'", " ").replace(",", " ").split():
        module = sys.modules.get(word)
        if word != "__main__" and (file := getattr(module, "__file__", None)) and f"import {word}" in message:
            return f" (here it comes from {file})"
    return ""


# -- helpers ------------------------------------------------------------------------------------------------


def _labels(y: Any, length: int, rows: np.ndarray[Any, Any]) -> pd.Series | None:
    if y is None:
        return None
    name = y.columns[0] if isinstance(y, pd.DataFrame) and len(y.columns) else getattr(y, "name", None)
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        msg = f"y has the shape {values.shape}"
        raise SaveError(msg, "Pass one column of labels, or none: y is only for measuring the model.")
    series = pd.Series(values)
    if len(series) != length:
        msg = f"y has {len(series)} rows and X has {length}"
        raise SaveError(msg, "Pass the labels of the same rows.")
    return series.iloc[rows].reset_index(drop=True).rename("target" if name is None else str(name))


def _classes(model: Any) -> tuple[Any, ...] | None:
    if not callable(getattr(model, "predict_proba", None)):
        return None
    classes = getattr(model, "classes_", None)
    # A model with several outputs has a list of arrays here, and a list of probabilities: no one class per row.
    if classes is None or any(map(np.ndim, classes)):
        return None
    return tuple(np.asarray(classes).tolist())


def _task(model: Any, predictions: Any, classes: Any, labels: pd.Series | None) -> Task:
    if classes is not None or getattr(model, "classes_", None) is not None:
        return "classification"
    kind = np.asarray(predictions).dtype.kind
    if kind == "f":
        return "regression"
    if labels is None:
        return "other"
    return "regression" if kind in "iu" and labels.nunique() > 20 else "classification"


def _rows_of(outputs: Any, count: int, method: str) -> np.ndarray[Any, Any]:
    values = np.asarray(outputs)
    if not values.ndim or len(values) != count:
        got = f"{len(values)} rows" if values.ndim else "one value"
        msg = f"the model's {method} answers {count} rows with {got}"
        raise SaveError(msg, "It must give one answer per row.")
    return values


def _own_copy(frame: pd.DataFrame, container: str) -> Any:
    return frame.to_numpy(copy=True) if container == "array" else frame.copy()


def _store(frame: pd.DataFrame, path: Path, what: str) -> None:
    try:
        frame.to_parquet(path, index=False)
    except Exception as error:  # pyarrow's errors have no common root
        msg = f"{what} cannot be stored: {type(error).__name__}: {error}"
        raise SaveError(msg, "Use plain numbers, strings, booleans or datetimes.", traceback.format_exc()) from error


def _pickle(model: Any, path: Path) -> None:
    import cloudpickle

    try:
        with path.open("wb") as file:
            cloudpickle.dump(model, file)
    except Exception as error:
        msg = f"the model cannot be pickled: {type(error).__name__}: {error}"
        raise SaveError(msg, "Take the connection, lock or generator out of it.", traceback.format_exc()) from error


def _explain_import(error: ImportError | AttributeError) -> tuple[str, str]:
    hint = "Define it in a cell of this notebook, install the package, or put its folder on PYTHONPATH."
    if isinstance(error, ImportError):
        return f"a fresh process cannot import {error.name or error}, which the model needs", hint
    return f"a fresh process cannot find a class that the model needs: {error}", hint


def _tampered(folder: Path, name: str) -> SaveError:
    return SaveError(
        f"{folder.parent.name}:{folder.name} is not what was saved: {name} does not match its recorded SHA-256",
        "Save the model again; do not load this one.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _sha256_of(file)


def _sha256_of(file: IO[bytes]) -> str:
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def _same(want: Any, got: Any) -> bool:
    if isinstance(want, (np.ndarray, list)) or isinstance(got, (np.ndarray, list)):
        if not isinstance(want, (np.ndarray, list)) or not isinstance(got, (np.ndarray, list)) or len(want) != len(got):
            return False
        try:
            a, b = np.asarray(want), np.asarray(got)
        except ValueError:  # lists of different lengths
            return all(map(_same, want, got))
        if a.dtype.kind == "f" and b.dtype.kind in "fiu":
            return a.shape == b.shape and bool(np.isclose(b, a, equal_nan=True).all())
        return all(map(_same, want, got))  # Parquet gives nested lists back as arrays of arrays
    return bool(want == got) or (want != want and got != got)


def private_tree(folder: Path) -> None:
    """Give every folder 0700 and every file 0600."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def sync_tree(folder: Path) -> None:
    """Make every file of a version durable."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
