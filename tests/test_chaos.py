"""Everything at once: releases at random, workers killed, the state's writer killed, and sixteen who ask all the time."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

import nbdeploy
from asking import Adder, clients
from nbdeploy import deployment

X = pd.DataFrame({"a": np.arange(200.0), "who": [f"client {i % 50}" for i in range(200)]})
VERSIONS = ("v1", "v2", "v3")


@pytest.mark.parametrize("seconds", [20, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_in_chaos_no_answer_is_wrong_no_row_is_lost_and_our_client_fails_nobody(seconds, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    chance = random.Random(seconds)
    service = nbdeploy.deploy(Adder(1), "adder", X, workers=2)
    for number in (2, 3):
        nbdeploy.save(Adder(number), "adder", X)
    done: dict[str, int] = {}
    with clients("adder", 16, ours=True) as told:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            event = chance.choice([promote, promote, rollback, split, split, kill_worker, crash_writer])
            event(chance, service)
            done[event.__name__] = done.get(event.__name__, 0) + 1
            time.sleep(chance.uniform(0, 0.5))
    (told,) = told
    print(done, told["requests"], told["versions"])
    assert not told["wrong"], told["wrong"][:3]
    assert not told["failed"], told["failed"][:3]
    assert told["requests"] > 20 * seconds
    assert len(told["versions"]) >= 2
    log = nbdeploy.predictions("adder")
    assert set(told["ids"]) <= set(log.prediction_id)
    assert (log.prediction == log.a + 100 * log.version.str[1:].astype(int)).all()
    assert deployment.get("adder").alive
    assert nbdeploy.history("adder").time.is_monotonic_decreasing


def promote(chance, _service):
    version = chance.choice(VERSIONS)
    if version != nbdeploy.traffic("adder").live:
        nbdeploy.promote("adder", version, force="chaos")


def rollback(_chance, _service):
    if nbdeploy.traffic("adder").before:
        nbdeploy.rollback("adder")


def split(chance, _service):
    live = nbdeploy.traffic("adder").live
    other = chance.choice([version for version in VERSIONS if version != live])
    share = chance.choice([0, 1, 10, 50])
    nbdeploy.traffic("adder", **{live: 100 - share, other: share}, sticky=chance.choice(["", "who", "X-Client-ID"]))


def kill_worker(chance, service):
    workers = [p for p in psutil.Process(service.pid).children() if "nbdeploy.worker" in p.cmdline()]
    if len(workers) == 2:  # the last one is not the promise
        chance.choice(workers).kill()


def crash_writer(chance, _service):
    """Somebody's release dies in the midst of a system call of its state's writer."""
    if shutil.which("strace") is None:
        return
    call, number = chance.choice(["rename", "fsync", "write"]), chance.randint(1, 4)
    version = chance.choice(VERSIONS)
    script = f"import nbdeploy; nbdeploy.promote('adder', {version!r}, force='crash')"
    subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}",
         sys.executable, "-c", script], capture_output=True, timeout=120, check=False,
    )  # fmt: skip
