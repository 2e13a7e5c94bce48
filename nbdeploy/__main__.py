"""``nbdeploy VERB`` in a shell: arguments that name models and frames are files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbdeploy import __version__, verbs
from nbdeploy.errors import InputError, NbdeployError, NotFound
from nbdeploy.verbs import Kind


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0 only when it did what was asked."""
    arguments = list(sys.argv[1:] if words is None else words)
    as_json = "--json" in arguments[:1]
    arguments = arguments[1:] if as_json else arguments
    if arguments[:1] == ["--version"]:
        print(f"nbdeploy {__version__}")
        return 0
    try:
        return _answered(arguments, as_json)
    except BrokenPipeError:  # `nbdeploy predictions NAME | head`
        sys.stderr.close()
        return 0


def _answered(arguments: Sequence[str], as_json: bool) -> int:
    try:
        return _run(arguments, as_json)
    except verbs.HelpAsked as asked:
        print(asked, flush=True)
        return 0
    except NbdeployError as error:
        said = json.dumps(error.to_dict()) if as_json else f"nbdeploy: {error}"
        print(said.replace("%deploy ", "nbdeploy "), file=sys.stdout if as_json else sys.stderr)
        return 2 if isinstance(error, verbs.UsageProblem) else 1
    except KeyboardInterrupt:
        print("nbdeploy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # a disk that is full or refuses
        if as_json:
            print(json.dumps(NbdeployError(str(error)).to_dict()))
        else:
            print(f"nbdeploy: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str], as_json: bool) -> int:
    verb, values = verbs.parse(arguments, "nbdeploy")
    if verb.name == "panel":
        msg = "the panel needs a notebook"
        raise NbdeployError(msg, "In JupyterLab: %load_ext nbdeploy, then %deploy panel. Here: nbdeploy status.")
    resolved = verbs.resolve(verb, values, read)
    result = verb(resolved)
    if as_json:
        import orjson

        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        print(orjson.dumps(verbs.to_dict(result), default=str, option=option).decode(), flush=True)
    else:
        print(_text(result), flush=True)
    if said := verbs.note(verb, result):
        print(said.replace("%deploy ", "nbdeploy "), file=sys.stderr)
    return 0 if verb.succeeded(result, resolved) else getattr(result, "exit_code", 1)


def read(kind: Kind, text: str) -> Any:
    """The object in a file: a model, a frame or labels."""
    path = Path(text).expanduser()
    if kind is Kind.MODEL and (":/" in text or path.is_dir() or path.suffix == ".onnx"):
        return text  # a stored model: its framework reads it
    if not path.is_file():
        msg = f"there is no file {text!r}"
        raise NotFound(msg, "In a shell, models and frames are files.")
    try:
        if kind is Kind.MODEL:
            return _model(path)
        frame = _frame(path)
    except NbdeployError:
        raise
    except Exception as error:
        msg = f"{text!r} cannot be read: {type(error).__name__}: {error}"
        raise InputError(msg) from error
    if frame is None:
        msg = f"{text!r} is neither a .parquet nor a .csv nor a .npy file"
        raise InputError(msg)
    if kind is Kind.LABELS:
        return frame.iloc[:, 0] if getattr(frame, "shape", ())[1:] == (1,) and hasattr(frame, "iloc") else frame
    return frame


def _frame(path: Path) -> Any:
    if path.suffix == ".parquet":
        from nbdeploy.artifact import read_frame

        return read_frame(path)
    if path.suffix == ".csv":
        import pandas as pd

        return pd.read_csv(path)
    if path.suffix == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    return None


def _model(path: Path) -> Any:
    if path.suffix == ".joblib":
        import joblib

        return joblib.load(path)
    if path.suffix in (".pkl", ".pickle"):
        import cloudpickle

        with path.open("rb") as file:
            return cloudpickle.load(file)
    msg = f"{str(path)!r} is not a .pkl or .joblib file"
    raise InputError(msg, hint="An .onnx file, and the folder or URI of an MLflow model, will do too.")


def _text(result: Any) -> str:
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        return result.to_string() if len(result) else "nothing yet"
    if isinstance(result, list):
        return "\n".join(map(repr, result)) or "nothing yet"
    return result if isinstance(result, str) else repr(result)


if __name__ == "__main__":
    sys.exit(main())
