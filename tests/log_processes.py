"""Processes that write a log, or seal one, and are killed while they do: a fork for each time, so that each costs little.

A line of standard input is JSON: ``home``, ``do`` and what it needs. Standard output tells ``pid N``, what the fork has
achieved (``ok ID`` for each row that was logged, ``no ID`` for each that was not), and ``end STATUS``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow.parquet  # noqa: F401  before the forks

from nbdeploy import prediction_log
from nbdeploy.answers import Output
from nbdeploy.log_keeping import expire
from nbdeploy.log_segments import clock_of, place
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

NAME = "killed"
TRAINING = pd.DataFrame({"n": [1.5, 2.5], "i": [1, 2], "text": ["a", "b"]})
SIGNATURE = Signature(infer_columns(TRAINING), outputs=(Output("", "int64"),))


def entry(version: str = "v1", rows: int = 1, filling: str = "") -> prediction_log.Entry:
    """An answered request whose every value follows from its id."""
    request = prediction_log.new_request_id()
    number = int(request[:6], 16)
    inputs = {"n": [number / 2] * rows, "i": [number] * rows, "text": [request + filling] * rows}
    return prediction_log.Entry(version, request, inputs, [number] * rows)


def writer(**options) -> prediction_log.LogWriter:
    options = {"keep_every": None, **options}
    return prediction_log.LogWriter(NAME, SIGNATURE.columns, outputs=SIGNATURE.outputs, **options)


def whole(frame: pd.DataFrame) -> bool:
    """Whether every row is as `entry` made it."""
    numbers = frame["prediction_id"].str[:6].map(lambda text: int(text, 16))
    same = (frame["n"] == numbers / 2) & (frame["i"] == numbers) & (frame["prediction"] == numbers)
    begins = [text.startswith(i[:16]) for text, i in zip(frame["text"], frame["prediction_id"], strict=True)]
    return bool(same.all()) and all(begins) and not frame["prediction_id"].duplicated().any()


def say(*words: object) -> None:
    # Not by write(), which is where the faults are.
    os.writev(1, [(" ".join(map(str, words)) + "\n").encode()])


def write(task: dict) -> None:
    log = writer(**task.get("options", {}))
    made, ended = 0, time.monotonic() + task.get("seconds", 1e9)
    while made < task.get("batches", 1e9) and time.monotonic() < ended:
        entries = [entry(rows=1 + made % 3, filling="x" * task.get("filling", 0)) for _ in range(1 + made % 4)]
        told = "ok" if log.write(entries) else "no"
        say("\n".join(f"{told} {each.request}-{row}" for each in entries for row in range(len(each.outputs))))
        made += 1
        time.sleep(task.get("pause", 0))
    say("dropped", log.dropped)
    log.close()


def seal(_task: dict) -> None:
    prediction_log.seal(NAME)


def age(task: dict) -> None:
    """What the background does: note the time, and remove what is too old."""
    clock = clock_of(place(NAME))
    clock.save()
    say("removed", expire(NAME, clock.now(), days=task["days"], max_bytes=1 << 40))


TASKS = {"write": write, "seal": seal, "age": age}


def run(task: dict) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # whoever is not our parent may trace us
    os.environ["NBDEPLOY_HOME"] = task["home"]
    say("pid", os.getpid())
    while "go" in task and not Path(task["go"]).exists():
        time.sleep(0.001)
    TASKS[task["do"]](task)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:  # so that all is imported
        os.environ["NBDEPLOY_HOME"] = folder
        log = writer()
        log.write([entry()])
        log.close()
        prediction_log.read(NAME)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                run(json.loads(line))
                code = 0
            finally:
                with suppress(OSError):
                    sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        say("end", os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
