"""What each version answered is told from the workers' files alone, whatever became of the workers."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest

from nbdeploy import home as places
from nbdeploy import http_app, version_numbers, worker_numbers
from nbdeploy.exchange import Served
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from nbdeploy.version_numbers import VersionNumbers
from nbdeploy.worker_numbers import SECONDS
from services import running

NAME = "flights"
X = pd.DataFrame({"delay": [1.0, 2.0, 3.0]})


@pytest.fixture
def folder(home):
    return places.folder("run", NAME, "metrics")


def counting(folder, version="v1", **options):
    log = SimpleNamespace(rows_written=0, dropped=0, failing="")
    return Metrics(NAME, version, Signature(infer_columns(X)), log, folder=folder, **options)


def answer(metrics, statuses, seconds=0.01, route="/predict"):
    for status in statuses:
        metrics.arrived()
        metrics.finished(route, status, "", seconds)


def numbers(requests, errors=0, seconds=None, bounds=(1.0, 2.0)):
    return VersionNumbers("v1", requests, errors, 0, requests, bounds, seconds or (requests, 0, 0))


def test_nothing_is_told_of_what_never_ran(home):
    assert version_numbers.read(NAME) == {}


def test_each_version_has_its_own_numbers_of_the_requests_for_predictions(folder):
    old, new = counting(folder, "v1"), counting(folder, "v2")
    answer(old, [200] * 7 + [422, 404, 500])
    answer(old, [200, 503], route="/v2/models/flights/infer")
    answer(old, [200, 500, 404], route="/metrics")
    answer(old, [404], route="other")
    answer(new, [200, 504])
    old.called([4, 5], 0.01, 0)
    old.close()
    new.close()

    found = version_numbers.read(NAME)

    assert list(found) == ["v1", "v2"]
    first, second = found.values()
    assert (first.requests, first.errors, first.refused, first.rows) == (12, 2, 2, 9)
    assert (second.requests, second.errors, second.refused, second.rows) == (2, 1, 0, 0)
    assert first.error_rate == 2 / 12
    assert sum(first.seconds) == 12
    assert (first.bounds, len(first.seconds)) == (SECONDS, len(SECONDS) + 1)


def test_a_version_without_requests_has_no_rate_and_no_quantile(folder):
    counting(folder).close()

    (found,) = version_numbers.read(NAME).values()

    assert found.requests == 0
    assert math.isnan(found.error_rate)
    assert math.isnan(found.quantile(0.99))


CHILD = """
import sys, os
from types import SimpleNamespace
from pathlib import Path
import pandas as pd
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
log = SimpleNamespace(rows_written=0, dropped=0, failing="")
made = Metrics("flights", "v1", Signature(infer_columns(pd.DataFrame({"delay": [1.0]}))), log, folder=Path(sys.argv[1]))
made.arrived(); made.finished("/predict", 200, "", 0.01)
made.close()
os._exit(0)
"""


def test_workers_that_ended_count_once_before_and_after_their_files_are_summed(folder):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=True, timeout=60)
    before = version_numbers.read(NAME)["v1"]
    assert not (folder / worker_numbers.ENDED).exists() or before.requests == 2

    metrics = counting(folder)  # which sums up those that ended
    answer(metrics, [200])
    metrics.close()

    assert len([*folder.glob("worker-*.json")]) == 1
    assert before.requests == 2
    assert version_numbers.read(NAME)["v1"].requests == 3


@pytest.mark.parametrize(
    "torn", [b"", b'{"label": "1", "pid"', b"[]", b'{"numbers": []}', b'{"numbers": {"nbdeploy_requests": 5}}', b"\xff"]
)
def test_a_torn_file_is_left_out(folder, torn):
    metrics = counting(folder)
    answer(metrics, [200])
    metrics.close()
    (folder / "worker-1-00000000.json").write_bytes(torn)
    assert version_numbers.read(NAME)["v1"].requests == 1

    (folder / worker_numbers.ENDED).write_bytes(torn)
    assert version_numbers.read(NAME)["v1"].requests == 1


def test_what_came_after_a_reading_is_the_difference():
    earlier, later = numbers(10, 1), numbers(25, 4)

    told = later.minus(earlier)

    assert (told.requests, told.errors, told.rows, told.seconds) == (15, 3, 15, (15, 0, 0))
    assert told.error_rate == 0.2
    assert later.minus(later).requests == 0


def test_after_a_new_start_of_the_deployment_all_of_the_reading_came_after_the_earlier_one():
    assert numbers(5, 1).minus(numbers(10)) == numbers(5, 1)
    assert numbers(20, 0, (5, 15, 0)).minus(numbers(10, 0, (10, 0, 0))) == numbers(20, 0, (5, 15, 0))
    assert numbers(20, 9).minus(numbers(15, 1)) == numbers(20, 9)  # more errors than requests would be left
    assert numbers(5, bounds=(3.0, 4.0)).minus(numbers(1)) == numbers(5, bounds=(3.0, 4.0))


def test_a_quantile_is_in_the_bucket_of_that_of_the_times_themselves(folder):
    metrics = counting(folder)
    times = np.random.default_rng(4).lognormal(np.log(0.004), 0.6, 5_000).tolist()
    for seconds in times:
        answer(metrics, [200], seconds)
    metrics.close()

    told = version_numbers.read(NAME)["v1"]

    edges = (0.0, *SECONDS)
    for q in (0.1, 0.5, 0.9, 0.99):
        place = np.searchsorted(edges, np.quantile(times, q))
        assert edges[place - 1] <= told.quantile(q) <= edges[place]
    assert told.quantile(0.5) == pytest.approx(np.median(times), rel=0.1)
    assert numbers(4, 0, (0, 0, 4)).quantile(0.5) == 2.0
    assert numbers(4, 0, (0, 4, 0)).quantile(0.0) == 1.0
    assert numbers(4, 0, (0, 4, 0)).quantile(1.0) == 2.0


def test_every_route_that_predicts_is_counted_and_no_other():
    served = Served(NAME, "v2", Signature(infer_columns(X)))
    routes = http_app.all_routes(SimpleNamespace(served=served), token=False)

    for route in routes:
        assert version_numbers.predicts(route.path) == (route.read is not None), route.path
    assert not version_numbers.predicts("other")


def test_a_running_deployment_is_told_without_asking_it(flight_model, sample_flights):
    training, y = sample_flights(1)
    with running(flight_model, "numbered", training, y, workers=2) as (service, _home):
        row = httpx.get(f"{service.url}/signature").json()["example"]
        for body in [row] * 8 + [{}]:
            httpx.post(f"{service.url}/predict", json=body)
        deadline = time.monotonic() + 10
        while (told := version_numbers.read("numbered")["v1"]).requests < 9 and time.monotonic() < deadline:
            time.sleep(0.1)

    assert (told.requests, told.errors, told.refused, told.rows) == (9, 0, 1, 8)
    assert 0 < told.quantile(0.5) < 5


def test_what_a_version_did_as_a_shadow_counts_apart_also_when_it_has_ended(folder):
    live, canary = counting(folder), counting(folder, "v2")
    answer(canary, [200])
    canary.close()
    for _ in range(2):  # the second one folds the first one's file
        shadow = counting(folder, "v2", worker="shadow-v2")
        answer(shadow, [500] * 3, seconds=9.0)
        shadow.close()
    page = live.render()[0].decode()

    users, shadows = version_numbers.read(NAME)["v2"], version_numbers.read(NAME, shadows=True)["v2"]
    assert (users.requests, users.errors) == (1, 0)
    assert (shadows.requests, shadows.errors) == (6, 6)
    assert 'nbdeploy_requests_total{route="/predict",status="500",version="v2"} 6.0' in page
