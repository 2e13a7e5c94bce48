"""Models that are files already: ONNX, and what MLflow has logged."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import traceback
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbdeploy.errors import SaveError
from nbdeploy.framework import Framework, comes_from, is_a

# -- ONNX ---------------------------------------------------------------------------------------------------

ONNX_FILE, ONNX_DATA = "saved_model.onnx", "saved_model.onnx.data"
# How the converters of scikit-learn name what a classifier gives.
LABELS, PROBABILITIES = {"label", "output_label"}, {"probabilities", "output_probability"}


@dataclass(frozen=True)
class OnnxModel:
    """A session, and what is to be stored of it.

    Attributes
    ----------
    session : onnxruntime.InferenceSession
        The user's own where one was given.
    source : Path, bytes or None
        The file or the serialized model behind it. None once it was loaded from a version.
    classes : tuple or None
        Of a classifier that names them: then it gives labels and probabilities, not two outputs.
    """

    session: Any
    source: Path | bytes | None = None
    classes: tuple[Any, ...] | None = None


class Onnx(Framework):
    """A `ModelProto`, an `InferenceSession`, or the path of an ``.onnx`` file; weights in files beside it included.

    One input gets the whole array or frame, several get the columns with their names. Values are cast to the input's
    dtype. Several outputs keep their names, except for the label and the probabilities of a classifier that
    names its classes.
    """

    name = "ONNX"
    format = "onnx"
    stored = "`saved_model.onnx`, large weights in `saved_model.onnx.data`"
    guarantee = (
        "The ONNX standard: any ONNX Runtime that knows its operators loads it, here on a CPU. It runs no Python."
    )
    bentoml = "bentoml.onnx"

    def owns(self, model: Any) -> bool:
        if isinstance(model, (str, Path)):
            return str(model).endswith(".onnx")
        if isinstance(model, OnnxModel):
            return True
        return (comes_from(model, "onnx") and hasattr(model, "graph")) or is_a(model, "onnxruntime", "InferenceSession")

    def subject(self, model: Any) -> Any:
        if isinstance(model, OnnxModel):
            return model
        if isinstance(model, (str, Path)):
            path = Path(model).expanduser().absolute()
            if not path.is_file():
                msg = f"there is no file {model!s}"
                raise SaveError(msg, "Pass the path of an .onnx file.")
            return OnnxModel(_session(path), path, _classes_of(path))
        if is_a(model, "onnxruntime", "InferenceSession"):
            source = _source_of(model)
            return OnnxModel(model, source, _classes_of(source))
        proto = _serialized(model)
        return OnnxModel(_session(proto), proto, _classes_of(proto))

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        if isinstance(model.source, bytes):
            (folder / ONNX_FILE).write_bytes(model.source)
        elif not _has_files_beside(model.source):
            shutil.copyfile(model.source, folder / ONNX_FILE)
        else:
            import onnx

            onnx.save_model(
                onnx.load(model.source), folder / ONNX_FILE, save_as_external_data=True,
                all_tensors_to_one_file=True, location=ONNX_DATA,
            )  # fmt: skip
        return {"classes": None if model.classes is None else list(model.classes)}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        classes = facts["classes"]
        return OnnxModel(_session(folder / ONNX_FILE), None, None if classes is None else tuple(classes))

    def can_predict(self, model: Any) -> bool:
        return True

    def predict(self, model: Any, inputs: Any) -> Any:
        names, values = _run(model.session, inputs)
        if model.classes is not None:
            return values[_position(names, LABELS)]
        answers = {name: _plain(value) for name, value in zip(names, values, strict=True)}
        return next(iter(answers.values())) if len(answers) == 1 else answers

    def classes(self, model: Any) -> Any:
        return model.classes

    def probabilities(self, model: Any, inputs: Any) -> Any:
        names, values = _run(model.session, inputs)
        scores = values[_position(names, PROBABILITIES)]
        if isinstance(scores, list):  # a dict of classes to probabilities for each row
            return np.array([[row[label] for label in model.classes] for row in scores])
        return scores

    def inputs(self, model: Any) -> Sequence[str] | None:
        names = [each.name for each in model.session.get_inputs()]
        return names if len(names) > 1 else None


def _session(source: Path | bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        msg = "an ONNX model needs the package onnxruntime"
        raise SaveError(msg, "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a service answers several requests at once
    given = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common root
        msg = f"ONNX Runtime cannot load the model: {error}"
        raise SaveError(msg, "Are its weights in other files? Then pass the path of the .onnx file.") from error


def _serialized(proto: Any) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except Exception as error:  # protobuf's own, beyond 2 GB
        msg = f"the ONNX model cannot be serialized: {type(error).__name__}: {error}"
        raise SaveError(
            msg, "Save it with onnx.save_model(..., save_as_external_data=True) and pass its path."
        ) from error


def _source_of(session: Any) -> Path | bytes:
    # ONNX Runtime has no public way back to the model.
    if isinstance(held := getattr(session, "_model_bytes", None), bytes):
        return held
    path = getattr(session, "_model_path", None)
    if path and Path(path).is_file():
        return Path(path).absolute()
    msg = "this InferenceSession does not tell what it was made from"
    raise SaveError(msg, "Pass the ModelProto or the path of the .onnx file.")


def _proto(source: Path | bytes) -> Any:
    try:
        import onnx
    except ImportError:  # ONNX Runtime does without
        return None
    return onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source, load_external_data=False)


def _has_files_beside(source: Path) -> bool:
    proto = _proto(source)
    if proto is None:
        return False
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    return any(uses_external_data(tensor) for tensor in _get_all_tensors(proto))


def _classes_of(source: Path | bytes) -> tuple[Any, ...] | None:
    """The classes of a classifier, as converters of scikit-learn note them at the node that gives the labels."""
    proto = _proto(source)
    if proto is None or len(proto.graph.output) != 2:
        return None
    names = [output.name for output in proto.graph.output]
    if _position(names, LABELS) is None or _position(names, PROBABILITIES) is None:
        return None
    for node in reversed(proto.graph.node):
        for attribute in node.attribute:
            if attribute.name.startswith("classlabels_"):
                if attribute.strings:
                    return tuple(label.decode() for label in attribute.strings)
                if attribute.ints:
                    return tuple(attribute.ints)
    return None


def _position(names: Sequence[str], wanted: set[str]) -> Any:
    return next((i for i, name in enumerate(names) if name in wanted), None)


def _run(session: Any, inputs: Any) -> tuple[list[str], list[Any]]:
    wanted = session.get_inputs()
    frame = inputs.to_pandas() if hasattr(inputs, "to_pandas") else inputs
    by_name = hasattr(frame, "columns") or isinstance(frame, Mapping)
    if len(wanted) == 1 and not isinstance(frame, Mapping):
        fed = {wanted[0].name: _fed(frame, wanted[0])}
    elif by_name:
        names = [str(name) for name in (frame if isinstance(frame, Mapping) else frame.columns)]
        if missing := [each.name for each in wanted if each.name not in names]:
            msg = f"the ONNX model has the input {missing[0]!r}, which X has not"
            raise SaveError(msg, f"Its inputs are {', '.join(repr(each.name) for each in wanted[:8])}.")
        fed = {each.name: _fed(frame[each.name], each) for each in wanted}
    else:
        msg = f"the ONNX model has {len(wanted)} inputs"
        raise SaveError(msg, "Pass a frame or a dict with their names.")
    return [each.name for each in session.get_outputs()], session.run(None, fed)


def _fed(values: Any, wanted: Any) -> Any:
    if hasattr(values, "toarray"):
        values = values.toarray()
    kind = wanted.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64", "string": "object", "bool": "bool"}.get(kind, kind)
    array = np.asarray(values)
    array = array.astype(str).astype(object) if dtype == "object" else array.astype(dtype)
    rank = len(wanted.shape or ())
    return array.reshape(-1, 1) if array.ndim == 1 and rank == 2 else array


def _plain(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    answers = np.empty(len(value), dtype=object)  # a sequence: lists, or dicts of classes to probabilities
    answers[:] = value
    return answers


# -- MLflow -------------------------------------------------------------------------------------------------

MLFLOW_FOLDER = "mlflow_model"
_URI = re.compile(r"(runs|models|mlflow-artifacts|file|s3|gs|wasbs|abfss|hdfs|dbfs|https?):/")


@dataclass(frozen=True)
class MlflowModel:
    """A loaded MLflow model and the folder of its files."""

    pyfunc: Any
    folder: Path


class Mlflow(Framework):
    """What MLflow has logged or saved, by its folder or URI, asked through ``mlflow.pyfunc``.

    A loaded `PyFuncModel` of a run or a registry is found again; one of a folder is not.
    """

    name = "MLflow"
    format = "mlflow"
    stored = "`mlflow_model/`, the whole folder"
    guarantee = (
        "A copy of the folder: it needs no tracking server any more. Loads with the packages that MLflow noted; "
        "loading runs code."
    )
    bentoml = "bentoml.mlflow"
    lasting = True  # the code and the artifacts in the folder may be read at any time

    def owns(self, model: Any) -> bool:
        if isinstance(model, (str, Path)):
            return _URI.match(str(model)) is not None or _folder_of(model) is not None
        return isinstance(model, MlflowModel) or is_a(model, "mlflow.pyfunc", "PyFuncModel")

    def subject(self, model: Any) -> Any:
        if isinstance(model, MlflowModel):
            return model
        here = isinstance(model, (str, Path))
        if here and (found := _folder_of(model)):
            return MlflowModel(_loaded(found), found)
        place = Path(tempfile.mkdtemp(prefix="nbdeploy-mlflow-"))
        try:
            folder = _downloaded(str(model) if here else _uri_of(model), place)
            held = MlflowModel(_loaded(folder) if here else model, folder)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        weakref.finalize(held, shutil.rmtree, place, ignore_errors=True)
        return held

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        shutil.copytree(model.folder, folder / MLFLOW_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
        return {}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        return MlflowModel(_loaded(folder / MLFLOW_FOLDER), folder / MLFLOW_FOLDER)

    def can_predict(self, model: Any) -> bool:
        return True

    def predict(self, model: Any, inputs: Any) -> Any:
        return model.pyfunc.predict(inputs)

    def classes(self, model: Any) -> Any:
        return None

    def inputs(self, model: Any) -> Sequence[str] | None:
        schema = model.pyfunc.metadata.get_input_schema()
        if schema is None or not schema.has_input_names() or len(schema.required_input_names()) != len(schema.inputs):
            return None
        return [str(name) for name in schema.input_names()]

    def optional(self, model: Any) -> Collection[str]:
        schema = model.pyfunc.metadata.get_input_schema()
        if schema is None or not schema.has_input_names():
            return ()
        return set(schema.input_names()) - set(schema.required_input_names())

    def parameters(self, model: Any) -> Mapping[str, Any]:
        meta = model.pyfunc.metadata
        told = {"run_id": meta.run_id, "model_id": getattr(meta, "model_id", None), "flavors": ", ".join(meta.flavors)}
        return {name: value for name, value in told.items() if value}

    def training(self, model: Any) -> Any:
        try:
            example = model.pyfunc.metadata.load_input_example(str(model.folder))
        except FileNotFoundError:
            example = None
        if example is None:
            msg = "the MLflow model was logged without an input example"
            raise SaveError(msg, "Pass X=X_train, or log it with input_example=X_train.head().")
        return example


def _folder_of(model: str | Path) -> Path | None:
    path = Path(model).expanduser()
    place = path.parent if path.name == "MLmodel" else path
    try:
        return place.absolute() if (place / "MLmodel").is_file() else None
    except OSError:  # a name that no file can have
        return None


def _mlflow() -> Any:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    try:
        import mlflow.artifacts
        import mlflow.pyfunc
    except ImportError as error:
        msg = "an MLflow model needs the package mlflow"
        raise SaveError(msg, "pip install mlflow") from error
    return mlflow


def _loaded(folder: Path) -> Any:
    mlflow = _mlflow()
    try:
        return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    except Exception as error:  # MLflow's own, or the model's
        msg = f"MLflow cannot load the model in {folder}: {type(error).__name__}: {error}"
        raise SaveError(msg, "mlflow.pyfunc.load_model(folder) must work.", traceback.format_exc()) from error


def _downloaded(uri: str, place: Path) -> Path:
    mlflow = _mlflow()
    bar = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    before = os.environ.get(bar)
    os.environ[bar] = "false"
    try:
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(place))
    except Exception as error:  # any store's errors
        msg = f"MLflow finds no model at {uri}: {type(error).__name__}: {error}"
        raise SaveError(msg, "Is MLFLOW_TRACKING_URI the one that it was logged to?") from error
    finally:
        os.environ.pop(bar)
        if before is not None:
            os.environ[bar] = before
    folder = _folder_of(path)
    if folder is None:
        msg = f"there is no MLmodel file at {uri}"
        raise SaveError(msg, "Name the model's own folder: runs:/RUN_ID/NAME or models:/NAME/VERSION.")
    return folder


def _uri_of(pyfunc: Any) -> str:
    meta = pyfunc.metadata
    if getattr(pyfunc, "model_id", None):
        return f"models:/{pyfunc.model_id}"
    if meta.run_id and meta.artifact_path:
        return f"runs:/{meta.run_id}/{meta.artifact_path}"
    msg = "this PyFuncModel does not tell where its files are"
    raise SaveError(msg, "Pass the path or URI that you loaded it from.")


STORED: tuple[Framework, ...] = (Onnx(), Mlflow())
