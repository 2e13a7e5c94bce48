"""Who is measured: how each service is started and asked. What runs inside of it is in a file beside this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
OURS, UNLOGGED, PLAIN = "nbdeploy", "nbdeploy without its log", "BentoML"


@dataclass(frozen=True)
class Peer:
    """One way to serve a model.

    Attributes
    ----------
    venv : str
        Of ``VENV.txt``, its pinned requirements; empty for our own environment.
    prepare : callable
        The arguments of a Python program that makes what `start` needs, of model folder, own folder and ports; or None.
    start : callable
        The arguments of the Python program that serves, of container (``frames`` or ``arrays``), model folder, own
        folder and ports.
    paths : callable
        Where it predicts and where it says that it is ready, of the container.
    body : callable
        A request, of rows as a list of records or, for arrays, a list of lists.
    values : callable
        The predictions in a parsed answer.
    note : str
        What a reader has to know about the way it is served.
    """

    name: str
    venv: str
    start: Callable[[str, Path, Path, list[int]], list[str]]
    paths: Callable[[str], tuple[str, str]]
    body: Callable[[list[Any]], Any]
    values: Callable[[Any], list[Any]]
    prepare: Callable[[Path, Path, list[int]], list[str]] | None = None
    note: str = ""


def _bentoml(suffix: str) -> Callable[[str, Path, Path, list[int]], list[str]]:
    def start(container: str, _model: Path, _own: Path, ports: list[int]) -> list[str]:
        service = f"bentoml_service:{container.title()}{suffix}"
        return [
            "-m",
            "bentoml",
            "serve",
            service,
            "--working-dir",
            str(HERE),
            "--host",
            "127.0.0.1",
            "--port",
            str(ports[0]),
        ]

    return start


def _uvicorn(app: str) -> Callable[[str, Path, Path, list[int]], list[str]]:
    def start(_container: str, _model: Path, _own: Path, ports: list[int]) -> list[str]:
        options = ["--port", str(ports[0]), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        return ["-m", "uvicorn", app, "--app-dir", str(HERE), "--host", "127.0.0.1", *options]

    return start


def _mlserver(batch: int) -> Peer:
    return Peer(
        "MLServer, batching" if batch else "MLServer", "mlserver",
        prepare=lambda model, own, ports: [
            str(HERE / "mlserver_settings.py"), str(model), str(own / "settings"), json.dumps(ports), str(batch)
        ],
        start=lambda _container, _model, own, _ports: [
            "-c", "from mlserver.cli import main; main()", "start", str(own / "settings")
        ],
        paths=lambda _container: ("/v2/models/flights/infer", "/v2/models/flights/ready"),
        body=_tensors, values=lambda answer: answer["outputs"][0]["data"],
        note="one worker beside the process that speaks HTTP" + ("; `max_batch_size` 32, `max_batch_time` 10 ms" if batch else ""),
    )  # fmt: skip


def _tensors(rows: list[Any]) -> dict[str, Any]:
    """Open Inference Protocol: a tensor, or a tensor per column."""
    if isinstance(rows[0], list):
        flat = [value for row in rows for value in row]
        return {"inputs": [{"name": "X", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": flat}]}
    kinds = {int: "INT64", float: "FP64", str: "BYTES"}
    inputs = []
    for name, first in rows[0].items():
        words = {"parameters": {"content_type": "str"}} if isinstance(first, str) else {}
        data = [row[name] for row in rows]
        inputs.append({"name": name, "shape": [len(rows), 1], "datatype": kinds[type(first)], "data": data, **words})
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


def _mlflow_body(rows: list[Any]) -> dict[str, Any]:
    if isinstance(rows[0], list):
        return {"inputs": rows}
    return {"dataframe_split": {"columns": [*rows[0]], "data": [[*row.values()] for row in rows]}}


def _ours(name: str, note: str) -> Peer:
    return Peer(
        name, "",
        start=lambda _container, model, _own, ports: [str(HERE / "nbdeploy_deploy.py"), str(model), str(ports[0])],
        paths=lambda _container: ("/predict", "/readyz"),
        body=lambda rows: rows, values=lambda answer: answer["predictions"], note=note,
    )  # fmt: skip


def _vetiver_body(rows: list[Any]) -> list[Any]:
    return [{str(i): value for i, value in enumerate(row)} if isinstance(row, list) else row for row in rows]


PEERS = [
    _ours(OURS, "`nbdeploy.deploy(model, name, X, y)`: validation, log and metrics on"),
    Peer(
        PLAIN, "bentoml", start=_bentoml(""), paths=lambda _container: ("/predict", "/readyz"),
        body=lambda rows: {"X": rows}, values=lambda answer: answer, note="`@bentoml.api` with a DataFrame or an array",
    ),
    Peer(
        "BentoML, batching", "bentoml", start=_bentoml("Batched"), paths=lambda _container: ("/predict", "/readyz"),
        body=lambda rows: {"X": rows}, values=lambda answer: answer,
        note="`batchable=True` with a list of pydantic models or an array; with DataFrames it does not work. After a burst its dispatcher goes on waiting for company",
    ),
    Peer(
        "FastAPI", "fastapi", start=_uvicorn("fastapi_app:app"), paths=lambda container: (f"/{container}", "/ready"),
        body=lambda rows: rows, values=lambda answer: answer["predictions"],
        note="typed fields, `def` endpoint in the thread pool, no access log",
    ),
    Peer(
        "MLflow", "mlflow",
        prepare=lambda model, own, _ports: [str(HERE / "mlflow_save.py"), str(model), str(own / "saved")],
        start=lambda _container, _model, own, ports: [
            "-m", "mlflow", "models", "serve", "-m", str(own / "saved"), "--env-manager", "local", "--workers", "1",
            "--host", "127.0.0.1", "--port", str(ports[0]),
        ],
        paths=lambda _container: ("/invocations", "/ping"),
        body=_mlflow_body, values=lambda answer: answer["predictions"],
        note="`mlflow models serve` with the model's signature, `--env-manager local`",
    ),
    _mlserver(0),
    _mlserver(32),
    Peer(
        "vetiver", "vetiver", start=_uvicorn("vetiver_app:app"), paths=lambda _container: ("/predict", "/ping"),
        body=_vetiver_body, values=lambda answer: answer["predict"], note="`VetiverAPI` with its prototype checked",
    ),
]  # fmt: skip
WITHOUT_LOG = _ours(UNLOGGED, "")


def rows_of(X: pd.DataFrame | Any) -> list[Any]:
    """The rows as JSON values: records of a frame, lists of an array."""
    return X.to_dict("records") if hasattr(X, "to_dict") else X.tolist()
