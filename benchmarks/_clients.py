"""Clients in a process of their own, who ask one row after the other until their standard input ends.

    python _clients.py PORT PATH BODIES CLIENTS < pipe

Each asks again as soon as it is answered, and makes another connection after 40 requests, so that every worker of a
service is asked; where a request fails, it waits a tenth of a second before it goes on. Prints JSON: of each request when it was sent, when it ended, and what came: ``true`` or ``false``, as
far as the answer has one of these words, or why it failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

PAUSE = 0.1  # seconds after a failure
KEPT = 40  # requests on one connection


async def answer_of(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
    body = await reader.readexactly(int(length.split(":")[1]))
    status = head.split()[1]
    found = [word for word in ("true", "false") if word.encode() in body.lower()]
    return found[0] if status == "200" and len(found) == 1 else f"failed: {status} {body[:80]!r}"


async def ask(
    port: int,
    path: str,
    bodies: list[bytes],
    number: int,
    *,
    told: list[tuple[float, float, str]],
    ended: asyncio.Event,
) -> None:
    reader = writer = None
    count = number * 97
    while not ended.is_set():
        count += 1
        body = bodies[count % len(bodies)]
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sent = time.monotonic()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + body)
            assert reader is not None
            what = await asyncio.wait_for(answer_of(reader), 30)
        except (OSError, EOFError, StopIteration, asyncio.TimeoutError) as error:
            what = f"failed: {type(error).__name__}"
        told.append((sent, time.monotonic(), what))
        failed = what.startswith("failed")
        if writer is not None and (failed or count % KEPT == 0):
            writer.close()
            writer = None
        if failed:
            await asyncio.sleep(PAUSE)


async def main(port: int, path: str, bodies: list[bytes], clients: int) -> None:
    told: list[tuple[float, float, str]] = []
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await asyncio.gather(*(ask(port, path, bodies, number, told=told, ended=ended) for number in range(clients)))
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes().splitlines(), int(sys.argv[4])))
