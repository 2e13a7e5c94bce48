"""One worker of a deployment: BentoML's service, answered by our application.

Run by the supervisor as ``python -m nbdeploy.worker SERVICE --fd N --worker-id I``. It does what BentoML's own worker
does (its ``_bentoml_impl.worker.service``): load the service, make its instance, run it by uvicorn. But what answers is
the application of the service alone, without four layers of middleware around it: what nobody asked for costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nbdeploy.home import read_json
from nbdeploy.http_app import HttpApp
from nbdeploy.serve_options import MIDDLEWARE, READY, SPEC, ServeOptions

HEAD_BYTES, HEADERS = 64 << 10, 100
HEAD_SECONDS = 10.0  # from the connection, or the first byte of a request, to the end of its headers
logger = logging.getLogger("bentoml.nbdeploy")

KEEP_ALIVE = 65  # seconds between requests of one connection
REQUESTS_AHEAD = 32  # of one connection, that wait for the answer to an earlier one
STALLED = 30.0  # seconds for a client to go on reading its answer
# Seconds to go on reading a body that was refused: closed at once, the connection would be reset under the refusal.
LINGER = 5.0


class _OneWrite:
    """A transport that sends the head of a response together with its body: one system call, not two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if not self._head and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100"):
            self._head = data
            return
        held, self._head = self._head, b""
        self._transport.write(held + data if held else data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP with limits where uvicorn has none: on heads, trailers, requests ahead, and on who does not go on.

    A refusal waits for the answers to earlier requests of its connection.
    """

    _head = 0
    _reading_head = True
    _refused: tuple[int, str] | None = None  # nothing more is read
    _timer: asyncio.TimerHandle | None = None  # of a head
    _lingering: asyncio.TimerHandle | None = None  # of what nobody waits for
    _stalled: asyncio.TimerHandle | None = None  # of an answer that is not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._sent = _OneWrite(transport)
        self.transport = self._sent  # type: ignore[assignment]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._lingering, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:
            return
        if self._reading_head:
            self._head += len(data)
        super().data_received(data)
        # More than one request's head may be in `data`, and a part of a body: both are small.
        if self._reading_head and self._head > HEAD_BYTES:
            self._refuse(431, f"the headers are larger than {HEAD_BYTES >> 10} KiB")
        elif self._is_idle():
            # The rest of a body that was refused, or of nothing: uvicorn has stopped its own clock.
            self._lingering = self.loop.call_later(LINGER, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._reading_head:  # another request on a connection that is kept
            self._await_head()
            self._head = 1  # it has begun

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading_head:
            super().on_header(name, value)
            return
        self._head += len(name) + len(value)  # a trailer, which nobody reads
        if self._head > HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        if self._refused is not None:
            return
        self._head_is_there()
        if len(self.headers) > HEADERS:
            self._refuse(431, f"there are more than {HEADERS} headers")
            return
        super().on_headers_complete()
        if len(self.pipeline) > REQUESTS_AHEAD:
            self.transport.abort()

    def on_response_complete(self) -> None:
        self._sent.flush()  # the answer to HEAD has no body
        super().on_response_complete()
        if self.pipeline:  # uvicorn reads on after each answer, however many requests wait
            self.flow.pause_reading()
        if self._refused is not None and not self._is_busy():
            self._say_refused()

    def on_body(self, body: bytes) -> None:
        if self._refused is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused is None:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        self._refuse(400, "this is no HTTP request")

    def _is_busy(self) -> bool:
        """Whether an answer to an earlier request is still to come."""
        cycle: Any = self.cycle
        return bool(self.pipeline) or (cycle is not None and not cycle.response_complete)

    def _is_idle(self) -> bool:
        clocks = (self.timeout_keep_alive_task, self._timer, self._lingering)
        return self._refused is None and not self._is_busy() and clocks == (None, None, None)

    def _await_head(self) -> None:
        self._head_is_there()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._reading_head, self._head = True, 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._is_slow)

    def _head_is_there(self) -> None:
        self._reading_head, self._head = False, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_slow(self) -> None:
        if self._is_busy():  # reading may be paused: it is not the client who is slow
            self._timer = self.loop.call_later(HEAD_SECONDS, self._is_slow)
        elif self._head:
            self._refuse(408, f"the headers did not arrive within {HEAD_SECONDS:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, error: str) -> None:
        if self._refused is not None:
            return
        self._head_is_there()
        self._refused = (status, error)
        if not self._is_busy():
            self._say_refused()

    def _say_refused(self) -> None:
        if self.transport.is_closing() or self._refused is None:
            return
        status, error = self._refused
        body = json.dumps({"error": error, "problems": []}).encode()
        words = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}[status]
        head = f"HTTP/1.1 {status} {words}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class _Server(Server):
    """uvicorn's server, which says when it answers, and closes the application after the last answer."""

    def __init__(self, config: Config, front: HttpApp) -> None:
        super().__init__(config)
        self.front = front
        self._following: asyncio.Task[None] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._following is not None:
            self._following.cancel()
        self.front.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if (versions := self.front.versions) is not None:
            # What is wanted now is told before anybody counts this worker among those that answer.
            versions.look()
            self._following = asyncio.create_task(versions.follow())
            await versions.settle()
        await super().startup(sockets)
        if self.started:
            # What is loaded now stays: the collector need not look at it again, in the middle of a request.
            gc.collect()
            gc.freeze()
            served = self.front.endpoint and self.front.endpoint.served
            logger.info(
                "%s:%s answers, process %d", *((served.name, served.version) if served else ("", "")), os.getpid()
            )
            if note := os.environ.get(READY):
                Path(note).touch(mode=0o600)  # noqa: ASYNC240  before the first request


def main() -> None:
    """Serve until SIGTERM; requests in flight are answered."""
    parser = argparse.ArgumentParser()
    parser.add_argument("service")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker-id", type=int, default=1)
    parser.add_argument("--timeout-graceful-shutdown", type=int, default=30)
    given = parser.parse_args()
    options = ServeOptions.from_dict((read_json(Path(os.environ[SPEC])) or {})["options"])
    if options.bentoml_middleware:
        os.environ[MIDDLEWARE] = "1"  # read by nbdeploy.serving, which the service file imports
    _allow_connections()
    app, front = _application(given.service, given.worker_id, through_bentoml=options.bentoml_middleware)
    tls: dict[str, Any] = {}
    if options.tls_cert:
        tls = {"ssl_certfile": options.tls_cert, "ssl_keyfile": options.tls_key}
    config = Config(
        app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=given.timeout_graceful_shutdown, backlog=2048, **tls,
    )  # fmt: skip
    _Server(config, front).run(sockets=[socket.socket(fileno=given.fd)])


def _application(identifier: str, worker: int, *, through_bentoml: bool) -> tuple[Any, HttpApp]:
    from _bentoml_impl.loader import load
    from bentoml._internal.context import server_context
    from bentoml._internal.log import configure_server_logging

    configure_server_logging()
    server_context.worker_index = worker
    service = load(identifier, standalone_load=True)
    server_context.service_type = "entry_service"
    server_context.service_name = service.name
    server_context.service_routes = []
    bento = service.bento
    server_context.bento_name = service.name if bento is None else bento.tag.name
    server_context.bento_version = "not available" if bento is None else bento.tag.version or "not available"
    front: HttpApp = service.inner.app
    if not through_bentoml:
        service()  # its instance opens the front; BentoML's HTTP side, a tenth of a worker's memory, is never made
        return front, front
    whole = service.to_asgi(is_main=True)

    async def observed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await whole(scope, receive, send)
        elif scope["path"] == "/metrics":  # BentoML's would hide it, and it has BentoML's
            await front(scope, receive, send)
        else:  # BentoML's own routes are for nobody else either
            await front.guard(whole, scope, receive, send)

    return observed, front


def _allow_connections() -> None:
    # A thousand idle connections must not keep the next one out.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()
