"""A client in a process of its own: asks at a steady rate, whether or not it is answered, and tells each answer.

    python load.py URL RATE SECONDS CONNECTIONS < body

Prints JSON: a list of [status, seconds, Retry-After or null]; status 0 is a connection that broke.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, str | None]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers.get("retry-after")


async def run(url: str, rate: float, seconds: float, connections: int, body: bytes) -> list[list[object]]:
    place = urlsplit(url)
    head = (
        f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request, answers = head.encode() + body, []
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    places = asyncio.Semaphore(connections)

    async def ask() -> None:
        async with places:
            begun = time.perf_counter()
            try:
                reader, writer = free.pop() if free else await asyncio.open_connection(place.hostname, place.port)
                begun = time.perf_counter()
                writer.write(request)
                status, retry = await read_answer(reader)
            except (OSError, EOFError) as error:
                print(type(error).__name__, error, file=sys.stderr)
                answers.append([0, time.perf_counter() - begun, None])
                return
            answers.append([status, time.perf_counter() - begun, retry])
            free.append((reader, writer))

    begun, asked = time.perf_counter(), []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + i / rate - time.perf_counter()))
        asked.append(asyncio.create_task(ask()))
    await asyncio.gather(*asked)
    for _, writer in free:
        writer.close()
    return answers


if __name__ == "__main__":
    url, rate, seconds, connections = sys.argv[1:]
    print(json.dumps(asyncio.run(run(url, float(rate), float(seconds), int(connections), sys.stdin.buffer.read()))))
