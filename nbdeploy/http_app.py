"""The deployment's HTTP face, as one ASGI application: whom it answers, what it reads, and how it says no.

Every route of every protocol passes here, so limits, deadlines, tokens, counts and the access log are the same for all.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl

from nbdeploy import (
    access_log,
    protocol_bentoml,
    protocol_inference,
    protocol_labels,
    protocol_mlflow,
    protocol_own,
    protocol_tensorflow,
)
from nbdeploy.access import Guard
from nbdeploy.batching import Overloaded
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import InputError
from nbdeploy.exchange import JSON, Asked, Refused, Reply, Route, refusal_body
from nbdeploy.request_body import Unreadable
from nbdeploy.serve_options import MIB

INLINE_BYTES = 16 << 10  # a larger body is parsed in a thread, so that it holds nobody up
READ_SECONDS = 30.0  # for a body to arrive
BODIES_IN_FLIGHT = 4  # times `max_body`: what all bodies that are being read may hold together

_ONCE = (b"host", b"origin", b"authorization", b"content-type", b"content-length")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class HttpApp:
    """An ASGI application that answers for one endpoint.

    It may be mounted anywhere. Until `open` is called it answers 503.
    """

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self._routes: dict[str, dict[str, Route]] = {}
        self._held = 0
        self._parsers = ThreadPoolExecutor(2, thread_name_prefix="parse")

    def open(self, endpoint: Endpoint, guard: Guard) -> None:
        """Answer for `endpoint` from now on, whom `guard` lets in."""
        self._guard, self._options = guard, endpoint.options
        self._access = access_log.AccessLog() if endpoint.options.access_log else None
        routes: dict[str, dict[str, Route]] = {}
        for route in all_routes(endpoint, token=guard.needs_token):
            routes.setdefault(route.path, {})[route.method] = route
        self._routes, self.endpoint = routes, endpoint

    def close(self) -> None:
        """Answer 503 from now on, and finish the log."""
        endpoint, self.endpoint = self.endpoint, None
        if endpoint is not None:
            endpoint.close()
            if self._access is not None:
                self._access.close()

    def __repr__(self) -> str:
        served = self.endpoint and self.endpoint.served
        return f"HttpApp({served.name}:{served.version})" if served else "HttpApp()"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One ASGI conversation."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await _lifespan(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def guard(self, inner: App, scope: Message, receive: Receive, send: Send) -> None:
        """Let `inner` answer whom the guard lets in: for what stands before this application, and has routes too."""
        call = _Call(scope["method"], _path(scope), _headers(scope), {})
        if self.endpoint is None:
            await _send(send, _STARTING, {}, head=False)
            return
        try:
            reply = self._let_in(call, scope)
        except Refused as refused:
            reply = self._refusal(call, refused)
        if reply is None:
            await inner(scope, receive, send)
        else:
            await _send(send, reply, {}, head=call.method == "HEAD")

    def _let_in(self, call: _Call, scope: Message) -> Reply | None:
        """Find the route, and refuse who may not ask; the reply to a preflight, which asks for nothing else."""
        methods = self._methods(call.path)
        method = "GET" if call.method == "HEAD" else call.method
        route = call.route = methods.get(method)
        if len(call.headers) < len(scope["headers"]):
            _refuse_doubled(scope["headers"])
        if (preflight := self._guard.preflight(call.method, call.headers)) is not None:
            return preflight
        call.headers_back |= self._guard.check(method, call.headers, open=route is not None and route.open)
        return None

    def _methods(self, path: str) -> dict[str, Route]:
        return self._routes.get(path) or self._routes.get(path.rstrip("/")) or {}

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        endpoint = self.endpoint
        if endpoint is None:
            await _send(send, _STARTING, {}, head=False)
            return
        begun = time.perf_counter()
        metrics = endpoint.metrics
        metrics.arrived()
        headers = _headers(scope)
        request_id = access_log.request_id(headers)
        trace, more = access_log.trace_of(headers)
        call = _Call(scope["method"], _path(scope), headers, {"X-Request-ID": request_id, **more})
        status = 499  # nobody sees it: who asked is gone, or we end
        reply: Reply | None = None
        try:
            try:
                reply = await self._reply(call, scope, receive)
            except Refused as refused:
                reply = self._refusal(call, refused)
            except _Gone:
                return
            finally:
                self._held -= call.held
            await _send(send, reply, call.headers_back, head=call.method == "HEAD")
            status = reply.status
        finally:
            seconds, reason = time.perf_counter() - begun, call.reason if status != 499 else "gone"
            metrics.finished(call.route_path, status, reason, seconds)
            if self._access is not None:
                client = scope.get("client") or ("", 0)
                self._access.write(
                    request_id=request_id, trace=trace, method=call.method, path=call.path, status=status, reason=reason,
                    seconds=seconds, rows=call.rows, bytes_in=call.received, bytes_out=len(reply.body) if reply is not None else 0,
                    client=client[0], version=endpoint.version, route=call.route_path,
                )  # fmt: skip

    async def _reply(self, call: _Call, scope: Message, receive: Receive) -> Reply:
        if (preflight := self._let_in(call, scope)) is not None:
            return preflight
        route = call.route
        if route is None:
            if methods := self._methods(call.path):
                allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
                raise Refused(405, f"{call.path} has no {call.method[:20]}", headers={"Allow": allowed})
            raise Refused(404, "there is no such route; see /openapi.json")
        query = _query(scope.get("query_string", b""))
        deadline = _Deadline()
        try:
            body = b""
            if route.method != "GET":
                self._check_media(route, call.headers)
                body = await self._body(route, call, receive, deadline)
            asked = Asked(route.method, call.path, query, call.headers, body)
            deadline.start(self._options.timeout, 504, f"no answer within {self._options.timeout:g} s")
            reply = await self._answered(route, asked, call)
            deadline.end()
            if deadline.passed is not None:
                await asyncio.sleep(0)  # it passed in this very moment: let the cancellation come now
        except asyncio.CancelledError:
            if deadline.passed is None:
                raise
            deadline.forgive()
            raise deadline.passed from None
        finally:
            deadline.end()
        return reply

    async def _answered(self, route: Route, asked: Asked, call: _Call) -> Reply:
        assert self.endpoint is not None
        try:
            return await (self._shown(route, asked) if route.read is None else self._predicted(route, asked, call))
        except (Refused, asyncio.CancelledError):
            raise
        except Unreadable as error:
            raise Refused(400, str(error)) from error
        except InputError as error:
            raise Refused(422, str(error), error.problems) from error
        except Overloaded as error:
            raise Refused(503, str(error), headers={"Retry-After": str(error.retry_after)}) from error
        except Exception as error:  # a model may raise anything; it is logged
            if route.read is None:
                what, reason = f"{route.path} failed", "failed"
            else:
                what, reason = "the model failed", "model"
            self.endpoint.complain(what, error)
            raise Refused(500, f"{what}; see the log of the service", reason=reason) from error

    async def _predicted(self, route: Route, asked: Asked, call: _Call) -> Reply:
        assert self.endpoint is not None
        assert route.read is not None
        # Only the model waits for its turn: what cannot be answered is refused while it works.
        if len(asked.body) <= INLINE_BYTES:
            question = route.read(asked)
        else:
            question = await asyncio.get_running_loop().run_in_executor(self._parsers, route.read, asked)
        call.rows = question.rows
        return await self.endpoint.answer(question)

    async def _shown(self, route: Route, asked: Asked) -> Reply:
        assert route.show is not None
        if route.threaded:
            shown = await asyncio.get_running_loop().run_in_executor(None, route.show, asked)
        else:
            shown = route.show(asked)
        return shown if isinstance(shown, Reply) else await shown

    def _check_media(self, route: Route, headers: dict[str, str]) -> None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "the body must not be compressed", reason="media")
        if not route.media:
            return
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in route.media:
            raise Refused(415, f"the body must be {' or '.join(route.media)}, not {media[:60] or 'untyped'}")

    async def _body(self, route: Route, call: _Call, receive: Receive, deadline: _Deadline) -> bytes:
        limit = route.limit or self._options.max_body
        announced = call.headers.get("content-length", "0")
        if announced.isascii() and announced.isdecimal() and (len(announced) > 19 or int(announced) > limit):
            raise Refused(413, _too_large(limit))
        deadline.start(READ_SECONDS, 408, f"the body did not arrive within {READ_SECONDS:g} s")
        blocks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            block = message.get("body", b"")
            call.received += len(block)
            if call.received > limit:
                raise Refused(413, _too_large(limit))
            if not message.get("more_body") and not blocks:
                call.held, self._held = call.received, self._held + call.received
                return bytes(block)
            call.held += len(block)
            self._held += len(block)
            if self._held > BODIES_IN_FLIGHT * self._options.max_body:
                raise Refused(
                    503, "too many large requests at once", headers={"Retry-After": "1", "Connection": "close"}
                )
            blocks.append(block)
            if not message.get("more_body"):
                return b"".join(blocks)

    def _refusal(self, call: _Call, refused: Refused) -> Reply:
        call.reason = refused.reason
        body = call.route.refuse(refused) if call.route and call.route.refuse else refusal_body(refused)
        return Reply(body, JSON, refused.status, refused.headers)


def all_routes(endpoint: Endpoint, *, token: bool) -> list[Route]:
    """Every route of a deployment; `token` says whether they need one."""
    served = endpoint.served
    return [
        *protocol_own.routes(endpoint, token=token),
        *protocol_labels.routes(served),
        *protocol_mlflow.routes(served),
        *protocol_inference.routes(served),
        *protocol_tensorflow.routes(served),
        *protocol_bentoml.routes(served),
    ]


# -- helpers ------------------------------------------------------------------------------------------------


_STARTING = Reply(b'{"error": "the service is starting", "problems": []}', status=503, headers={"Retry-After": "1"})


class _Gone(Exception):
    """Who asked does not wait for an answer any more."""


class _Call:
    """What is known of one request while it is answered."""

    __slots__ = ("headers", "headers_back", "held", "method", "path", "reason", "received", "route", "rows")

    def __init__(self, method: str, path: str, headers: dict[str, str], headers_back: dict[str, str]) -> None:
        self.method, self.path, self.headers, self.headers_back = method, path, headers, headers_back
        self.route: Route | None = None
        self.reason = ""
        self.received = self.held = self.rows = 0

    @property
    def route_path(self) -> str:
        return self.route.path if self.route is not None else "other"


class _Deadline:
    """Cancels the task that made it when a time has passed, and says then what to answer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self.passed: Refused | None = None

    def start(self, seconds: float, status: int, said: str) -> None:
        self.end()
        self._timer = self._loop.call_later(seconds, self._pass, status, said)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def forgive(self) -> None:
        """The cancellation was ours, and is over."""
        if sys.version_info >= (3, 11) and self._task is not None:
            self._task.uncancel()

    def _pass(self, status: int, said: str) -> None:
        self.passed = Refused(status, said, headers={"Connection": "close"} if status == 408 else None)
        if self._task is not None:
            self._task.cancel()


def _headers(scope: Message) -> dict[str, str]:
    headers: dict[str, str] = {}
    for key, value in scope["headers"]:
        headers.setdefault(key.decode("latin-1"), value.decode("latin-1"))
    return headers


def _path(scope: Message) -> str:
    path, root = scope["path"], scope.get("root_path", "")
    inside = root and (path == root or path.startswith(f"{root.rstrip('/')}/"))
    return str(path[len(root.rstrip("/")) :] or "/") if inside else str(path)


def _refuse_doubled(raw: list[tuple[bytes, bytes]]) -> None:
    """Refuse a header that decides something and came twice: two readers could see two requests."""
    names = [name for name, _ in raw]
    for name in _ONCE:
        if names.count(name) > 1:
            raise Refused(400, f"the header {name.decode()} came twice", reason="headers")


def _query(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    query: dict[str, str] = {}
    try:
        for key, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=100):
            query.setdefault(key, value)
    except ValueError as error:
        raise Refused(400, "the query string has more than 100 fields") from error
    return query


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit / MIB:g} MiB" if limit >= MIB else f"the body is larger than {limit} bytes"


async def _send(send: Send, reply: Reply, more: dict[str, str], *, head: bool) -> None:
    headers = [
        (b"content-type", reply.media.encode("latin-1")),
        (b"content-length", b"%d" % len(reply.body)),
        (b"x-content-type-options", b"nosniff"),
    ]
    for held in (more, reply.headers):
        headers += [(key.lower().encode("latin-1"), value.encode("latin-1", "replace")) for key, value in held.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else reply.body})


async def _lifespan(_scope: Message, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
