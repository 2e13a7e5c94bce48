"""What routing takes inside of a worker: processor time of the application alone, whose versions answer at once.

Without a network, a model and a log, and counted by the processor's clock, it is the same on a machine that is busy.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

ROWS = 400


def microseconds(name: str, X: Any, column: str, rounds: int) -> dict[str, float]:
    """Per request, by the way in which its version is chosen; medians of rounds that take turns.

    Parameters
    ----------
    name : str
        A deployment with two saved versions of one signature.
    column : str
        To be sticky by.
    """
    return asyncio.run(_measured(name, X, column, rounds))


async def _measured(name: str, X: Any, column: str, rounds: int) -> dict[str, float]:
    from nbdeploy import model_store, routing
    from nbdeploy.access import Guard
    from nbdeploy.endpoint import Endpoint
    from nbdeploy.exchange import Question, Reply
    from nbdeploy.http_app import HttpApp
    from nbdeploy.serve_options import ServeOptions

    reply = Reply(b'{"predictions": [1.0], "prediction_ids": ["0123456789abcdef-0"], "version": "v1"}')

    async def answer(_question: Question) -> Reply:
        return reply

    options, endpoints = ServeOptions(), {}
    for version in ("v1", "v2"):
        stored = model_store.get(name, version)
        endpoints[version] = Endpoint(name, version, stored.path, stored.files, options, leads=version == "v1")
        endpoints[version].answer = answer  # type: ignore[method-assign]
    app = HttpApp()
    app.open(endpoints["v1"], Guard(options, None, "127.0.0.1"))
    alone = routing.Traffic(name, live="v1", weights={"v1": 100.0})
    both = alone.split(v1=50, v2=50)
    only = {"v1": endpoints["v1"]}
    ways: dict[str, tuple[routing.Traffic, Mapping[str, Endpoint], bytes]] = {
        "v1 alone": (alone, only, b"nothing=v1"), "v2 loaded, no share": (alone, endpoints, b"nothing=v1"),
        "named by the request": (both, endpoints, b"version=v2"), "50/50 by request": (both, endpoints, b"nothing=v1"),
        "50/50 by header": (replace(both, sticky="X-Client-ID"), endpoints, b"nothing=v1"),
        "50/50 by column": (replace(both, sticky=column), endpoints, b"nothing=v1"),
    }  # fmt: skip
    bodies = [json.dumps([row]).encode() for row in X.head(ROWS).to_dict("records")]
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (traffic, loaded, query) in ways.items():
            app.route(traffic, loaded)
            begun = time.process_time()
            for number, body in enumerate(bodies):
                await app(_scope(query, number, len(body)), _sends(body), _hear)
            found[way].append((time.process_time() - begun) * 1e6 / len(bodies))
    for endpoint in endpoints.values():
        endpoint.close()
    return {way: statistics.median(taken) for way, taken in found.items()}


def _scope(query: bytes, number: int, size: int) -> dict[str, Any]:
    headers = {"host": "127.0.0.1", "content-type": "application/json", "x-client-id": f"client {number}", "content-length": str(size)}  # fmt: skip
    return {
        "type": "http", "method": "POST", "path": "/predict", "query_string": query, "client": ("127.0.0.1", 1),
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }  # fmt: skip


def _sends(body: bytes) -> Callable[[], Any]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _hear(message: Mapping[str, Any]) -> None:
    assert message.get("status", 200) == 200, message
