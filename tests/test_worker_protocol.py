"""What comes before, between and after requests on a connection is bounded, and no answer is lost for what follows it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from nbdeploy import worker

GET = b"GET /%s HTTP/1.1\r\nHost: here\r\n\r\n"


async def app(scope, receive, send):
    """``/slow`` takes half a second, ``/large`` answers with 64 MiB, ``/early`` does not wait for the body."""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    body = b"x" * (64 << 20) if scope["path"] == "/large" else scope["path"].encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def server(monkeypatch):
    """A connection maker; `connections` are those that the server still has."""
    for name, seconds in {"HEAD_SECONDS": 0.4, "LINGER": 0.4, "STALLED": 0.4}.items():
        monkeypatch.setattr(worker, name, seconds)
    config, state, loop = Config(app, timeout_keep_alive=5), ServerState(), asyncio.new_event_loop()
    config.load()

    def serve():
        asyncio.set_event_loop(loop)
        loop.run_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    make = loop.create_server(lambda: worker.Protocol(config, state, {}, loop), "127.0.0.1", 0)
    listening = asyncio.run_coroutine_threadsafe(make, loop).result(5)
    port = listening.sockets[0].getsockname()[1]

    @contextmanager
    def connect(said=b""):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(said)
            yield connection

    connect.connections = state.connections
    yield connect
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def read(connection, until=None):
    """All that comes until the server closes, or until it holds `until`."""
    found = b""
    while until is None or until not in found:
        try:
            block = connection.recv(1 << 16)
        except ConnectionResetError:
            break
        if not block:
            break
        found += block
    return found


def closes(connection, within=3.0):
    begun = time.monotonic()
    read(connection)
    return time.monotonic() - begun < within


def test_requests_ahead_are_answered_in_order(server):
    with server(GET % b"slow" + GET % b"b" + GET % b"c") as connection:
        said = read(connection, b"/c")

    assert said.index(b"/slow") < said.index(b"/b") < said.index(b"/c")


def test_an_answer_is_not_lost_for_what_follows_its_request(server):
    with server(GET % b"slow" + b"what is this\r\n\r\n") as connection:
        said = read(connection)
    assert said.index(b"200 OK") < said.index(b"/slow") < said.index(b"400 Bad Request")

    with server(GET % b"slow" + b"GET /half HT") as connection:  # longer than a head may take
        said = read(connection)
    assert said.index(b"/slow") < said.index(b"408 Request Timeout")


def test_what_follows_a_refused_request_is_not_answered(server):
    many = b"".join(b"X-%d: 1\r\n" % n for n in range(101))
    with server(b"GET /a HTTP/1.1\r\nHost: here\r\n" + many + b"\r\n" + GET % b"b") as connection:
        said = read(connection)

    assert b"431 Request Header Fields Too Large" in said
    assert b"/b" not in said


def test_trailers_and_requests_ahead_have_an_end(server):
    with server(b"POST /early HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n") as connection:
        read(connection, b"/early")
        assert cut_off(connection, (b"a%d: %s\r\n" % (n, b"b" * 900) for n in range(10_000)))
    with server() as connection:
        assert cut_off(connection, ((GET % b"slow") * 50 for _ in range(1_000)))
    assert gone(server)


def gone(server):
    """Whether the server has no connection left, soon."""
    deadline = time.monotonic() + 5
    while server.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    return not server.connections


def cut_off(connection, blocks):
    """Whether the server ends the connection, while `blocks` are sent or soon after: buffers may hold all of them."""
    try:
        for block in blocks:
            connection.sendall(block)
        read(connection)
    except (BrokenPipeError, ConnectionResetError):
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HT", GET % b"a" + b"\r\n", b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 99\r\n\r\nabc"],
)
def test_a_connection_on_which_nothing_goes_on_is_closed(server, said):
    with server(said) as connection:
        if b"HTTP/1.1" in said:
            time.sleep(0.1)
            connection.sendall(b"d" if b"POST" in said else b"\r\n")
        assert closes(connection)


def test_a_client_that_does_not_read_its_answer_is_dropped(server):
    with server(GET % b"large"):
        deadline = time.monotonic() + 5
        while not server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(server)


def test_a_connection_is_kept_for_the_next_request(server):
    with server(GET % b"a") as connection:
        read(connection, b"/a")
        time.sleep(1)
        connection.sendall(GET % b"b")
        assert b"/b" in read(connection, b"/b")
