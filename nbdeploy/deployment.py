"""Running services: started detached, found again from any process, stopped without a trace."""

from __future__ import annotations

import html
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nbdeploy import credentials, listening, model_store, numbers_log, processes, routing
from nbdeploy.errors import NbdeployError, NotFound, ReleaseError, ServiceError, did_you_mean
from nbdeploy.home import check_name, folder, home, lock, read_json, write_json
from nbdeploy.model_store import ModelVersion, Staged
from nbdeploy.requirements import Requirement
from nbdeploy.serve_options import HOST, ServeOptions
from nbdeploy.service_start import LOG_FILE, READY, SPEC_FILE, START_TIMEOUT, Started, closing, started, trust_of

ASIDE, ASIDE_FILE = "aside-", "aside.json"  # the folder of a service for a gate, and who answers there
APPLIED = "applied"  # the folder in which every worker says which traffic it has applied
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
        Where this machine finds it, without a trailing slash.
    pid : int
        Of the supervisor. With `started` and `identity` it is somebody that a recycled pid cannot be.
    log : str
        The file that the service writes what it has to say to.
    since : str
        When it was started, ISO 8601, UTC.
    token_file : str
        The file with the token that requests have to carry; empty where they need none.
    options : ServeOptions
        How it was started.
    """

    name: str
    version: str
    digest: str
    url: str
    pid: int
    started: float
    identity: str
    log: str
    since: str
    token_file: str
    options: ServeOptions

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Deployment:
        known = {key: facts[key] for key in (field.name for field in fields(cls))}
        return cls(**{**known, "options": ServeOptions.from_dict(known["options"])})

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        return processes.is_ours(self.pid, self.started, self.identity)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        with suppress(ServiceError):  # a certificate that is gone
            return listening.answers(self.url, trust_of(self.options), timeout=2)
        return False

    @property
    def workers(self) -> int:
        """How many of its workers are ready to answer."""
        return _ready_workers(home() / "run" / self.name)

    @property
    def key(self) -> credentials.Key:
        """What a caller on this machine needs beside `url`."""
        return credentials.key_here(self.token_file, self.options.tls_cert)

    @property
    def state(self) -> str:
        """``live``, ``starting`` (a worker is being replaced) or ``stopped``."""
        if not self.alive:
            return "stopped"
        return "live" if self.ready else "starting"

    def to_dict(self) -> dict[str, Any]:
        facts = {key: value for key, value in asdict(self).items() if key not in ("identity", "started")}
        return {**facts, "state": self.state, "workers": self.workers}

    def __repr__(self) -> str:
        state = "running" if self.alive else "stopped"
        token = f", token in {self.token_file}" if self.token_file else ""
        return f"Deployment({self.name}:{self.version} {state} at {self.url}, pid {self.pid}{token})"

    def _repr_html_(self) -> str:
        url, name = html.escape(self.url), html.escape(f"{self.name}:{self.version}")
        state = "running" if self.alive else "stopped"
        token = f", token in <code>{html.escape(self.token_file)}</code>" if self.token_file else ""
        return f'<b>{name}</b> {state} at <a href="{url}" target="_blank" rel="noopener">{url}</a>{token}'


def find(name: str) -> Deployment | None:
    """The running deployment of that name, or None."""
    facts = read_json(_state_path(name))
    if facts is None:
        return None
    deployment = Deployment.from_dict(facts)
    if not deployment.alive:
        return None
    live = None
    with suppress(NbdeployError):  # a traffic file that somebody has broken: the service runs, and can be stopped
        live = routing.live(name)
    if live not in (None, deployment.version):  # promoted since it was started
        with suppress(NotFound):
            version = model_store.get(name, live)
            return replace(deployment, version=version.version, digest=version.digest)
    return deployment


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


def key_of(url: str, token_file: str | os.PathLike[str] | None = None) -> credentials.Key:
    """What a caller needs to ask the service at `url`: a deployment on this machine, or one elsewhere."""
    if token_file is None:
        for running in running_deployments():
            if running.url == url.rstrip("/"):
                return running.key
        for served in _asides(home() / "run"):
            if served.url == url.rstrip("/") and served.alive:
                return served.key
    return credentials.key_elsewhere(url, token_file)


@dataclass(frozen=True)
class Probation:
    """A service that answers and is not kept yet.

    Attributes
    ----------
    keep
        Keeps it, given the version to serve from then on, and returns when every worker answers. It raises
        `ServiceError` where one of them does not in time; the others go on.
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
    options: ServeOptions | None = None,
    since: int | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[Probation]:
    """Start a service on probation; it is ended after the block unless it was kept.

    For a staged version the worker's start is its rehearsal: one process imports the model's libraries once.

    Parameters
    ----------
    port : int, optional
        The wished port. By default the one that it had, or a free one.
    options : ServeOptions, optional
        Where and how it listens.
    since : int, optional
        The generation of the traffic from which on it is followed; by default the next one.
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
    run = folder("run", name)
    options = options or ServeOptions()
    since = routing.traffic(name).generation + 1 if since is None else since
    listener = _listen(name, options.host, port, (read_json(run / SPEC_FILE) or {}).get("port", 0))
    with closing(listener):
        token_file = _arranged(name, options, listener.getsockname()[0])
    numbers_log.record(name)  # what a service that was killed has left
    for emptied in (run / "metrics", run / READY, run / APPLIED):
        shutil.rmtree(emptied, ignore_errors=True)
        emptied.mkdir(mode=0o700)
    follows = {
        "applied": str(run / APPLIED), "state": str(_state_path(name)), "traffic": str(routing.path(name)), "since": since,
    }  # fmt: skip
    with started(
        subject, run, listener, options=options, token_file=token_file, more=follows, on_wait=on_wait
    ) as service:

        def keep(version: ModelVersion) -> Deployment:
            deployment = _deployment_of(service, version)
            now_live = routing.traffic(name).generation
            write_json(
                run / SPEC_FILE,
                {**service.spec, "path": str(version.path), "files": dict(version.files), "since": now_live},
            )
            write_json(_state_path(name), asdict(deployment))
            service.keep()
            _await_workers(deployment, on_wait)
            return deployment

        loaded = (read_json(Path(service.spec["outcome"])) or {}).get("loaded", [])
        yield Probation(keep, [Requirement.from_dict(each) for each in loaded])


@contextmanager
def aside(
    version: ModelVersion,
    *,
    options: ServeOptions | None = None,
    on_wait: Callable[[], None] = lambda: None,
    untold: Iterable[str] = (),
) -> Iterator[Deployment]:
    """Serve a version for a gate, on loopback and apart from the deployment: nobody else is sent there.

    It is ended after the block whatever happens, also when this process is killed. What it is asked is logged as a
    gate's questions, its numbers are its own, and it needs a token where the running deployment has one.

    Parameters
    ----------
    options : ServeOptions, optional
        Its limits; by default those of the deployment.
    on_wait
        Called about every 0.05 s while waiting.
    untold : iterable of str
        Variables of the environment that it does not inherit: what is meant for the gate alone.

    Raises
    ------
    ServiceError, SaveError
        As `launch`.
    """
    name = version.name
    running = find(name)
    if options is None:
        last = read_json(home() / "run" / name / SPEC_FILE) or {}
        options = running.options if running else ServeOptions.from_dict(last.get("options", {}))
    # Where others find a deployment, and who they are, is not for this one. How long the log is kept is.
    options = replace(
        options, host=HOST, workers=1, token=None, token_file="", tls_cert="", tls_key="", allowed_hosts=(), origins=(),
        bentoml_middleware=False,
    )  # fmt: skip
    _sweep_asides(name)
    run = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder("run", name)))
    try:
        listener = _listen(name, HOST, 0, 0)
        for made in (run / "metrics", run / READY):
            made.mkdir(mode=0o700)
        token_file = running.token_file if running else ""
        purpose = {"purpose": "gate", "state": ""}
        with started(
            version,
            run,
            listener,
            options=options,
            token_file=token_file,
            more=purpose,
            on_wait=on_wait,
            untold=untold,
        ) as service:
            deployment = _deployment_of(service, version)
            write_json(run / ASIDE_FILE, asdict(deployment))
            yield deployment
    finally:
        shutil.rmtree(run, ignore_errors=True)


def check(name: str, port: int | None, options: ServeOptions) -> None:
    """Raise what `launch` would raise now of the port, the host, the token and the certificate."""
    listener = _listen(name, options.host, port, 0)
    with closing(listener):
        _arranged(name, options, listener.getsockname()[0])
    listener.close()


def stop(name: str) -> Deployment:
    """End a deployment and every process of it; requests in flight are answered first.

    Raises
    ------
    NotFound
        It is not running.
    """
    with lock("serve", check_name(name)):
        deployment = get(name)
        processes.end(processes.family(deployment.pid, deployment.identity), grace=STOP_GRACE, first=deployment.pid)
        _state_path(name).unlink(missing_ok=True)
        numbers_log.record(name)  # what its supervisor could not, if it had to be killed
        for left in ("metrics", READY, APPLIED):
            shutil.rmtree(home() / "run" / name / left, ignore_errors=True)
        return deployment


def acknowledged(name: str) -> dict[str, dict[str, Any]]:
    """What the workers of a deployment, and what runs beside them, say of themselves, by what they are called.

    A worker says the ``generation`` of the traffic that it took up, whether it is ``applied``, what it has ``loaded``
    and what has ``failed`` and why, and the ``memory`` that it holds, in bytes.
    """
    found = {}
    for path in (home() / "run" / check_name(name) / APPLIED).glob("[!.]*.json"):
        with suppress(NbdeployError, OSError):
            if (told := read_json(path)) is not None:
                found[path.stem] = told
    return {who: told for who, told in sorted(found.items()) if who.isdecimal()}


def await_applied(
    running: Deployment,
    generation: int,
    seconds: float,
    on_wait: Callable[[], None] = lambda: None,
    versions: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Wait until every worker has taken up a generation of the traffic, and has loaded `versions`.

    Raises
    ------
    ReleaseError
        A worker could not load what it needs.
    ServiceError
        One has not acknowledged in time, or the service has ended.
    """
    name, deadline, looked = running.name, time.monotonic() + seconds, 0.0
    workers = [str(number) for number in range(1, running.options.workers + 1)]
    while True:
        told = {who: each for who, each in acknowledged(name).items() if each["generation"] >= generation}
        for who, each in told.items():
            _must_have_loaded(name, who, each, generation, versions)
        if all(who in told for who in workers):
            return told
        now = time.monotonic()
        late = [who for who in workers if who not in told]
        gone = now - looked > 0.5 and not running.alive
        if now > deadline or gone:
            which = f"worker {late[0]}" if len(late) == 1 else f"workers {', '.join(late)}"
            reason = (
                "the service has ended"
                if gone
                else f"{which} of {len(workers)} did not acknowledge it within {seconds:.0f} s"
            )
            msg = f"the change of {name!r} is written, and {reason}"
            raise ServiceError(msg, f"Whoever starts next goes by it. See %deploy logs {name}.")
        looked = now if now - looked > 0.5 else looked
        on_wait()
        time.sleep(0.01)


def await_shadow(
    running: Deployment, version: str, since: float, seconds: float, on_wait: Callable[[], None] = lambda: None
) -> None:
    """Wait until a shadow answers, which is wanted since the time `since`.

    Raises
    ------
    ReleaseError
        It cannot, or it has not within `seconds`.
    """
    note, deadline = home() / "run" / running.name / APPLIED / f"shadow-{version}.json", time.monotonic() + seconds
    while True:
        told, reason = read_json(note) or {}, ""
        if told.get("ready"):
            return
        with suppress(FileNotFoundError):
            if told and note.stat().st_mtime > since:  # else it is of an earlier one
                reason = told["failed"]
        if not reason and not running.alive:
            reason = "the service has ended"
        if not reason and time.monotonic() > deadline:
            reason = f"it does not answer after {seconds:.0f} s"
        if reason:
            msg = f"{running.name}:{version} cannot be a shadow: {reason}"
            raise ReleaseError(msg, f"See %deploy logs {running.name}.")
        on_wait()
        time.sleep(0.05)


def _must_have_loaded(
    name: str, worker: str, told: Mapping[str, Any], generation: int, versions: Sequence[str]
) -> None:
    # Of a later generation, a guard's say, it still tells what is loaded.
    failed = next((version for version in versions if version not in told["loaded"]), None)
    if failed is None and told["generation"] == generation and not told["applied"] and told["failed"]:
        failed = next(iter(told["failed"]))
    if failed is not None:
        why = told["failed"].get(failed, "the traffic was changed meanwhile")
        msg = f"worker {worker} cannot load {name}:{failed}: {why}"
        raise ReleaseError(msg, f"See %deploy logs {name}.")


def log_tail(name: str, lines: int = 50) -> str:
    """The last lines that the service wrote, running or not, at most 1 MiB.

    Raises
    ------
    NotFound
        It never ran.
    """
    path = home() / "run" / check_name(name) / LOG_FILE
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


def _deployment_of(service: Started, version: ModelVersion) -> Deployment:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Deployment(
        version.name, version.version, version.digest, service.url, service.process.pid,
        processes.started(service.process.pid), service.identity, str(Path(service.spec["folder"]) / LOG_FILE), now,
        service.spec["token_file"], service.options,
    )  # fmt: skip


def _arranged(name: str, options: ServeOptions, address: str) -> str:
    """The token's file of a deployment that is about to listen on `address`, whose certificate is good."""
    if options.tls_cert:
        credentials.check_tls(options.tls_cert, options.tls_key)
    return credentials.provide_token(name, options, address)


def _listen(name: str, host: str, port: int | None, former: int) -> socket.socket:
    def holder(port: int) -> str:
        found = next((other for other in running_deployments() if other.port == port), None)
        return f"the deployment {found.name!r}" if found else "another program"

    return listening.listen(name, host, port, former, holder)


def _await_workers(deployment: Deployment, on_wait: Callable[[], None]) -> None:
    # The first has answered. The others start when it is kept: a version is rehearsed once, and then has its place.
    wanted = deployment.options.workers
    deadline = time.monotonic() + START_TIMEOUT
    while wanted > 1 and (ready := deployment.workers) < wanted:
        if time.monotonic() > deadline or not deployment.alive:
            msg = f"{deployment.name} answers, but only {ready} of its {wanted} workers are ready"
            raise ServiceError(
                msg,
                f"The others are tried again. See %deploy logs {deployment.name}, or stop it and serve it with fewer.",
            )
        on_wait()
        time.sleep(0.02)


def _asides(run: Path) -> Iterator[Deployment]:
    """The services below `run` that were started for a gate, also those whose end nobody could note."""
    for path in run.glob(f"*/{ASIDE}*/{ASIDE_FILE}"):
        with suppress(NbdeployError, LookupError, TypeError, OSError):
            yield Deployment.from_dict(read_json(path))


def _sweep_asides(name: str) -> None:
    """Remove the folders of services whose starter was killed."""
    for left in (home() / "run" / name).glob(f"{ASIDE}*"):
        with suppress(NbdeployError, LookupError, TypeError, OSError):
            noted = read_json(left / ASIDE_FILE)
            gone = time.time() - left.stat().st_mtime > START_TIMEOUT if noted is None else True
            if gone and not (noted and Deployment.from_dict(noted).alive):
                shutil.rmtree(left, ignore_errors=True)


def _ready_workers(run: Path) -> int:
    return len(list((run / READY).glob("[0-9]*")))


def _state_path(name: str) -> Path:
    return folder("deployments") / f"{check_name(name)}.json"
