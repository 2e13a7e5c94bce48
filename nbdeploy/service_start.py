"""How a service is started: a supervisor with a listening socket and a spec, and the wait until it answers."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nbdeploy import credentials, listening, processes
from nbdeploy.artifact import SERVICE, failure, tampered
from nbdeploy.errors import ServiceError
from nbdeploy.home import read_json, write_atomic, write_json
from nbdeploy.model_store import ModelVersion, Staged, service_class
from nbdeploy.serve_options import ServeOptions

SPEC_FILE, LOG_FILE = "spec.json", "service.log"
READY = "ready"  # the folder in which every worker that is ready has a note
START_TIMEOUT = 120.0


@dataclass
class Started:
    """A service that answers, and what it was started by. It is ended by whoever started it, unless it is kept."""

    process: subprocess.Popen[bytes]
    spec: dict[str, Any]
    url: str
    identity: str
    options: ServeOptions
    kept: bool = False

    def keep(self) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(b"keep\n")
        stdin.close()
        self.kept = True


@contextmanager
def started(
    subject: ModelVersion | Staged,
    run: Path,
    listener: socket.socket,
    *,
    options: ServeOptions,
    token_file: str,
    more: Mapping[str, Any],
    on_wait: Callable[[], None],
    untold: Iterable[str] = (),
) -> Iterator[Started]:
    """A service in the folder `run` that answers on `listener`, on probation; it is ended after the block unless kept.

    Parameters
    ----------
    token_file : str
        The file with the token that it asks for; empty where it needs none.
    more : mapping
        What its spec says beside.
    on_wait
        Called about every 0.05 s while waiting.
    untold : iterable of str
        Variables of the environment that it does not inherit.

    Raises
    ------
    ServiceError
        It did not become ready; the end of its log is in ``details``.
    SaveError
        The version could not be loaded or did not answer as the kernel did.
    """
    origin = subject.folder if isinstance(subject, Staged) else subject.path
    with closing(listener):
        service = _service_file(origin, subject.files)
        trust = trust_of(options)
    address, bound = listener.getsockname()[:2]
    url = listening.url_of(options, address, bound)
    spec_path, outcome, log_path = run / SPEC_FILE, run / "outcome.json", run / LOG_FILE
    identity = secrets.token_hex(16)
    outcome.unlink(missing_ok=True)
    spec = {
        "name": subject.name, "version": subject.version, "files": dict(subject.files), "outcome": str(outcome),
        "folder": str(run), "service": f"service:{service_class(subject.name)}",
        "descriptor": listener.fileno(), "address": address, "port": bound, "metrics": str(run / "metrics"),
        "ready": str(run / READY), "options": options.to_dict(), "token_file": token_file, **more,
    }  # fmt: skip
    write_atomic(run / SERVICE, service)
    # A rehearsal answers the whole sample; a later start proves itself on its first rows.
    write_json(spec_path, {**spec, "path": str(origin), **({"rows": None} if isinstance(subject, Staged) else {})})
    process = _start(spec_path, log_path, identity, listener, untold)
    service_started = Started(process, spec, url, identity, options)
    try:
        answers = partial(listening.answers, url, trust, timeout=0.5)
        _await_ready(process, subject.name, answers, outcome=outcome, log=log_path, on_wait=on_wait)
        yield service_started
    finally:
        if not service_started.kept:
            processes.end(processes.family(process.pid, identity), grace=5, first=process.pid)
            with suppress(Exception):
                process.wait(5)
            if process.stdin is not None:
                process.stdin.close()
        processes.reap(process)


@contextmanager
def closing(listener: socket.socket) -> Iterator[None]:
    """Close a socket that nobody takes over because something fails first."""
    try:
        yield
    except BaseException:
        listener.close()
        raise


def trust_of(options: ServeOptions) -> ssl.SSLContext | None:
    """Which certificate a caller on this machine trusts; None where there is no TLS."""
    return credentials.pinned(options.tls_cert) if options.tls_cert else None


# -- helpers ------------------------------------------------------------------------------------------------


def _start(
    spec_path: Path, log_path: Path, identity: str, listener: socket.socket, untold: Iterable[str]
) -> subprocess.Popen[bytes]:
    """Start the supervisor, which inherits the listener; it is closed here."""
    run = spec_path.parent
    with suppress(FileNotFoundError):
        log_path.replace(run / f"{LOG_FILE}.1")
    with (
        listener,
        os.fdopen(os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "wb") as log,
    ):
        return subprocess.Popen(
            [sys.executable, "-m", "nbdeploy.supervisor", str(spec_path)],
            cwd=run, env=processes.environment(without=untold, **{processes.IDENTITY: identity}), stdin=subprocess.PIPE,
            stdout=log, stderr=subprocess.STDOUT, pass_fds=[listener.fileno()], start_new_session=True, umask=0o077,
        )  # fmt: skip


def _service_file(origin: Path, files: Mapping[str, str]) -> bytes:
    """The service file that BentoML runs before anything of ours: what is checked is what is run."""
    try:
        content = (origin / SERVICE).read_bytes()
    except FileNotFoundError:
        raise tampered(origin, SERVICE) from None
    if hashlib.sha256(content).hexdigest() != files.get(SERVICE):
        raise tampered(origin, SERVICE)
    return content


def _await_ready(
    process: subprocess.Popen[bytes],
    name: str,
    answers: Callable[[], bool],
    *,
    outcome: Path,
    log: Path,
    on_wait: Callable[[], None],
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
        if answers():
            return
        if time.monotonic() > deadline:
            msg = f"{name} was not ready within {START_TIMEOUT:.0f} s and was ended"
            raise ServiceError(msg, f"See %deploy logs {name}.", log.read_text(errors="replace")[-4000:])
        on_wait()
        time.sleep(0.02)
