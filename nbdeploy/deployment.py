"""Running services: started detached, found again from any process, stopped without a trace."""

from __future__ import annotations

import errno
import hashlib
import html
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nbdeploy import model_store, processes
from nbdeploy.artifact import SERVICE, failure, tampered
from nbdeploy.errors import NotFound, PortBusy, ServiceError, did_you_mean
from nbdeploy.home import check_name, folder, home, lock, read_json, write_atomic, write_json
from nbdeploy.model_store import ModelVersion, Staged, service_class
from nbdeploy.requirements import Requirement

HOST = "127.0.0.1"
START_TIMEOUT = 120.0
TAIL_BYTES = 1 << 20
STOP_GRACE = 32.0  # a little more than the supervisor gives its workers


@dataclass(frozen=True)
class Deployment:
    """A running service.

    Attributes
    ----------
    name, version : str
        ``flight-delay`` and the version that answers, ``v1``.
    url : str
        Without a trailing slash.
    pid : int
        Of the supervisor. With `started` and `token` it is an identity that a recycled pid cannot take.
    log : str
        The file that the service writes what it has to say to.
    since : str
        When it was started, ISO 8601, UTC.
    """

    name: str
    version: str
    digest: str
    url: str
    pid: int
    started: float
    token: str
    log: str
    since: str

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        return processes.is_ours(self.pid, self.started, self.token)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return _answers(self.port, timeout=2)

    @property
    def state(self) -> str:
        """``live``, ``starting`` (a worker is being replaced) or ``stopped``."""
        if not self.alive:
            return "stopped"
        return "live" if self.ready else "starting"

    def to_dict(self) -> dict[str, Any]:
        facts = {key: value for key, value in asdict(self).items() if key not in ("token", "started")}
        return {**facts, "state": self.state}

    def __repr__(self) -> str:
        state = "running" if self.alive else "stopped"
        return f"Deployment({self.name}:{self.version} {state} at {self.url}, pid {self.pid})"

    def _repr_html_(self) -> str:
        url, name = html.escape(self.url), html.escape(f"{self.name}:{self.version}")
        state = "running" if self.alive else "stopped"
        return f'<b>{name}</b> {state} at <a href="{url}" target="_blank" rel="noopener">{url}</a>'


def find(name: str) -> Deployment | None:
    """The running deployment of that name, or None."""
    facts = read_json(_state_path(name))
    if facts is None:
        return None
    known = {field.name for field in fields(Deployment)}
    deployment = Deployment(**{key: value for key, value in facts.items() if key in known})
    return deployment if deployment.alive else None


def get(name: str) -> Deployment:
    """The running deployment of that name.

    Raises
    ------
    NotFound
        It does not run, or nothing is saved under that name.
    """
    if (deployment := find(name)) is not None:
        return deployment
    model_store.get(name)  # raises, with the closest name, where nothing is saved as `name`
    msg = f"{name!r} is not running"
    raise NotFound(msg, f"Start it: %deploy serve {name}.")


def running_deployments() -> list[Deployment]:
    """Every deployment that runs, by name."""
    stems = sorted(path.stem for path in (home() / "deployments").glob("*.json"))
    return [found for stem in stems if (found := find(stem)) is not None]


@dataclass(frozen=True)
class Probation:
    """A service that answers and is not kept yet.

    Attributes
    ----------
    keep
        Keeps it, given the version to serve from then on.
    loaded : list of Requirement
        The distributions that a staged version's worker loaded for the model.
    """

    keep: Callable[[ModelVersion], Deployment]
    loaded: list[Requirement]


@contextmanager
def launch(
    subject: ModelVersion | Staged,
    *,
    port: int | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[Probation]:
    """Start a service on probation; it is ended after the block unless it was kept.

    For a staged version the worker's start is its rehearsal: one process imports the model's libraries once.

    Parameters
    ----------
    port : int, optional
        The wished port. By default the one that it had, or a free one.
    on_wait
        Called about every 0.05 s while waiting.

    Raises
    ------
    PortBusy
        With who holds the port, where it is one of ours.
    ServiceError
        It did not become ready; the end of its log is in ``details``.
    SaveError
        The version could not be loaded or did not answer as the kernel did.
    """
    name = subject.name
    origin = subject.folder if isinstance(subject, Staged) else subject.path
    service = _service_file(origin, subject.files)
    run = folder("run", name)
    spec_path, outcome, log_path = run / "spec.json", run / "outcome.json", run / "service.log"
    listener = _listen(name, port, (read_json(spec_path) or {}).get("port", 0))
    token = secrets.token_hex(16)
    metrics = run / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir(mode=0o700)
    outcome.unlink(missing_ok=True)
    spec = {
        "name": name, "version": subject.version, "files": dict(subject.files), "outcome": str(outcome),
        "folder": str(run), "service": f"service:{service_class(name)}",
        "descriptor": listener.fileno(), "port": listener.getsockname()[1], "metrics": str(metrics),
        "state": str(_state_path(name)),
    }  # fmt: skip
    write_atomic(run / SERVICE, service)
    # A rehearsal answers the whole sample; a later start proves itself on its first rows.
    write_json(spec_path, {**spec, "path": str(origin), **({"rows": None} if isinstance(subject, Staged) else {})})
    with suppress(FileNotFoundError):
        log_path.replace(run / "service.log.1")
    try:
        with os.fdopen(os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "nbdeploy.supervisor", str(spec_path)],
                cwd=run, env=processes.environment(**{processes.IDENTITY: token}), stdin=subprocess.PIPE,
                stdout=log, stderr=subprocess.STDOUT, pass_fds=[listener.fileno()], start_new_session=True, umask=0o077,
            )  # fmt: skip
        bound = listener.getsockname()[1]
    finally:
        listener.close()
    kept = False

    def keep(version: ModelVersion) -> Deployment:
        nonlocal kept
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        deployment = Deployment(
            name, version.version, version.digest, f"http://{HOST}:{bound}", process.pid, processes.started(process.pid), token,
            str(log_path), now,
        )  # fmt: skip
        write_json(spec_path, {**spec, "path": str(version.path), "files": dict(version.files)})
        write_json(_state_path(name), asdict(deployment))
        stdin = process.stdin
        assert stdin is not None
        stdin.write(b"keep\n")
        stdin.close()
        kept = True
        return deployment

    try:
        _await_ready(process, bound, name, outcome=outcome, log=log_path, on_wait=on_wait)
        loaded = (read_json(outcome) or {}).get("loaded", [])
        yield Probation(keep, [Requirement.from_dict(each) for each in loaded])
    finally:
        if not kept:
            processes.end(processes.family(process.pid, token), grace=5, first=process.pid)
            with suppress(Exception):
                process.wait(5)
            if process.stdin is not None:
                process.stdin.close()
        processes.reap(process)


def check_port(name: str, port: int | None) -> None:
    """Raise `PortBusy` where `port` could not be had now."""
    if port is not None:
        _listen(name, port, 0).close()


def stop(name: str) -> Deployment:
    """End a deployment and every process of it; requests in flight are answered first.

    Raises
    ------
    NotFound
        It is not running.
    """
    with lock("serve", check_name(name)):
        deployment = get(name)
        processes.end(processes.family(deployment.pid, deployment.token), grace=STOP_GRACE, first=deployment.pid)
        _state_path(name).unlink(missing_ok=True)
        shutil.rmtree(home() / "run" / name / "metrics", ignore_errors=True)
        return deployment


def log_tail(name: str, lines: int = 50) -> str:
    """The last lines that the service wrote, running or not, at most 1 MiB.

    Raises
    ------
    NotFound
        It never ran.
    """
    path = home() / "run" / check_name(name) / "service.log"
    if lines < 1:
        msg = f"{lines} lines cannot be shown"
        raise ServiceError(msg, "Ask for 1 or more.")
    if not path.is_file():
        known = [folder.parent.name for folder in (home() / "run").glob("*/service.log")]
        msg = f"no deployment {name!r} has a log"
        raise NotFound(msg, did_you_mean(name, known))
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


# -- helpers ------------------------------------------------------------------------------------------------


def _service_file(origin: Path, files: Mapping[str, str]) -> bytes:
    """The service file that BentoML runs before anything of ours: what is checked is what is run."""
    try:
        content = (origin / SERVICE).read_bytes()
    except FileNotFoundError:
        raise tampered(origin, SERVICE) from None
    if hashlib.sha256(content).hexdigest() != files.get(SERVICE):
        raise tampered(origin, SERVICE)
    return content


def _listen(name: str, port: int | None, former: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind((HOST, former if port is None else port))
        except OSError:
            if port is not None:
                raise
            listener.bind((HOST, 0))  # its former port went to somebody else
        listener.listen(2048)  # taken for good now: SO_REUSEADDR lets two sockets bind as long as neither listens
    except OverflowError as error:
        listener.close()
        msg = f"{port} is not a port"
        raise PortBusy(msg, "Choose 1 to 65535, or leave --port out.") from error
    except OSError as error:
        listener.close()
        holder = next((other for other in running_deployments() if other.port == port), None)
        if error.errno == errno.EADDRINUSE:
            who = f"the deployment {holder.name!r}" if holder else "another program"
            msg = f"port {port} for {name!r} is taken by {who}"
        else:
            msg = f"port {port} for {name!r} cannot be used: {error.strerror}"
        raise PortBusy(msg, "Choose another, or leave --port out for a free one.") from error
    listener.set_inheritable(True)
    return listener


def _await_ready(
    process: subprocess.Popen[bytes], port: int, name: str, *, outcome: Path, log: Path, on_wait: Callable[[], None]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        code = process.poll()
        if code is not None:
            said = log.read_text(errors="replace")[-4000:]
            if (reason := read_json(outcome)) is not None:
                raise failure(reason, code, said)
            last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            msg = f"{name} did not start (exit code {code}): {last:.200}"
            raise ServiceError(msg, f"Its whole log: %deploy logs {name}.", said)
        if _answers(port, timeout=0.5):
            return
        if time.monotonic() > deadline:
            msg = f"{name} was not ready within {START_TIMEOUT:.0f} s and was ended"
            raise ServiceError(msg, f"See %deploy logs {name}.", log.read_text(errors="replace")[-4000:])
        on_wait()
        time.sleep(0.02)


def _answers(port: int, timeout: float) -> bool:
    # Not urllib: it would ask a proxy of the environment. While a worker starts, the request waits in the
    # listening socket's queue and is answered the moment that the worker is there.
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _state_path(name: str) -> Path:
    return folder("deployments") / f"{check_name(name)}.json"
