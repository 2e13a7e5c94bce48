"""What BentoML runs: a plain base class, whose instance opens the ASGI application that answers.

Loads nothing of the notebook side. The class itself is in a generated file that subclasses `Predictor` (see
`nbdeploy.model_store.service_source`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbdeploy.access import guard_of
from nbdeploy.endpoint import WARM_ROWS, Endpoint
from nbdeploy.errors import NbdeployError, RehearsalError
from nbdeploy.home import read_json, write_json
from nbdeploy.http_app import HttpApp
from nbdeploy.serve_options import MIDDLEWARE, READY, SPEC, ServeOptions

# Who asks for BentoML's own observers pays for them.
_observed = bool(os.environ.get(MIDDLEWARE))

# Where SageMaker and Vertex AI expect a container to listen, which they say by environment.
_port = os.environ.get("SAGEMAKER_BIND_TO_PORT") or os.environ.get("AIP_HTTP_PORT") or ""

BENTOML_OPTIONS: dict[str, Any] = {
    **({"http": {"port": int(_port)}} if _port.isdigit() else {}),
    "traffic": {"timeout": 3600},  # each request has a deadline of ours
    "logging": {"access": {"enabled": _observed}},
    "metrics": {"enabled": _observed},
    "tracing": {} if _observed else {"excluded_urls": ".*"},
}


class Predictor:
    """One worker's share of a deployment: it loads the version, and opens `app`.

    Subclasses, which are generated, set `app` and `tag`. Raises when the version cannot be loaded,
    is not the one that was saved, or does not reproduce its expected outputs: a worker that would
    answer wrongly never starts.
    """

    app: HttpApp
    tag: str

    def __init__(self) -> None:
        spec = read_json(Path(os.environ[SPEC])) if os.environ.get(SPEC) else _bento_spec(self.tag)
        if parent := spec.get("supervisor"):
            threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
        try:
            self._start(spec)
        except NbdeployError as error:
            _tell(spec, error)
            raise
        except Exception as error:
            # Without this the starter would only see the web server's last words.
            message = f"the service cannot start: {type(error).__name__}: {error}"
            _tell(spec, RehearsalError(message, "See error.details.", traceback.format_exc()))
            raise

    def _start(self, spec: dict[str, Any]) -> None:
        options = ServeOptions.from_dict(spec["options"]) if "options" in spec else ServeOptions.of_environment()
        guard = guard_of(spec)
        rows = spec.get("rows", WARM_ROWS)
        endpoint = Endpoint(
            spec["name"], spec["version"], Path(spec["path"]), spec["files"], options, rows=rows,
            folder=Path(spec["metrics"]) if "metrics" in spec else None, worker=Path(os.environ.get(READY, "")).name,
        )  # fmt: skip
        if spec.get("outcome") and rows is None:  # this start is the rehearsal
            write_json(Path(spec["outcome"]), {"loaded": [found.to_dict() for found in endpoint.loaded()]})
        self.endpoint = endpoint
        self.app.open(endpoint, guard)


def application() -> HttpApp:
    """The application that a generated service file mounts, and its `Predictor` opens."""
    return HttpApp()


# -- helpers ------------------------------------------------------------------------------------------------


def _tell(spec: dict[str, Any], error: NbdeployError) -> None:
    # For who started this worker and waits for it.
    if spec.get("outcome"):
        with suppress(OSError):
            write_json(Path(spec["outcome"]), error.to_dict() | {"message": error.message, "hint": error.hint})


def _bento_spec(tag: str) -> dict[str, Any]:
    import bentoml

    from nbdeploy.model_store import recorded_files

    name, _, version = tag.partition(":")
    stored = bentoml.models.get(tag)
    return {"name": name, "version": version, "path": stored.path, "files": recorded_files(name, version)}


def _end_with_parent(parent: int) -> None:
    # A supervisor that was killed cannot tell its workers: they look. The grace is uvicorn's to finish requests.
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    os._exit(1)
