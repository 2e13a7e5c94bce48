"""A deployment that rules watch, what it is said to have done, and where its alerts arrive: a webhook and a mail server."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
from aiosmtpd.controller import Controller

import nbdeploy
from nbdeploy import __main__, home
from nbdeploy.prediction_log import Entry, LogWriter, new_request_id
from nbdeploy.signature_inference import infer_columns

SHOP = "shop"
CANARY = "S3CR3T-c4nary"


def counted(minutes_ago, *, name=SHOP, version="v1", requests=0, **facts):
    """What a service has counted in the minute that ended so long ago."""
    ended = time.time() - 60 * minutes_ago
    held = {"requests": requests, "errors": 0, "refused": 0, "rows": requests, "dropped": 0, "reasons": {},
            "seconds": {"0.01": requests} if requests else {}, **facts}  # fmt: skip
    line = {"time": ended, "from": ended - 60, "run": "r", "n": time.monotonic_ns(), "versions": {version: held}}
    path = home.folder("numbers", name) / f"{datetime.fromtimestamp(ended, timezone.utc):%Y-%m-%d}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def forget():
    for path in home.folder("numbers", SHOP).glob("*.jsonl"):
        path.unlink()


def asked(rows, *, name=SHOP, minutes_ago=1.0, version="v1"):
    """Rows of ``a`` and ``b`` in the log; their prediction ids."""
    columns = infer_columns(pd.DataFrame({"a": [0.5], "b": [0.5]}))
    when, ids = time.time() - 60 * minutes_ago, []
    with LogWriter(name, columns, keep_every=None) as log:
        for a, b in rows:
            ids.append(new_request_id())
            assert log.write([Entry(version, ids[-1], {"a": [float(a)], "b": [float(b)]}, [a + b], time=when)])
    return [f"{each}-0" for each in ids]


def look(name=SHOP, **more):
    return nbdeploy.alerts(name, **more)


def only(found):
    (one,) = found.alerts
    return one


def ask(*words):
    return __main__.main(["alert", SHOP, *words])


class Hook:
    """A webhook on loopback, and what it was sent."""

    def __init__(self):
        self.got, self.status = [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if outer.status == 200:
                    outer.got.append((body["type"], body["title"], body["message"]))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://user:{CANARY}@127.0.0.1:{self.server.server_port}/{CANARY}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def titles(self):
        return [title for _, title, _ in self.got]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextmanager
def mail_sink():
    """A mail server on loopback: its ``url`` for Apprise, and the envelopes that it ``got``."""

    class Sink:
        def __init__(self):
            self.got = []

        async def handle_DATA(self, _server, _session, envelope):  # noqa: N802  what aiosmtpd calls
            self.got.append(envelope)
            return "250 OK"

    class AnyPort(Controller):
        def _trigger_server(self):
            self.port = self.server.sockets[0].getsockname()[1]
            super()._trigger_server()

    sink = Sink()
    controller = AnyPort(sink, hostname="127.0.0.1", port=0)
    controller.start()
    sink.url = (
        f"mailto://mail.example:{controller.port}/?smtp=127.0.0.1&mode=insecure&from=nb@mail.example&to=me@mail.example"
    )
    try:
        yield sink
    finally:
        controller.stop()
