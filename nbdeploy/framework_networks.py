"""Neural networks: PyTorch, TorchScript, Keras and the pipelines of Hugging Face."""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nbdeploy import pickling
from nbdeploy.errors import SaveError
from nbdeploy.framework import Framework, Pickled, as_numpy, comes_from, is_a

BATCH = 256
CUSTOM = "custom_objects.pkl"


class PyTorch(Framework):
    """A module, evaluated on the CPU without gradients, with the dropout and batch normalisation of evaluation.

    It gets tensors: an array with its dtype, a frame of numbers with the dtype of the module's parameters (all
    integers stay integers), a dict by the names of ``forward``'s arguments where they are the same, text as it is. A
    module with a ``predict`` of its own gets there what it was saved with. BentoML's module has to be told
    ``load_model(tag, weights_only=False)``.
    """

    name = "PyTorch"
    stored = "`saved_model.pt`"
    guarantee = (
        "The module itself by `torch.save`, classes of the notebook included. Loads on a CPU with the Python and the "
        "PyTorch it was saved with; loading runs code."
    )
    bentoml = "bentoml.pytorch"

    def owns(self, model: Any) -> bool:
        # A script cannot be pickled, and what Keras does with PyTorch is Keras'.
        others = is_a(model, "torch.jit", "ScriptModule") or is_a(model, "keras", "Model")
        return is_a(model, "torch.nn", "Module") and not others

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        import torch

        torch.save(model, folder / "saved_model.pt", pickle_module=pickling)
        return {}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        import torch

        return torch.load(folder / "saved_model.pt", map_location="cpu", weights_only=False).eval()

    def predict(self, model: Any, inputs: Any) -> Any:
        import torch

        with _evaluated(model), torch.inference_mode():
            if callable(getattr(model, "predict", None)):
                return as_numpy(model.predict(inputs))
            given = _tensors(model, inputs)
            named = isinstance(given, dict) and given.keys() <= set(_arguments(model))
            return as_numpy(model(**given) if named else model(given))

    def parameters(self, model: Any) -> Mapping[str, Any]:
        return {"parameters": sum(int(each.numel()) for each in model.parameters())}

    def subject(self, model: Any) -> Any:
        return getattr(model, "_orig_mod", model)  # what torch.compile was given: compiled code is not stored


class TorchScript(PyTorch):
    """A scripted or traced module."""

    name = "TorchScript"
    format = "torchscript"
    guarantee = "PyTorch's own format: later versions read it, and none of your Python code is needed. Loads on a CPU."
    bentoml = "bentoml.torchscript"

    def owns(self, model: Any) -> bool:
        return is_a(model, "torch.jit", "ScriptModule")

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        import torch

        torch.jit.save(model, folder / "saved_model.pt")
        return {}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        import torch

        return torch.jit.load(folder / "saved_model.pt", map_location="cpu").eval()

    def subject(self, model: Any) -> Any:
        return model


class Keras(Framework):
    """A Keras 3 model on any backend. Outputs have their names where there are several.

    BentoML's module for Keras needs TensorFlow.
    """

    name = "Keras"
    format = "keras"
    stored = "`saved_model.keras`; classes of yours in `custom_objects.pkl`"
    guarantee = (
        "Keras' own format, loaded in its safe mode with the backend it was saved with. Later versions read it. "
        "Layers and functions of yours are pickled beside it: loading those runs code."
    )
    bentoml = ""

    def owns(self, model: Any) -> bool:
        return is_a(model, "keras", "Model")

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        import keras

        custom: dict[str, Any] = {}
        for layer in model._flatten_layers():  # noqa: SLF001  the public `layers` are not nested
            function = getattr(layer, "function", None)
            if isinstance(layer, keras.layers.Lambda) and getattr(function, "__name__", "") == "<lambda>":
                msg = f"the layer {layer.name!r} is a Lambda of a lambda, which Keras' safe mode does not load"
                raise SaveError(msg, "Give it a function defined by def, or write a subclass of keras.layers.Layer.")
            custom |= _custom_objects(layer)
        model.save(folder / "saved_model.keras")
        if custom:
            with (folder / CUSTOM).open("wb") as file:
                pickling.dump(custom, file)
        return {"backend": keras.config.backend()}

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = facts["backend"]
        import keras

        if keras.config.backend() != facts["backend"]:
            msg = f"the model needs Keras on {facts['backend']}, and here Keras runs on {keras.config.backend()}"
            raise SaveError(msg, f"Set KERAS_BACKEND={facts['backend']} before Keras is imported.")
        custom = {}
        if (folder / CUSTOM).is_file():
            with (folder / CUSTOM).open("rb") as file:
                custom = pickling.load(file)
        return keras.models.load_model(folder / "saved_model.keras", custom_objects=custom, compile=False)

    def predict(self, model: Any, inputs: Any) -> Any:
        given = _keras_inputs(model, inputs)
        first = next(iter(given.values())) if isinstance(given, dict) else given
        few = len(first) <= BATCH
        raw = model.predict_on_batch(given) if few else model.predict(given, batch_size=BATCH, verbose=0)
        if isinstance(raw, (list, tuple)):
            raw = dict(zip(_output_names(model, len(raw)), raw, strict=True))
        return as_numpy(raw)

    def inputs(self, model: Any) -> Sequence[str] | None:
        names = [each.name for each in getattr(model, "inputs", None) or ()]
        return names if len(names) > 1 else None

    def parameters(self, model: Any) -> Mapping[str, Any]:
        return {"parameters": int(model.count_params())} if model.built else {}


class Transformers(Framework):
    """A pipeline of Hugging Face, asked with one string, image or record per row; the answers are JSON objects.

    BentoML's module for them is deprecated, and wants a pickled class.
    """

    name = "Hugging Face pipeline"
    format = "safetensors"
    stored = "`pipeline/`, as `save_pretrained` writes it"
    guarantee = (
        "Weights in safetensors and the tokenizer's own files: later versions read them, loading runs no code of the "
        "files and downloads nothing. Loads on a CPU."
    )
    bentoml = ""

    def owns(self, model: Any) -> bool:
        return is_a(model, "transformers.pipelines.base", "Pipeline") and _is_plain(model)

    def save(self, model: Any, folder: Path) -> Mapping[str, Any]:
        place = folder / "pipeline"
        with _quiet():
            model.save_pretrained(place)
            if getattr(model, "processor", None) is not None:
                model.processor.save_pretrained(place)
        parameters = {
            stage: _plain_only(getattr(model, f"_{stage}_params"), stage)
            for stage in ("preprocess", "forward", "postprocess")
        }
        return {
            "task": _task(model), "class": type(model).__name__, "parameters": parameters,
            "batch_size": model._batch_size,  # noqa: SLF001  where else
        }  # fmt: skip

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is here
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import transformers

        model = transformers.pipeline(
            facts["task"], model=str(folder / "pipeline"), pipeline_class=getattr(transformers, facts["class"]),
            device=-1, dtype="auto", trust_remote_code=False, batch_size=facts["batch_size"],
        )  # fmt: skip
        model.model.eval()
        for stage, given in facts["parameters"].items():
            getattr(model, f"_{stage}_params").update(given)
        return model

    def predict(self, model: Any, inputs: Any) -> Any:
        asked = _asked(model, inputs)
        with _evaluated(model.model):
            given = model(asked)
        if not isinstance(given, list) or (len(given) != len(asked) == 1):
            given = [given]
        answers = np.empty(len(given), dtype=object)
        answers[:] = given
        return answers

    def inputs(self, model: Any) -> Sequence[str] | None:
        return None

    def parameters(self, model: Any) -> Mapping[str, Any]:
        return {"task": _task(model), "model": type(model.model).__name__}


class TransformersObject(Pickled, Transformers):
    """A pipeline with a class of one's own in it."""

    guarantee = (
        "The pipeline itself, classes of the notebook included. Loads with the transformers and PyTorch it was saved "
        "with; loading runs code."
    )

    def owns(self, model: Any) -> bool:
        return is_a(model, "transformers.pipelines.base", "Pipeline")

    def load(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        model = super().load(folder, facts)
        model.model.eval()
        return model


# -- PyTorch ------------------------------------------------------------------------------------------------


@contextmanager
def _evaluated(module: Any) -> Iterator[None]:
    """In evaluation while the block runs; afterwards each part trains on if it did before."""
    training = [part for part in module.modules() if part.training] if hasattr(module, "modules") else []
    try:
        if training:
            module.eval()
        yield
    finally:
        for part in training:
            part.training = True


def _tensors(model: Any, inputs: Any) -> Any:
    import torch

    first = next(iter(model.parameters()), None)
    device = None if first is None else first.device

    def tensor(values: Any) -> Any:
        array = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
        return values if array.dtype.kind not in "biufc" else torch.as_tensor(array, device=device)

    if isinstance(inputs, Mapping):
        return {name: tensor(values) for name, values in inputs.items()}
    if isinstance(inputs, list):
        return inputs
    if not hasattr(inputs, "columns"):
        return tensor(inputs)
    array = (inputs.to_pandas() if hasattr(inputs, "to_pandas") else inputs).to_numpy()
    if array.dtype == object:
        numbers = [np.asarray(inputs[name]) for name in inputs.columns]
        if any(column.dtype.kind not in "biuf" for column in numbers):
            return inputs
        array = np.column_stack(numbers)
    given = tensor(array)
    if first is None or not (first.dtype.is_floating_point and given.dtype.is_floating_point):
        return given
    return given.to(first.dtype)


def _arguments(model: Any) -> list[str]:
    if is_a(model, "torch.jit", "ScriptModule"):
        return [argument.name for argument in model.forward.schema.arguments[1:]]
    return list(inspect.signature(model.forward).parameters)


# -- Keras --------------------------------------------------------------------------------------------------


def _custom_objects(layer: Any) -> dict[str, Any]:
    """The layer's class, and what it holds, as far as Keras does not bring it: by each name that Keras looks for."""
    from keras.saving import get_registered_name

    held: list[Any] = [type(layer)]
    for value in vars(layer).values():
        if isinstance(value, types.FunctionType):
            held.append(value)
        elif callable(getattr(value, "get_config", None)):
            held.append(type(value))
    found: dict[str, Any] = {}
    for each in held:
        if each.__module__.partition(".")[0] not in ("keras", "torch", "tensorflow", "jax"):
            found |= {each.__name__: each, get_registered_name(each): each}
    return found


def _keras_inputs(model: Any, inputs: Any) -> Any:
    if not hasattr(inputs, "columns"):
        return inputs.toarray() if hasattr(inputs, "toarray") else inputs
    frame: Any = inputs.to_pandas() if hasattr(inputs, "to_pandas") else inputs
    known: Any = getattr(model, "inputs", None) or []
    if len(known) > 1:
        return {each.name: frame[each.name].to_numpy(dtype=_numpy_dtype(each.dtype)) for each in known}
    import keras

    return frame.to_numpy(dtype=_numpy_dtype(known[0].dtype if known else keras.config.floatx()))


def _numpy_dtype(dtype: str) -> Any:
    return object if dtype == "string" else np.dtype(dtype)


def _output_names(model: Any, count: int) -> list[str]:
    names = [str(name) for name in getattr(model, "output_names", None) or ()]
    return names if len(set(names)) == count else [str(i) for i in range(count)]


# -- Hugging Face -------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_plain(model: Any) -> bool:
    return type(model).__module__.startswith("transformers.") and all(
        comes_from(part, "transformers") and type(part).__module__ != "__main__"
        for part in (model.model, model.tokenizer, model.feature_extractor, model.image_processor)
        if part is not None
    )


def _task(model: Any) -> str:
    from transformers.pipelines import SUPPORTED_TASKS

    same = [task for task, known in SUPPORTED_TASKS.items() if known["impl"] is type(model)]
    return str(model.task if model.task in same or not same else same[0])


def _plain_only(parameters: Mapping[str, Any], stage: str) -> dict[str, Any]:
    found = {}
    for name, value in parameters.items():
        if name in ("generation_config", "tokenizer", "assistant_model", "assistant_tokenizer"):
            continue  # stored with the model, or not at all
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError as error:
            msg = f"the pipeline's {stage} parameter {name!r} is a {type(value).__name__}, which cannot be written down"
            raise SaveError(msg, "Make the pipeline with numbers, strings and lists.") from error
    return found


def _asked(model: Any, inputs: Any) -> list[Any]:
    if hasattr(inputs, "columns"):
        frame: Any = inputs.to_pandas() if hasattr(inputs, "to_pandas") else inputs
        names = [str(name) for name in frame.columns]
        if len(names) > 1:
            rows = zip(*(frame.iloc[:, i].tolist() for i in range(len(names))), strict=True)
            return [dict(zip(names, row, strict=True)) for row in rows]
        return list(frame.iloc[:, 0])
    if isinstance(inputs, np.ndarray) and inputs.ndim > 1:
        if inputs.ndim in (3, 4) and inputs.dtype == np.uint8 and model.image_processor is not None:
            from PIL import Image

            return [Image.fromarray(picture) for picture in inputs]
        return list(inputs)
    return list(inputs if isinstance(inputs, list) else np.asarray(inputs, dtype=object))


# Models of Keras on PyTorch are modules too.
NETWORKS: tuple[Framework, ...] = (Transformers(), TransformersObject(), Keras(), TorchScript(), PyTorch())
