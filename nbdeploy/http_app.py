"""The deployment's HTTP face, as one ASGI application: whom it answers, what it reads, and how it says no.

Every route of every protocol passes here, so limits, deadlines, tokens, counts and the access log are the same for all.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from nbdeploy import access_log
from nbdeploy.access import Guard
from nbdeploy.batching import Overloaded
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import InputError
from nbdeploy.exchange import JSON, Answer, Asked, Question, Refused, Reply, Route, dump_exact, refusal_body
from nbdeploy.loaded_versions import LoadedVersions
from nbdeploy.request_body import Unreadable
from nbdeploy.route_table import RouteTable, all_routes
from nbdeploy.routing import Traffic
from nbdeploy.serve_options import MIB
from nbdeploy.shadow_feed import ShadowFeed
from nbdeploy.version_choice import Choice

OK = 200
INLINE_BYTES = 16 << 10  # a larger body is parsed in a thread, so that it holds nobody up
READ_SECONDS = 30.0  # for a body to arrive
BODIES_IN_FLIGHT = 4  # times `max_body`: what all bodies that are being read may hold together

_ONCE = (b"host", b"origin", b"authorization", b"content-type", b"content-length")

_T = TypeVar("_T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class HttpApp:
    """An ASGI application that answers for one version, or for those that a traffic names.

    It may be mounted anywhere. Until `open` is called it answers 503.
    """

    def __init__(self) -> None:
        self._table: RouteTable | None = None
        self._routes: dict[Endpoint, list[Route]] = {}
        self.versions: LoadedVersions | None = None  # what follows the traffic file, where there is one
        self.shadows: ShadowFeed | None = None  # who is asked what users asked, after they were answered
        self._held = 0
        self._parsers = ThreadPoolExecutor(2, thread_name_prefix="parse")

    def open(self, endpoint: Endpoint, guard: Guard) -> None:
        """Answer for `endpoint` from now on, whom `guard` lets in."""
        self._guard, self._options = guard, endpoint.options
        self._access = access_log.AccessLog() if endpoint.options.access_log else None
        self._show({endpoint.version: endpoint}, Choice(endpoint.name, endpoint.version))

    def prepare(self, endpoint: Endpoint) -> None:
        """Make the routes of one more version; any thread may do so."""
        if endpoint not in self._routes:
            self._routes[endpoint] = all_routes(endpoint, token=self._guard.needs_token)

    def route(self, traffic: Traffic, endpoints: Mapping[str, Endpoint]) -> None:
        """Answer by `traffic` from the next request on. What was begun is answered by whom it was begun.

        `endpoints` has what is loaded, the live version at least.
        """
        assert traffic.live is not None
        self._show(endpoints, Choice.of(traffic, endpoints.keys(), endpoints[traffic.live].signature))
        if self.shadows is not None:
            self.shadows.set_versions(traffic.shadow)

    def _show(self, endpoints: Mapping[str, Endpoint], choice: Choice) -> None:
        for endpoint in endpoints.values():
            self.prepare(endpoint)
            endpoint.metrics.leads = endpoint.version == choice.live
        table = RouteTable.of(endpoints, choice, {v: self._routes[each] for v, each in endpoints.items()})
        self._table = table
        for gone in set(self._routes) - set(endpoints.values()):  # also what was loaded too late, and given up
            self._routes.pop(gone, None)

    @property
    def endpoint(self) -> Endpoint | None:
        """The live version; None before `open` and after `close`."""
        return self._table.live if self._table is not None else None

    def close(self) -> None:
        """Answer 503 from now on, and finish the log."""
        table, self._table = self._table, None
        if self.shadows is not None:
            self.shadows.close()
        if table is not None:
            loaded = self.versions.endpoints if self.versions is not None else []
            for endpoint in {*table.endpoints.values(), *loaded}:
                endpoint.close()
            if self._access is not None:
                self._access.close()

    def __repr__(self) -> str:
        versions = [f"{each.name}:{each.version}" for each in self._table.endpoints.values()] if self._table else []
        return f"HttpApp({', '.join(versions)})"

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
        if (table := self._table) is None:
            await _send(send, _STARTING, {}, head=False)
            return
        call = _Call(scope["method"], _path(scope), _headers(scope), {}, table)
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
        method = "GET" if call.method == "HEAD" else call.method
        call.routes = call.table.methods(call.path).get(method, {})
        route = call.route = call.routes.get(call.table.choice.live) or next(iter(call.routes.values()), None)
        if len(call.headers) < len(scope["headers"]):
            _refuse_doubled(scope["headers"])
        if (preflight := self._guard.preflight(call.method, call.headers)) is not None:
            return preflight
        call.headers_back |= self._guard.check(method, call.headers, open=route is not None and route.open)
        return None

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        if (table := self._table) is None:
            await _send(send, _STARTING, {}, head=False)
            return
        begun = time.perf_counter()
        arrived_at = table.live.metrics
        arrived_at.arrived()
        headers = _headers(scope)
        request_id = access_log.request_id(headers)
        trace, more = access_log.trace_of(headers)
        call = _Call(scope["method"], _path(scope), headers, {"X-Request-ID": request_id, **more}, table)
        call.request_id = request_id
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
            if call.shadowed is not None and self.shadows is not None and status == OK:
                self.shadows.offer(*call.shadowed)
        finally:
            seconds, reason = time.perf_counter() - begun, call.reason if status != 499 else "gone"
            arrived_at.left()
            call.let_go()
            for endpoint in call.endpoints:
                endpoint.metrics.finished(call.route_path, status, reason, seconds)
            if self._access is not None:
                client = scope.get("client") or ("", 0)
                self._access.write(
                    request_id=request_id, trace=trace, method=call.method, path=call.path, status=status, reason=reason,
                    seconds=seconds, rows=call.rows, bytes_in=call.received, bytes_out=len(reply.body) if reply is not None else 0,
                    client=client[0], version=call.version, route=call.route_path,
                )  # fmt: skip

    async def _reply(self, call: _Call, scope: Message, receive: Receive) -> Reply:
        if (preflight := self._let_in(call, scope)) is not None:
            return preflight
        route = call.route
        if route is None:
            if methods := call.table.methods(call.path):
                allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
                raise Refused(405, f"{call.path} has no {call.method[:20]}", headers={"Allow": allowed})
            raise Refused(404, "there is no such route; see /openapi.json")
        query = _query(scope.get("query_string", b""))
        route, by_rows = _chosen(call, route, query)
        deadline = _Deadline()
        try:
            body = b""
            if route.method != "GET":
                self._check_media(route, call.headers)
                body = await self._body(route, call, receive, deadline)
            asked = Asked(route.method, call.path, query, call.headers, body)
            deadline.start(self._options.timeout, 504, f"no answer within {self._options.timeout:g} s")
            reply = await self._answered(route, asked, call, by_rows=by_rows)
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

    async def _answered(self, route: Route, asked: Asked, call: _Call, *, by_rows: bool) -> Reply:
        try:
            if route.read is None:
                return await self._shown(route, asked)
            # As in `_read`, without a coroutine for what most are.
            question = route.read(asked) if len(asked.body) <= INLINE_BYTES else await self._read(route, asked)
            call.rows = question.rows
            if not question.purpose:  # a user's
                call.shadowed = (asked, question.request, question.rows)
            # Only the model waits for its turn: what cannot be answered is refused while it works.
            reply = await (self._split(question, asked, call) if by_rows else call.endpoint.answer(question))
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
            call.endpoint.complain(what, error)
            raise Refused(500, f"{what}; see the log of the service", reason=reason) from error
        return reply

    async def _read(self, route: Route, asked: Asked) -> Question:
        assert route.read is not None
        return await self._beside(asked, route.read, asked)

    async def _beside(self, asked: Asked, work: Callable[..., _T], *given: Any) -> _T:
        """Do what takes as long as the body is large: in a thread where it would hold others up."""
        if len(asked.body) <= INLINE_BYTES:
            return work(*given)
        return await asyncio.get_running_loop().run_in_executor(self._parsers, work, *given)

    async def _split(self, question: Question, asked: Asked, call: _Call) -> Reply:
        """The reply to rows of which each is answered by the version that its value in the sticky column has."""
        rows: dict[str, list[int]] = {}
        chosen = await self._beside(asked, call.table.choice.by_rows, question)
        for row, version in enumerate(chosen):
            rows.setdefault(version if version in call.routes else call.table.choice.live, []).append(row)
        parts = dict.fromkeys(rows, question)
        reader = call.version
        for version in rows:
            # Another version reads by its own signature, unless that finds the same in JSON. What it refuses is its own.
            if version != reader and not (question.frame is None and version in call.table.alike):
                call.credit(version)
                read = await self._read(call.routes[version], asked)
                parts[version] = replace(read, request=question.request)
        if len(rows) == 1:
            call.answered_by(next(iter(rows)))
            return await call.endpoint.answer(parts[call.version])
        taken = [await self._beside(asked, part.take, rows[version]) for version, part in parts.items()]
        call.credit(*sorted(rows))
        asking = [
            call.table.endpoints[version].answer(replace(part, write=_as_it_is))
            for version, part in zip(parts, taken, strict=True)
        ]
        answered = await asyncio.gather(*asking, return_exceptions=True)
        for version, each in zip(parts, answered, strict=True):
            if isinstance(each, BaseException):
                call.credit(version)  # nobody else is blamed for it
                raise each
        told = [*zip(rows.values(), [cast("Answer", each) for each in answered], strict=True)]
        return await self._beside(asked, lambda: question.write(Answer.merged(told)))

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


# -- helpers ------------------------------------------------------------------------------------------------


def _chosen(call: _Call, route: Route, query: Mapping[str, str]) -> tuple[Route, bool]:
    """The route of the version that answers, and whether each row of the request chooses its own."""
    table, choice = call.table, call.table.choice
    version = table.named(call.routes, query)
    if version or not choice.slots or route.read is None:
        return call.answered_by(version or choice.live), False
    if not choice.by_row:
        return call.answered_by(table.drawn(call.routes, call.headers, call.request_id)), False
    found = call.answered_by(choice.live)
    for each in table.endpoints:  # whom its rows go to is not known yet
        call.hold(each)
    return found, True


def _as_it_is(answer: Answer) -> Reply:
    """A part of an answer, which is written with the others; that it can be is seen before it is logged."""
    dump_exact([answer.values, answer.scores])
    return cast("Reply", answer)


_STARTING = Reply(b'{"error": "the service is starting", "problems": []}', status=503, headers={"Retry-After": "1"})


class _Gone(Exception):
    """Who asked does not wait for an answer any more."""


class _Call:
    """What is known of one request while it is answered."""

    __slots__ = (
        "endpoints", "headers", "headers_back", "held", "holding", "method", "path", "reason", "received", "request_id",
        "route", "routes", "rows", "shadowed", "table", "version",
    )  # fmt: skip

    def __init__(
        self, method: str, path: str, headers: dict[str, str], headers_back: dict[str, str], table: RouteTable
    ) -> None:
        self.method, self.path, self.headers, self.headers_back, self.table = method, path, headers, headers_back, table
        self.routes: Mapping[str, Route] = {}
        self.route: Route | None = None
        self.reason = self.request_id = ""
        self.received = self.held = self.rows = 0
        self.holding: list[Endpoint] = []
        self.shadowed: tuple[Asked, str, int] | None = None  # what shadows are asked when it is answered
        self.endpoints: Sequence[Endpoint] = (table.live,)  # who answers, or refuses: it counts under them
        self.version = table.live.version

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[0]

    def answered_by(self, version: str) -> Route:
        """Who answers, and its route."""
        self.let_go()
        self.hold(version)
        self.credit(version)
        route = self.route = self.routes[version]
        return route

    def credit(self, *versions: str) -> None:
        """Who is the author of what is said now."""
        self.version, self.endpoints = ",".join(versions), [self.table.endpoints[version] for version in versions]

    def hold(self, version: str) -> None:
        """Have a version not unloaded until `let_go`."""
        endpoint = self.table.endpoints[version]
        endpoint.in_use += 1
        self.holding.append(endpoint)

    def let_go(self) -> None:
        for endpoint in self.holding:
            endpoint.in_use -= 1
        self.holding.clear()

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
