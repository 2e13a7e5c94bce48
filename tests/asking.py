"""Clients in a process of their own, who ask one after the other until their standard input ends, and check each answer.

    python asking.py URL CLIENTS < pipe
    python asking.py --ours NAME CLIENTS < pipe      # by nbdeploy.predict

Of a deployment of `Adder` models: the answer of version N to ``a`` is ``a + 100 * N``. Prints JSON at the end.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd


class Adder:
    """Adds a number to the column ``a``."""

    def __init__(self, number, slow=0.0):
        self.number, self.slow = number, slow

    def predict(self, X):
        time.sleep(self.slow)
        return X["a"].to_numpy() + 100 * self.number


async def answer_of(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length"))
    return int(head.split()[1]), await reader.readexactly(int(length.split(":")[1]))


async def ask(url, number, told, ended):
    place = urlsplit(url)
    reader = writer = None
    count = 0
    while not ended.is_set():
        count += 1
        value = float(number * 100_000 + count)
        body = json.dumps({"a": value, "who": f"client {count % 50}"}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: {place.netloc}\r\nX-Client-ID: {number}\r\nContent-Type: application/json\r\n"
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status, answer = await asyncio.wait_for(answer_of(reader), 30)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            told["failed"].append(f"{type(error).__name__}: {error}")
            writer = None
            continue
        told["requests"] += 1
        if status != 200:
            told["failed"].append(f"{status}: {answer[:200]!r}")
            continue
        found = json.loads(answer)
        version = found["version"]
        told["versions"][version] += 1
        told["by_client"].setdefault(number, Counter())[version] += 1
        told["ids"].append(found["prediction_ids"][0])
        if found["predictions"] != [value + 100 * int(version[1:])]:
            told["wrong"].append(f"{value}: {answer[:200]!r}")


async def run(url, clients):
    told = {"requests": 0, "failed": [], "wrong": [], "versions": Counter(), "by_client": {}, "ids": []}
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await asyncio.gather(*(ask(url, number, told, ended) for number in range(clients)))
    return told


def run_ours(name, count):
    import nbdeploy

    told = {"requests": 0, "failed": [], "wrong": [], "versions": Counter(), "ids": []}
    lock, ended = threading.Lock(), threading.Event()

    def ask(number):
        asked = 0
        while not ended.is_set():
            asked += 1
            rows = pd.DataFrame({"a": [number * 1e6 + asked * 10 + i for i in range(1 + asked % 3)]})
            rows["who"] = [f"client {(asked + i) % 50}" for i in range(len(rows))]
            try:
                found = nbdeploy.predict(name, rows)
            except Exception as error:
                with lock:
                    told["failed"].append(f"{type(error).__name__}: {error}")
                continue
            with lock:
                told["requests"] += 1
                told["versions"].update(found.version)
                told["ids"] += found.prediction_id.tolist()
                if (found.prediction != rows.a + 100 * found.version.str[1:].astype(int)).any():
                    told["wrong"].append(found.to_dict("records"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    return told


@contextmanager
def clients(url, count=16, *, ours=False):
    """Let so many ask while the block runs; what they were told is in the list afterwards.

    With `ours` they ask by `nbdeploy.predict`, and `url` is the name of the deployment.
    """
    command = [sys.executable, str(Path(__file__)), *(["--ours"] if ours else []), url, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        told = []
        process.stdout.readline()
        try:
            yield told
        finally:
            said, _ = process.communicate(timeout=60)
            told.append(json.loads(said))


if __name__ == "__main__":
    print("asking", flush=True)
    if sys.argv[1] == "--ours":
        print(json.dumps(run_ours(sys.argv[2], int(sys.argv[3]))))
    else:
        print(json.dumps(asyncio.run(run(sys.argv[1], int(sys.argv[2])))))
