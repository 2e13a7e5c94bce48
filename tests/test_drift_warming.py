"""The first report of a notebook does not wait for Evidently, which was loaded while nobody looked."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys, time, warnings
from nbdeploy import drift_warming
filters = list(warnings.filters)
began = time.perf_counter()
drift_warming.in_background(after={after})
returned = time.perf_counter() - began
at_once = "evidently" in sys.modules
slowest, last = 0.0, time.perf_counter()
while not drift_warming.done() and last - began < {until}:
    time.sleep(0.005)
    now = time.perf_counter()
    slowest, last = max(slowest, now - last), now
drift_warming.in_background(after=0.0)
print(json.dumps([returned, at_once, "evidently.legacy.report" in sys.modules, slowest, all(each in warnings.filters for each in filters)]))
"""


def warmed(after, until):
    code = CODE.format(after=after, until=until)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_it_comes_back_at_once_and_evidently_is_there_soon_and_the_kernel_answers_meanwhile():
    returned, at_once, there, slowest, filters_are_left = warmed(after=0.05, until=120)

    assert returned < 0.1
    assert not at_once
    assert there
    assert slowest < 5  # a busy machine; what an import holds the interpreter for at a time is a fraction of a second
    assert filters_are_left  # those of its libraries come to them


def test_a_process_that_ends_before_it_pays_nothing_and_says_nothing():
    assert warmed(after=60, until=0.05)[2] is False
