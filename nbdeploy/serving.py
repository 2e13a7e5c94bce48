"""What BentoML runs: a plain base class, whose instance opens the ASGI application that answers.

Loads nothing of the notebook side. The class itself is in a generated file that subclasses `Predictor` (see
`nbdeploy.model_store.service_source`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbdeploy import model_store, routing
from nbdeploy.access import guard_of
from nbdeploy.endpoint import WARM_ROWS, Endpoint
from nbdeploy.errors import NbdeployError, RehearsalError
from nbdeploy.home import read_json, write_json
from nbdeploy.http_app import HttpApp
from nbdeploy.loaded_versions import LoadedVersions
from nbdeploy.routing import Traffic
from nbdeploy.serve_options import MIDDLEWARE, READY, SPEC, ServeOptions
from nbdeploy.shadow_feed import ShadowFeed

logger = logging.getLogger("bentoml.nbdeploy")

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

    @property
    def endpoint(self) -> Endpoint:
        """The live version. It is not kept here: what is unloaded must not stay in memory."""
        assert self.app.endpoint is not None
        return self.app.endpoint

    def _start(self, spec: dict[str, Any]) -> None:
        options = ServeOptions.from_dict(spec["options"]) if "options" in spec else ServeOptions.of_environment()
        guard = guard_of(spec)
        rows = spec.get("rows", WARM_ROWS)
        worker = Path(os.environ.get(READY, "")).name

        def load(version: str, *, rows: int | None = WARM_ROWS, leads: bool = False) -> Endpoint:
            place, files = Path(spec["path"]), spec["files"]
            if version != spec["version"] or not place.is_dir():  # it was committed meanwhile
                stored = model_store.get(spec["name"], version)
                place, files = stored.path, stored.files
            return Endpoint(
                spec["name"], version, place, files, options, rows=rows, leads=leads,
                folder=Path(spec["metrics"]) if "metrics" in spec else None, worker=worker,
                purpose=spec.get("purpose", ""),
            )  # fmt: skip

        traffic = routing.read(Path(spec["traffic"])) if spec.get("traffic") else None
        followed = traffic is not None and traffic.live is not None and traffic.generation >= spec["since"]
        endpoint = _first(spec["version"] if traffic is None or not followed else traffic, load, rows)
        if spec.get("outcome") and rows is None:  # this start is the rehearsal
            write_json(Path(spec["outcome"]), {"loaded": [found.to_dict() for found in endpoint.loaded()]})
        self.app.open(endpoint, guard)
        if spec.get("traffic"):

            def bring(version: str) -> Endpoint:
                loaded = load(version)
                self.app.prepare(loaded)
                return loaded

            metrics = Path(spec["metrics"]) if "metrics" in spec else None
            self.app.shadows = ShadowFeed(Path(spec["folder"]), metrics=metrics, worker=worker)
            self.app.versions = LoadedVersions(
                endpoint, Path(spec["traffic"]), since=spec["since"], load=bring, route=self.app.route,
                note=Path(spec["applied"]) / f"{worker}.json" if worker else None,
            )  # fmt: skip


def _first(wanted: str | Traffic, load: Callable[..., Endpoint], rows: int | None) -> Endpoint:
    """The version to begin with: the live one, or where it cannot be loaded any other that is routed to."""
    if isinstance(wanted, str):
        return load(wanted, rows=rows, leads=True)
    failure: Exception | None = None
    for version in dict.fromkeys((wanted.live, *wanted.candidates, *wanted.before[-1:])):
        try:
            return load(version, leads=True)
        except Exception as error:
            failure = failure or error
            logger.exception("%s is not loaded", version)
    assert failure is not None
    raise failure


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

    name, _, version = tag.partition(":")
    stored = bentoml.models.get(tag)
    return {"name": name, "version": version, "path": stored.path, "files": model_store.recorded_files(name, version)}


def _end_with_parent(parent: int) -> None:
    # A supervisor that was killed cannot tell its workers: they look. The grace is uvicorn's to finish requests.
    while os.getppid() == parent:
        time.sleep(0.25)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    os._exit(1)
