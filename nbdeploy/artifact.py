"""The files of one version: written from the kernel's live objects, verified, loaded and rehearsed anywhere."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy import answers, carried_code, containers, frameworks, model_facts, pickling, processes
from nbdeploy.answers import Predicted
from nbdeploy.errors import RehearsalError, SaveError
from nbdeploy.frameworks import Framework
from nbdeploy.home import bentoml_home, private_folder
from nbdeploy.signature import Column, Signature, build_column, json_column, restore_missing
from nbdeploy.signature_tensors import flat_cells, restored_cells

# Other batch sizes add up in another order; what JSON breaks is far further off than this.
JSON_TOLERANCE, JSON_TOLERANCE_SINGLE = 1e-6, 1e-3
JSON_ROWS = 200
MODEL, SIGNATURE, REFERENCE = "model.json", "signature.json", "reference.parquet"
EXPECTED, LABELS, PROVENANCE, SERVICE = "expected.parquet", "labels.parquet", "provenance.json", "service.py"
REQUIREMENTS, WHEELS, CODE = "requirements.txt", "wheels", "code"
BENTOML_FILE = "model.yaml"  # BentoML's, and it names the digest: not part of it
# What a version gets later, or is generated for the place where it is stored.
UNRECORDED = frozenset({BENTOML_FILE, "card.md", "card.html", "importance.json"})
# Read while others load: hashed where they lie, not copied first.
_ONLY_DATA = frozenset({REFERENCE, EXPECTED, LABELS, PROVENANCE, SERVICE, REQUIREMENTS})
BLOCK = 1 << 20
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})


@dataclass(frozen=True)
class Options:
    """What `save` may be told beside the model and its data; see `nbdeploy.save`.

    Raises
    ------
    SaveError
        One is of a wrong kind, before anything is done with it.
    """

    format: str | None = None
    private: Sequence[str] | Mapping[str, str] = ()
    tolerance: float = answers.TOLERANCE
    metrics: Mapping[str, Any] = field(default_factory=dict)
    requirements: Sequence[str] = ()
    clean_env: bool = False
    unbatched: bool = False

    def __post_init__(self) -> None:
        given: dict[str, Any] = vars(self)
        if not isinstance(given["format"], (str, type(None))):
            msg = f"format= is a {type(self.format).__name__}"
            raise SaveError(msg, 'Leave it out, or write format="skops".')
        lists = (list, tuple, set, frozenset, pd.Index, np.ndarray)
        for name, example in (("private", "['carrier']"), ("requirements", "['xgboost>=2']")):
            if name == "private" and isinstance(given[name], Mapping):
                continue  # what the log holds of each column: `Signature.with_private` looks at it
            if not isinstance(given[name], lists):
                kind = "string" if isinstance(given[name], str) else type(given[name]).__name__
                msg = f"{name}= is a {kind}, not a list of strings"
                raise SaveError(msg, f"Write {name}={example}.")
        if not isinstance(given["metrics"], Mapping):
            msg = f"metrics= is a {type(self.metrics).__name__}"
            raise SaveError(msg, "Pass names and numbers: metrics={'auc': 0.83}.")
        loose = given["tolerance"]
        if not isinstance(loose, (int, float, np.number)) or isinstance(loose, bool) or not 0 <= loose < np.inf:
            msg = f"tolerance= is {loose!r:.80}"
            raise SaveError(msg, "Pass how far a number may be off, relatively: tolerance=1e-6.")


@dataclass(frozen=True)
class Written:
    """What `write` found out: the signature, facts about the training data, and what the model needs."""

    signature: Signature
    facts: dict[str, Any]
    needed: pickling.Needed
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model in this process together with what it takes.

    The model gets a copy of the rows at each call: what it changes in place stays its own.
    """

    model: Any
    signature: Signature
    framework: Framework
    tolerance: float = answers.TOLERANCE
    modules: frozenset[str] = frozenset()
    unbatched: bool = False  # its answer to a row may depend on the rows that are asked with it

    def predict(self, frame: pd.DataFrame, *, fresh: bool = False) -> Predicted:
        """One prediction per row: an array, or one array per output that has a name.

        `fresh` says that nobody needs `frame` afterwards: the model gets it as it is.
        """
        raw = self.framework.predict(self.model, containers.hand(frame, self.signature, fresh=fresh))
        return answers.predicted(raw, len(frame), "predict")

    def probabilities(self, frame: pd.DataFrame) -> Any:
        """The classes' probabilities, shape (rows, classes), a list of such for several targets, or None."""
        if self.signature.classes is None:
            return None
        raw = self.framework.probabilities(self.model, containers.hand(frame, self.signature))
        return _scores(raw, len(frame), several=self.signature.several)

    def outputs(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predictions and probabilities as one frame; see `nbdeploy.answers.frame_of`."""
        return answers.frame_of(self.predict(frame), self.probabilities(frame), self.signature.classes)


def write(folder: Path, model: Any, X: Any, y: Any = None, options: Options | None = None) -> Written:
    """Write the files of a version into `folder`, which exists and is empty.

    Raises
    ------
    SaveError
        The model cannot predict, X does not fit it, or it cannot be stored.
    """
    options = options or Options()
    framework = frameworks.find(model, options.format)
    if isinstance(model, type) and type(framework) is Framework:
        msg = f"{model.__name__} is a class, not a fitted model"
        raise SaveError(msg, f"Pass an instance of it, fitted: model = {model.__name__}(...).")
    model = framework.subject(model)
    frameworks.can_be_asked(framework, model)
    training = containers.read(framework.training(model) if X is None else X)
    columns = training.columns()
    if training.container in ("frame", "polars", "arrow"):
        model_facts.check_inputs(model_facts.known_inputs(framework, model), [column.name for column in columns], model)
    columns = tuple(_as_declared(column, framework.optional(model)) for column in columns)
    rows, reference = training.sample()
    draft = Signature(columns, training.container, training.detail).with_private(options.private)
    live = LoadedModel(model, draft, framework, options.tolerance, unbatched=options.unbatched)
    predictions, classes, expected = _ask(live, reference)
    labels = model_facts.labels_of(y, training.rows, rows, predictions)
    signature = Signature(
        columns=draft.columns,
        container=training.container,
        detail=training.detail,
        task=model_facts.task_of(model, predictions, classes, labels),
        outputs=answers.outputs_of(predictions),
        classes=classes,
        example=example_row(reference, columns),
        target=", ".join(map(str, labels.columns)) if labels is not None else "",
    )
    with pickling.recorded() as needed:
        how = _store_model(framework, model, folder)
    code = carried_code.collect(needed.modules)
    for name, source in code.items():
        private_folder((folder / CODE / name).parent)
        shutil.copyfile(source, folder / CODE / name)
    how |= {"modules": sorted(needed.modules), "tolerance": options.tolerance, "unbatched": options.unbatched}
    _store(lambda: _storable(reference, signature), folder / REFERENCE, "the rows of X")
    _store(lambda: answers.store(expected, signature.outputs), folder / EXPECTED, "the model's predictions")
    if labels is not None:
        _store(lambda: labels, folder / LABELS, "the labels")
    try:
        (folder / SIGNATURE).write_text(json.dumps(signature.to_dict(), indent=1))
        (folder / MODEL).write_text(json.dumps(how, indent=1))
    except TypeError as error:
        msg = f"what the model takes and gives cannot be written as JSON: {error}"
        raise SaveError(msg, "Are its classes_ numbers or strings?") from error
    facts = {
        "model": _class_of(model, framework), "framework": framework.name,
        "format": framework.format, "rows": training.rows, "reference_rows": len(reference), "columns": len(columns),
        "code": sorted(code),
    }  # fmt: skip
    return Written(signature, facts, needed, framework.parameters(model))


def manifest(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The SHA-256 of every file of a version; those in `known` are not read again."""
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {
        name: (known or {}).get(name) or _sha256(folder / name)
        for name in (path.relative_to(folder).as_posix() for path in names)
        if name not in UNRECORDED
    }


def digest(files: Mapping[str, str]) -> str:
    """One SHA-256 for a whole `manifest`, without the service file: that names a place, not the model."""
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()) if name != SERVICE)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_signature(folder: Path) -> Signature:
    """The signature stored with a version."""
    return Signature.from_dict(json.loads((folder / SIGNATURE).read_text()))


def read_reference(folder: Path, signature: Signature, rows: int | None = None) -> pd.DataFrame:
    """The reference sample, or its first `rows`, with the labels, dtypes and missing values of the training data."""
    frame = read_frame(folder / REFERENCE, rows)
    frame.columns = pd.Index([column.label for column in signature.columns])
    for column in signature.columns:
        if column.shape:
            frame[column.label] = restored_cells(column, frame[column.label].tolist())
            continue
        if column.kind == "category":  # Parquet keeps neither unused ones nor every dtype
            frame[column.label] = build_column(column, json_column(column, frame[column.label]))
        elif str(frame[column.label].dtype) != column.dtype:
            frame[column.label] = frame[column.label].astype(column.dtype)
        if column.missing:
            frame[column.label] = restore_missing(frame[column.label], column)
    return frame


def read_expected(folder: Path, signature: Signature, rows: int | None = None) -> pd.DataFrame:
    """What the model answered on the reference sample, or its first `rows`, in the kernel that saved it."""
    return answers.restore(read_frame(folder / EXPECTED, rows), signature.outputs)


def read_frame(path: Path, rows: int | None = None) -> pd.DataFrame:
    """Read one Parquet file, or its first `rows`, in this thread.

    Arrow's own threads, which pandas would use, make a short-lived process abort at its exit now and then.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if rows is not None and rows < file.metadata.num_rows:
            first = next(file.iter_batches(batch_size=rows, use_threads=False))
            table = pa.Table.from_batches([first], schema=file.schema_arrow)
        else:
            table = file.read(use_threads=False)
        return table.to_pandas(use_threads=False)


def load(folder: Path, files: Mapping[str, str] | None) -> LoadedModel:
    """Load a version after checking every file against its recorded SHA-256.

    What is loaded is a private copy, hashed while it is made: nothing can be swapped in between.

    Parameters
    ----------
    files : mapping or None
        The recorded `manifest`. None skips the check: for a version that came without records of ours.

    Raises
    ------
    SaveError
        A file is missing or is not the recorded one.
    """
    with _verified(folder, files) as place:
        how = json.loads((place / MODEL).read_text())
        sources = {
            path.relative_to(place / CODE).as_posix(): path.read_bytes() for path in (place / CODE).rglob("*.py")
        }
        with carried_code.imported_from(sources, f"{folder.parent.name}:{folder.name}"):
            framework, model = frameworks.restore(place, how)
        loaded = LoadedModel(
            model, read_signature(place), framework, how["tolerance"], frozenset(how["modules"]), how.get("unbatched", False)
        )  # fmt: skip
        if not framework.lasting and place != folder:
            shutil.rmtree(place, ignore_errors=True)
    return loaded


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
    except (Exception, SystemExit) as error:
        msg = f"a fresh process cannot load the model: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "Does it hold a connection, a lock or an open file?", traceback.format_exc()
        ) from error
    first = None if loaded.unbatched else rows
    reference = read_reference(folder, loaded.signature, first)
    expected = read_expected(folder, loaded.signature, first)
    try:
        outputs = loaded.outputs(reference)
    except ImportError as error:
        raise RehearsalError(*_explain_import(error), traceback.format_exc()) from error
    except (Exception, SystemExit) as error:
        msg = f"in a fresh process the model fails on its own training rows: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "Does its class use a name that is defined only in the notebook?", traceback.format_exc()
        ) from error
    if difference := answers.first_difference(expected, outputs, loaded.tolerance):
        msg = f"in a fresh process the model answers otherwise: {difference}"
        raise RehearsalError(
            msg,
            "Fix its random_state, take out what depends on the notebook's state, or allow a tolerance: "
            "save(..., tolerance=1e-6).",
        )
    for count in [len(reference)] if loaded.unbatched else sorted({1, min(JSON_ROWS, len(reference))}):
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
    except (Exception, SystemExit) as error:
        msg = f"{about}: {type(error).__name__}: {error}"
        raise RehearsalError(
            msg, "In a service it would answer no such request; see error.details.", traceback.format_exc()
        ) from error
    try:
        orjson.dumps([answers.rows_of(predictions), answers.score_rows(scores)], option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as error:
        msg = f"{about}: its predictions cannot be sent: {error}"
        raise RehearsalError(msg, "Let predict return numbers, strings, booleans or datetimes.") from error
    single = any(output.dtype in ("float32", "float16", "object") for output in signature.outputs)
    tolerance = max(JSON_TOLERANCE_SINGLE if single else JSON_TOLERANCE, loaded.tolerance)
    outputs = answers.frame_of(predictions, scores, signature.classes)
    if difference := answers.first_difference(expected, outputs, tolerance):
        msg = f"{about}: it answers otherwise: {difference}"
        raise RehearsalError(
            msg,
            "Its answer to a row must not depend on how rows arrive, nor on the other rows, unless it is saved as "
            "one that must not be batched: save(..., unbatched=True).",
        )


def example_row(frame: pd.DataFrame, columns: Any) -> dict[str, Any]:
    """The first row without gaps (else the first row) as JSON."""
    complete = frame.notna().all(axis=1).to_numpy()
    row = int(np.argmax(complete))
    return {c.name: json_column(c, frame.iloc[row : row + 1, i])[0] for i, c in enumerate(columns)}


def failure(outcome: dict[str, Any] | None, code: int, log: str) -> SaveError:
    """The error behind a failed rehearsal, with what the kernel knows and the fresh process could not."""
    if outcome is None:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return RehearsalError(f"the process that rehearses the model {how}", "See error.details.", log[-4000:])
    kind = RehearsalError if outcome["kind"] == "RehearsalError" else SaveError
    return kind(outcome["message"] + _where_defined(outcome["message"]), outcome["hint"], outcome["details"])


def sweep_copies(area: Path) -> None:
    """Remove what processes that are gone had copied into `area` in order to load it."""
    for leftover in area.glob("loaded-*"):
        pid = leftover.name.split("-")[1]
        if "@" not in leftover.name and pid.isdecimal() and not processes.started(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


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


# -- writing ------------------------------------------------------------------------------------------------


def _ask(live: LoadedModel, reference: pd.DataFrame) -> tuple[Predicted, Any, pd.DataFrame]:
    """The model's answers to the sample in this process: predictions, classes, and all as a frame."""
    framework, model, signature = live.framework, live.model, live.signature
    try:
        predictions = live.predict(reference)
        classes = model_facts.classes_of(framework.classes(model))
        scores = None
        if classes is not None:
            raw = framework.probabilities(model, containers.hand(reference, signature))
            scores = _scores(raw, len(reference), several=isinstance(classes[0], tuple))
        few = reference if live.unbatched else reference.head(JSON_ROWS)
        again = live.predict(few)
    except SaveError:
        raise
    except (Exception, SystemExit) as error:
        msg = f"the model cannot predict the rows of X: {type(error).__name__}: {error}"
        raise SaveError(msg, "Pass the data that it was fitted on.", traceback.format_exc()) from error
    if isinstance(predictions, dict) and not (predictions and all(predictions)):
        msg = f"the {type(model).__name__} answers with {'an output without a name' if predictions else 'no output'}"
        raise SaveError(msg, "Let it return one answer per row, or outputs that each have a name.")
    once = answers.frame_of(predictions).head(len(few))
    loose = max(live.tolerance, JSON_TOLERANCE_SINGLE)  # another number of rows adds up in another order
    if difference := answers.first_difference(once, answers.frame_of(again), loose):
        msg = f"the model answers the same rows differently the second time: {difference}"
        raise SaveError(msg, "Fix its random_state, or allow a difference: save(..., tolerance=0.05).")
    return predictions, classes, answers.frame_of(predictions, scores, classes)


def _as_declared(column: Column, optional: Collection[str]) -> Column:
    # Only where the dtype has a missing value: NumPy's integers and booleans have none.
    can = column.kind in ("float", "string", "category", "datetime") and not column.shape
    if column.nullable or not can or column.name not in optional:
        return column
    return replace(column, nullable=True, missing="None" if column.dtype == "object" else "")


def _class_of(model: Any, framework: Framework) -> str:
    kind = type(model)
    ours = kind.__module__.startswith("nbdeploy.")  # what stands for a stored model
    return f"{framework.name} model" if ours else f"{kind.__module__}.{kind.__qualname__}"


def _scores(raw: Any, count: int, *, several: bool) -> Any:
    blocks = [answers.predicted(block, count, "predict_proba") for block in (raw if several else [raw])]
    assert not any(isinstance(block, dict) for block in blocks)
    return blocks if several else blocks[0]


def _store_model(framework: Framework, model: Any, folder: Path) -> dict[str, Any]:
    try:
        return frameworks.store(framework, model, folder)
    except SaveError:
        raise
    except Exception as error:
        _raise_if_disk(error)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        if framework.format != "cloudpickle":
            msg = f"this {type(model).__name__} cannot be stored as {framework.format}: {said}"
            raise SaveError(msg, "See error.details.", traceback.format_exc()) from error
        msg = f"the model cannot be pickled because of {pickling.culprit(model)}: {said}"
        raise SaveError(
            msg, "Take that out of it, or leave it out of its __getstate__.", traceback.format_exc()
        ) from error


def _raise_if_disk(error: BaseException | None) -> None:
    """Raise the fault of a disk behind `error` itself, so that it is not taken for one of the model."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise error
        error = error.__cause__ or error.__context__


def _storable(reference: pd.DataFrame, signature: Signature) -> pd.DataFrame:
    stored = reference.set_axis(signature.names, axis=1)
    stored.attrs = {}  # may hold anything, and Parquet would want it as JSON
    for column in signature.columns:
        if column.shape:
            stored[column.name] = flat_cells(column, stored[column.name].tolist())
    return stored


def _store(frame: Callable[[], pd.DataFrame], path: Path, what: str) -> None:
    try:
        frame().to_parquet(path, index=False)
    except Exception as error:  # pyarrow's errors have no common root
        _raise_if_disk(error)
        msg = f"{what} cannot be stored: {type(error).__name__}: {error}"
        raise SaveError(msg, "Use plain numbers, strings, booleans or datetimes.", traceback.format_exc()) from error


# -- loading ------------------------------------------------------------------------------------------------


@contextmanager
def _verified(folder: Path, files: Mapping[str, str] | None) -> Iterator[Path]:
    if files is None:
        yield folder
        return
    data = {name for name in files if name in _ONLY_DATA or name.startswith(f"{WHEELS}/")}
    _compare(folder, {name: files[name] for name in sorted(data)}, lambda name: _sha256(folder / name))
    area = private_folder(bentoml_home() / "nbdeploy-staging")
    sweep_copies(area)
    place = Path(tempfile.mkdtemp(prefix=f"loaded-{os.getpid()}-", dir=area))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    try:
        loaded = {name: sha for name, sha in files.items() if name not in data}
        _compare(folder, loaded, lambda name: _copied(folder / name, place / name))
        yield place
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _compare(folder: Path, files: Mapping[str, str], read: Callable[[str], str]) -> None:
    for name, sha in files.items():
        if not (folder / name).is_file() or read(name) != sha:
            raise tampered(folder, name)


def _copied(source: Path, target: Path) -> str:
    total = hashlib.sha256()
    private_folder(target.parent)
    with source.open("rb") as file, target.open("xb") as copy:
        while block := file.read(BLOCK):
            total.update(block)
            copy.write(block)
            pickling.tell()
    return total.hexdigest()


def _where_defined(message: str) -> str:
    for word in message.replace("'", " ").replace(",", " ").split():
        module = sys.modules.get(word)
        if word != "__main__" and (file := getattr(module, "__file__", None)) and f"import {word}" in message:
            return f" (here it comes from {file})"
    return ""


def _explain_import(error: ImportError | AttributeError) -> tuple[str, str]:
    hint = "Define it in a cell of this notebook, install the package, or put its folder on PYTHONPATH."
    if isinstance(error, ImportError):
        return f"a fresh process cannot import {error.name or error}, which the model needs", hint
    return f"a fresh process cannot find a class that the model needs: {error}", hint


def tampered(folder: Path, name: str) -> SaveError:
    """The error that says which file of the version in `folder` is not the recorded one."""
    return SaveError(
        f"{folder.parent.name}:{folder.name} is not what was saved: {name} does not match its recorded SHA-256",
        "Save the model again; do not load this one.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _sha256_of(file)


def _sha256_of(file: IO[bytes]) -> str:
    total = hashlib.sha256()
    while block := file.read(BLOCK):
        total.update(block)
        pickling.tell()
    return total.hexdigest()
