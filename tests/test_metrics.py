"""What /metrics and the access log tell: every number of every worker once, and nothing that a client made up."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import timeit
from contextlib import suppress
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

import nbdeploy
from nbdeploy import access_log, alert_rules, exports_grafana, exports_prometheus
from nbdeploy.access_log import AccessLog
from nbdeploy.novelty import Novelty
from nbdeploy.serving_metrics import FAMILIES, Metrics
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
from services import running

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def signature_of(X, private=()):
    return Signature(infer_columns(X)).with_private(private)


def metrics_of(X, version="v1", private=(), **options):
    log = SimpleNamespace(rows_written=0, dropped=0, failing="")
    return Metrics("flights", version, signature_of(X, private), log, **options)


def families(metrics):
    text, media = metrics.render()
    assert media.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def samples(metrics, *, of=None):
    """Every sample by its name and labels, without the version's."""
    text = of if of is not None else metrics.render()[0].decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "version")))
            assert key not in found, "a series that is there twice"
            found[key] = sample.value
    return found


def value(found, metric, /, **labels):
    return found[metric, tuple(sorted((key, str(held)) for key, held in labels.items()))]


@pytest.fixture
def table():
    return pd.DataFrame({"delay": [1.0, 2.0, 3.0], "carrier": ["AA", "UA", "AA"]})


# Numbers


def test_requests_are_counted_by_route_and_status_and_refusals_by_reason(table):
    metrics = metrics_of(table)
    for route, status, reason in (
        ("/predict", 200, ""), ("/predict", 200, ""), ("/predict", 422, "signature"), ("other", 404, "route"),
        ("/predict", 415, "media"), ("/predict", 413, "size"), ("/predict", 401, "token"), ("/predict", 421, "host"),
        ("/predict", 403, "origin"), ("/predict", 503, "overload"), ("/predict", 500, ""),
    ):  # fmt: skip
        metrics.arrived()
        metrics.left()
        metrics.finished(route, status, reason, 0.004)
    metrics.arrived()
    found = samples(metrics)
    assert value(found, "nbdeploy_requests_total", route="/predict", status=200) == 2
    assert value(found, "nbdeploy_requests_total", route="other", status=404) == 1
    refused = {dict(labels)["reason"]: n for (name, labels), n in found.items() if name == "nbdeploy_refusals_total"}
    assert refused == dict.fromkeys(
        ("signature", "route", "media", "size", "token", "host", "origin", "overload", "other"), 1
    )
    assert value(found, "nbdeploy_in_flight_requests") == 1
    assert value(found, "nbdeploy_request_seconds_count", route="/predict") == 10
    assert value(found, "nbdeploy_request_seconds_sum", route="/predict") == pytest.approx(0.04)


def test_a_time_is_in_the_first_bucket_that_holds_it_and_in_all_after_it(table):
    metrics = metrics_of(table)
    for seconds in (0.0001, 0.0005, 0.0006, 59.0, 60.0, 3600.0):
        metrics.left()
        metrics.finished("/predict", 200, "", seconds)
    found = samples(metrics)
    assert [value(found, "nbdeploy_request_seconds_bucket", route="/predict", le=le) for le in
            ("0.0005", "0.001", "30.0", "60.0", "+Inf")] == [2, 3, 3, 5, 6]  # fmt: skip


def test_model_calls_are_counted_with_their_rows_requests_and_time(table):
    metrics = metrics_of(table)
    metrics.called([1, 1, 30], 0.003, 7)
    metrics.called([200_000], 2.0, 0)
    found = samples(metrics)
    assert value(found, "nbdeploy_rows_total") == 200_032
    assert value(found, "nbdeploy_batch_rows_bucket", le="32.0") == 1
    assert value(found, "nbdeploy_batch_rows_count") == 2
    assert value(found, "nbdeploy_batch_requests_sum") == 4
    assert value(found, "nbdeploy_model_call_seconds_sum") == pytest.approx(2.003)
    assert value(found, "nbdeploy_waiting_rows") == 0


def test_what_the_log_wrote_and_lost_shows(table):
    log = SimpleNamespace(rows_written=5, dropped=3, failing="No space left on device")
    found = samples(Metrics("flights", "v1", signature_of(table), log))
    assert value(found, "nbdeploy_log_rows_total") == 5
    assert value(found, "nbdeploy_log_drops_total") == 3
    assert value(found, "nbdeploy_log_failing") == 1


def test_the_page_says_what_is_served_and_what_its_process_uses(table):
    metrics = metrics_of(table, worker="1")
    found = samples(metrics)
    assert value(found, "nbdeploy_info", name="flights", nbdeploy=nbdeploy.__version__) == 1
    assert value(found, "nbdeploy_workers") == 1
    assert value(found, "nbdeploy_worker_resident_memory_bytes", worker=1) > 1e6
    assert value(found, "nbdeploy_worker_cpu_seconds_total", worker=1) > 0
    assert value(found, "nbdeploy_worker_open_fds", worker=1) > 2
    assert time.time() - 60 < value(found, "nbdeploy_worker_start_time_seconds", worker=1) <= time.time()


def test_the_page_obeys_prometheus_rules_for_names_and_help(table):
    metrics = metrics_of(table)
    metrics.left()
    metrics.finished("/predict", 422, "signature", 0.1)
    text = metrics.render()[0].decode()
    found = families(metrics)
    assert len(found) >= 20
    for name, family in found.items():
        assert re.fullmatch(r"nbdeploy(_[a-z]+)+", name), name
        assert family.documentation
        assert not re.search(r"_(count|sum|bucket|info_info|counter|gauge|histogram)$", name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|kilobytes|percent|sec|mem)(_|$)", name)
        if family.type == "counter":
            assert f"# TYPE {name}_total counter" in text
        else:
            assert not name.endswith("_total")
        assert all(sample.labels["version"] == "v1" for sample in family.samples)
    assert "_created" not in text


def test_labels_stay_bounded_whatever_is_counted(table):
    metrics = metrics_of(table)
    for i in range(3_000):
        metrics.left()
        metrics.finished(f"/made/up/{i}", 404, f"reason {i}", 0.001)
    found = samples(metrics)
    counted = {key: n for key, n in found.items() if key[0] in ("nbdeploy_requests_total", "nbdeploy_refusals_total")}
    assert len(counted) < 1_100
    assert sum(counted.values()) == 6_000


def test_counting_costs_next_to_nothing(flights):
    X, _ = flights
    metrics = metrics_of(X)
    columns = {name: X[name][:32].tolist() for name in X}

    def request():
        metrics.arrived()
        metrics.left()
        metrics.finished("/predict", 200, "", 0.003)

    def call():
        metrics.called([1] * 32, 0.003, 0)
        metrics.saw(columns, None)

    # The promise is 5 and 100 microseconds; a busy machine gets some more.
    assert min(timeit.repeat(request, number=1_000, repeat=5)) / 1_000 < 20e-6
    assert min(timeit.repeat(call, number=200, repeat=5)) / 200 < 400e-6


# What training never saw


TRAINING = {
    "float": pd.Series([0.0, 1.0, 2.0]),
    "float32": pd.Series([0.1, 0.2, 0.3], dtype="float32"),
    "int": pd.Series([1, 2, 3]),
    "Int64": pd.Series([1, None, 3], dtype="Int64"),
    "arrow": pd.Series([1.5, None, 3.5], dtype="float64[pyarrow]"),
    "text": pd.Series(["AA", None, "UA"], dtype=object),
    "category": pd.Series(["AA", None, "UA"], dtype="category"),
    "numbers": pd.Series([1, 2, 1], dtype="category"),
    "moment": pd.Series(pd.to_datetime(["2013-01-01T08:00", None, "2013-01-31T20:00"])),
    "zoned": pd.Series(pd.to_datetime(["2013-01-01T08:00Z", "2013-01-02T08:00Z", "2013-01-31T20:00Z"])),
    "day": pd.Series([dt.date(2013, 1, 1), None, dt.date(2013, 1, 31)], dtype=object),
    "bool": pd.Series([True, False, True]),
}
ASKED = {  # values, and how many of them are unseen, out of range, missing
    "float": ([0.0, 2.0, 2.5, -1.0, 1], 0, 2, 0),
    "float32": ([0.1, 0.3, 0.31, 0.2, 0.0999], 0, 2, 0),
    "int": ([1, 3, 4, 0, 2.0], 0, 2, 0),
    "Int64": ([1, None, 4, None, 3], 0, 1, 2),
    "arrow": ([1.5, None, 1.4, 9.0, None], 0, 2, 2),
    "text": (["AA", None, "ZZ", "", "UA"], 2, 0, 1),
    "category": (["AA", None, "ZZ", "ZZ", "UA"], 2, 0, 1),
    "numbers": ([1, 2, 3, 4, 1.0], 2, 0, 0),
    "moment": (["2013-01-01 08:00", None, "2013-01-31T20:00:01", "2012-12-31", "2013-01-05"], 0, 2, 1),
    "zoned": (["2013-01-01T08:00Z", "2013-01-01T08:00+01:00", "2013-01-31T20:30Z", "2013-01-05T00:00Z",
               "2013-01-31T21:00+01:00"], 0, 2, 0),
    "day": (["2013-01-01", None, "2013-02-01", "2013-01-31", "2012-01-05"], 0, 2, 1),
    "bool": ([True, False, True, True, False], 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("times", [1, 220], ids=["few rows", "many rows"])
@pytest.mark.parametrize("way", ["values", "frame", "both"])
def test_values_unlike_those_of_training_are_counted_per_column(way, times):
    training = pd.DataFrame(TRAINING)
    signature = signature_of(training)
    rows = [list(row) for row in zip(*(held[0] for held in ASKED.values()), strict=True)]
    columns = signature.check({"columns": list(ASKED), "data": rows * times})
    frame = signature.build(columns)
    metrics = metrics_of(training)
    metrics.saw(None if way == "frame" else columns, None if way == "values" else frame)
    found = samples(metrics)
    for name, (_, unseen, outside, nulls) in ASKED.items():
        counted = [
            found.get((metric, (("column", name),)))
            for metric in ("nbdeploy_unseen_categories_total", "nbdeploy_out_of_range_total", "nbdeploy_nulls_total")
        ]
        categories = name in ("text", "category", "numbers")
        nullable = name in ("Int64", "arrow", "text", "category", "moment", "day")
        assert counted == [
            unseen * times if categories else None,
            None if categories or name == "bool" else outside * times,
            nulls * times if nullable else None,
        ], name


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8"])
def test_a_wide_frame_of_one_type_is_counted_at_once_and_alike(dtype):
    rng = np.random.default_rng(0)
    training = pd.DataFrame(rng.integers(50, 100, (40, 150)).astype(dtype)).rename(columns=str)
    asked = pd.DataFrame(rng.integers(45, 105, (40, 150)).astype(dtype)).rename(columns=str)
    if dtype.startswith("float"):
        training.iloc[3, 7] = asked.iloc[:5, 7] = np.nan
    at_once, one_by_one = metrics_of(training, private=["9"]), metrics_of(training, private=["9"])
    at_once.saw(None, asked)
    columns = {name: [None if cell != cell else cell for cell in asked[name].tolist()] for name in asked}
    one_by_one.saw(columns, None)
    kinds = ("nbdeploy_unseen_categories_total", "nbdeploy_out_of_range_total", "nbdeploy_nulls_total")
    first, second = ({k: n for k, n in samples(m).items() if k[0] in kinds} for m in (at_once, one_by_one))
    assert first == second
    low, high = training.min(), training.max()
    expected = ((asked < low) | (asked > high)).sum().drop("9")
    assert {dict(k[1])["column"]: n for k, n in first.items() if k[0] == kinds[1]} == expected.to_dict()
    assert expected.sum() > 100


def test_a_private_column_is_not_counted_for_a_count_would_tell_its_range(table):
    metrics = metrics_of(table.assign(income=[1.0, 2.0, None]), private=["income", "carrier"])
    metrics.saw({"delay": [9.0], "carrier": ["ZZ"], "income": [99.0]}, None)
    text = metrics.render()[0].decode()
    assert value(samples(metrics), "nbdeploy_out_of_range_total", column="delay") == 1
    assert "income" not in text
    assert "carrier" not in text


def test_columns_after_the_two_hundredth_share_one_tally():
    names = [*(f"c{i}" for i in range(299)), "other"]
    metrics = metrics_of(pd.DataFrame([[0.0] * 300, [1.0] * 300], columns=names))
    metrics.saw({name: [5.0] for name in names}, None)
    metrics.saw(None, pd.DataFrame([[5.0] * 300] * 2, columns=names))
    counted = {dict(k[1])["column"]: n for k, n in samples(metrics).items() if k[0] == "nbdeploy_out_of_range_total"}
    assert len(counted) == 201
    assert counted["c0"] == counted["c199"] == 3
    assert counted["other_"] == 300


def test_arrays_are_counted_where_they_are_missing():
    training = pd.DataFrame({"image": [np.zeros((2, 2)), None], "text": [f"a text {i}" for i in range(2)]})
    metrics = metrics_of(training)
    metrics.saw({"image": [None, [[1.0, 2.0], [9.0, 9.0]]], "text": ["a text 0", "new"]}, None)
    found = samples(metrics)
    assert value(found, "nbdeploy_nulls_total", column="image") == 1
    assert value(found, "nbdeploy_unseen_categories_total", column="text") == 1
    assert ("nbdeploy_out_of_range_total", (("column", "image"),)) not in found


def test_a_column_of_any_name_is_a_label_and_no_more():
    names = [
        'a"} 7\nnbdeploy_evil 1',
        "back\\slash",
        "nul\0and\x1b[31m",
        "x" * 5_000,
        "x" * 4_999 + "y",
        "日本 \u202e",
        "",
    ]
    metrics = metrics_of(pd.DataFrame([[0.0] * len(names), [1.0] * len(names)], columns=names))
    metrics.saw({name: [5.0] for name in names}, None)
    text = metrics.render()[0].decode()
    assert not any(line.startswith("nbdeploy_evil") for line in text.splitlines())
    assert "\0" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 400
    counted = {dict(k[1])["column"]: n for k, n in samples(metrics).items() if k[0] == "nbdeploy_out_of_range_total"}
    assert list(counted.values()) == [1.0] * len(names)
    assert {names[0], names[1], names[5]} <= set(counted)


def test_what_cannot_be_counted_fails_no_answer(table, caplog):
    metrics = metrics_of(table)
    for _ in range(3):
        metrics.saw({"delay": [object()], "carrier": [["unhashable"]]}, None)
        metrics.saw({}, None)
    assert len(caplog.records) == 1
    metrics.saw({"delay": [9.0], "carrier": ["ZZ"]}, None)
    assert value(samples(metrics), "nbdeploy_out_of_range_total", column="delay") == 1


# Several workers


COUNTING = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import pandas as pd
from nbdeploy.novelty import Novelty
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns
table = pd.DataFrame({"delay": [1.0, 2.0, 3.0], "carrier": ["AA", "UA", "AA"]})
log = SimpleNamespace(rows_written=1, dropped=0, failing="")
metrics = Metrics("flights", "v1", Signature(infer_columns(table)), log, folder=Path(sys.argv[1]), worker=sys.argv[2])
metrics.arrived(); metrics.arrived()
metrics.left()
metrics.finished("/predict", 200, "", 0.01)
metrics.called([1, 2], 0.01, 4)
metrics.saw({"delay": [9.0], "carrier": ["ZZ"]}, None)
time.sleep(0.7)
print("counted", flush=True)
sys.stdin.readline()
metrics.close()
"""


class Elsewhere:
    """A worker in a process of its own, which has counted one of everything."""

    def __init__(self, folder, label):
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(folder), label],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self):
        assert self.process.stdout.readline() == "counted\n"
        return self

    def end(self, how="politely"):
        if how == "killed":
            self.process.send_signal(signal.SIGKILL)
        with suppress(BrokenPipeError):
            self.process.communicate("\n", timeout=30)


def test_any_worker_shows_the_sum_of_all_and_a_dead_one_keeps_its_counts_but_no_gauge(table, tmp_path):
    others = [Elsewhere(tmp_path, "2"), Elsewhere(tmp_path, "3")]
    try:
        here = metrics_of(table, folder=tmp_path, worker="1")
        here.called([5], 0.02, 6)
        for other in others:
            other.ready()
        found = samples(here)
        assert value(found, "nbdeploy_rows_total") == 5 + 3 + 3
        assert value(found, "nbdeploy_batch_rows_count") == 3
        assert value(found, "nbdeploy_requests_total", route="/predict", status=200) == 2
        assert value(found, "nbdeploy_in_flight_requests") == 2
        assert value(found, "nbdeploy_waiting_rows") == 6 + 4 + 4
        assert value(found, "nbdeploy_unseen_categories_total", column="carrier") == 2
        assert value(found, "nbdeploy_log_rows_total") == 2
        assert value(found, "nbdeploy_workers") == 3
        assert value(found, "nbdeploy_worker_open_fds", worker=3) > 2
    finally:
        others[0].end("killed")
        others[1].end("politely")
    found = samples(here)
    assert value(found, "nbdeploy_rows_total") == 11
    assert value(found, "nbdeploy_waiting_rows") == 6
    assert value(found, "nbdeploy_in_flight_requests") == 0
    assert value(found, "nbdeploy_workers") == 1
    assert ("nbdeploy_worker_open_fds", (("worker", "3"),)) not in found
    # The next one sums up those that ended, and nothing is counted twice or lost.
    after = metrics_of(table, folder=tmp_path, worker="2")
    assert len([*tmp_path.glob("worker-*")]) == 2
    for metrics in (here, after):
        found = samples(metrics)
        assert value(found, "nbdeploy_rows_total") == 11
        assert value(found, "nbdeploy_batch_rows_count") == 3
        assert value(found, "nbdeploy_workers") == 2
    here.close()
    last = metrics_of(table, folder=tmp_path, worker="1")
    assert value(samples(last), "nbdeploy_rows_total") == 11
    for metrics in (after, last):
        metrics.close()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_worker_that_died_between_summing_up_and_clearing_is_not_counted_twice(table, tmp_path):
    first = metrics_of(table, folder=tmp_path)
    first.called([5], 0.02, 0)
    first.close()
    (kept,) = tmp_path.glob("worker-*")
    body = kept.read_bytes()
    second = metrics_of(table, folder=tmp_path)  # sums the first up, and clears it
    kept.write_bytes(body)  # as if it had not come to that
    assert value(samples(second), "nbdeploy_rows_total") == 5
    third = metrics_of(table, folder=tmp_path)
    assert value(samples(third), "nbdeploy_rows_total") == 5
    second.close()
    third.close()


def test_a_file_that_is_no_worker_s_hides_nothing(table, tmp_path):
    for name, body in (("worker-1-x.json", b"{"), ("worker-2-y.json", b"[]"), ("ended.json", b"null"),
                       ("counter_9.db", b"\xff" * 64)):  # fmt: skip
        (tmp_path / name).write_bytes(body)
    metrics = metrics_of(table, folder=tmp_path)
    metrics.called([5], 0.02, 0)
    assert value(samples(metrics), "nbdeploy_rows_total") == 5
    metrics.close()


def test_a_folder_that_is_gone_or_full_costs_no_count_of_its_own_worker(table, tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    metrics = metrics_of(table, folder=folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    metrics.called([5], 0.02, 0)
    time.sleep(0.6)
    assert value(samples(metrics), "nbdeploy_rows_total") == 5
    folder.mkdir()
    time.sleep(0.6)
    assert len([*folder.glob("worker-*")]) == 1
    metrics.close()


def test_two_apps_in_one_process_never_mix_theirs(table, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))  # the host's own, for its own metrics
    one, two = metrics_of(table), metrics_of(table, "v7")
    one.called([5], 0.02, 0)
    two.called([1], 0.02, 0)
    assert value(samples(one), "nbdeploy_rows_total") == 5
    assert value(samples(two), "nbdeploy_rows_total") == 1
    assert {s.labels["version"] for family in families(two).values() for s in family.samples} == {"v7"}
    assert not [*tmp_path.iterdir()]


def test_metrics_of_the_model_s_own_code_are_on_the_page(table, tmp_path):
    counting = "from prometheus_client import Counter; Counter('fallbacks', 'Of the model').inc(3)"
    subprocess.run(
        [sys.executable, "-c", counting], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, check=True
    )
    metrics = metrics_of(table, folder=tmp_path)
    text = metrics.render()[0].decode()
    metrics.close()
    assert "fallbacks_total 3.0" in text
    assert value(samples(metrics), "nbdeploy_rows_total") == 0


def test_the_page_can_be_asked_for_while_everything_is_counted(table, tmp_path):
    metrics = metrics_of(table, folder=tmp_path)
    ended = threading.Event()

    def requests():
        i = 0
        while not ended.is_set():
            i += 1
            metrics.arrived()
            metrics.left()
            metrics.finished(f"/{i % 40}", 200 + i % 300, "signature", 0.001)

    def calls():
        while not ended.is_set():
            metrics.called([1], 0.001, 0)
            metrics.saw({"delay": [9.0], "carrier": ["ZZ"]}, None)

    threads = [threading.Thread(target=requests), threading.Thread(target=calls)]
    for thread in threads:
        thread.start()
    try:
        before = 0
        for _ in range(3):
            found = samples(metrics)
            rows = value(found, "nbdeploy_rows_total")
            assert rows >= before
            before = rows
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    metrics.close()
    found = samples(metrics)
    assert value(found, "nbdeploy_rows_total") == value(found, "nbdeploy_out_of_range_total", column="delay")


# The request's id and its trace


@pytest.mark.parametrize("given", ["a", "9f86d081-884c.7d65_A", "Root=1-67891233-abcdef012345678912345678", "x" * 128,
                                   "a/b+c:d=e@f"])  # fmt: skip
def test_the_caller_s_request_id_is_kept(given):
    assert access_log.request_id({"x-request-id": given}) == given


@pytest.mark.parametrize(
    "given",
    [None, "", " ", "a b", "a\r\nSet-Cookie: x=1", "a\n", "<script>", '"', "x" * 129, "é", "\u0661", "a\0", "$(id)"],
)
def test_a_request_id_that_is_no_plain_word_is_replaced(given):
    headers = {} if given is None else {"x-request-id": given}
    found = {access_log.request_id(headers) for _ in range(10)}
    assert len(found) == 10
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in found)


def test_a_valid_trace_is_read_and_sent_back_as_it_came():
    assert access_log.trace_of({}) == ("", {})
    assert access_log.trace_of({"traceparent": PARENT}) == (TRACE, {"traceparent": PARENT})
    given = {"traceparent": PARENT, "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7"}
    assert access_log.trace_of(given) == (TRACE, given)
    for state in ("", "x" * 513, "a=b\r\nSet-Cookie: x=1", "a=é", "a=\t"):
        assert access_log.trace_of({"traceparent": PARENT, "tracestate": state}) == (TRACE, {"traceparent": PARENT})


@pytest.mark.parametrize(
    "parent",
    [
        "", "00", PARENT.upper(), f"{PARENT}-00", f" {PARENT}", f"{PARENT}\n", f"01{PARENT[2:]}", f"ff{PARENT[2:]}",
        PARENT.replace(TRACE, "0" * 32), PARENT.replace("b7ad6b7169203331", "0" * 16), PARENT.replace("-", "_"),
        PARENT[:-1], PARENT.replace("0af", "0ag"), "00-" + "\u0661" * 32 + "-b7ad6b7169203331-01",
    ],
)  # fmt: skip
def test_a_trace_that_is_not_as_the_standard_has_it_is_ignored(parent):
    assert access_log.trace_of({"traceparent": parent, "tracestate": "a=b"}) == ("", {})


# The access log


def request(**changed):
    return {
        "request_id": "9f86d081", "trace": TRACE, "method": "POST", "path": "/predict", "route": "/predict", "status": 422,
        "reason": "signature", "seconds": 0.0123456789, "rows": 2, "bytes_in": 10, "bytes_out": 20, "client": "127.0.0.1",
        "version": "v1", **changed,
    }  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_request_is_one_json_line(tmp_path):
    log = AccessLog(tmp_path / "access.log")
    log.write(**request())
    log.write(**request(trace="", reason="", status=200))
    log.close()
    first, second = lines(tmp_path / "access.log")
    when = dt.datetime.fromisoformat(first.pop("time"))
    assert abs((when - dt.datetime.now(dt.timezone.utc)).total_seconds()) < 60
    assert first == request(seconds=0.012346)
    assert second["trace"] is second["reason"] is None
    assert (tmp_path / "access.log").stat().st_mode & 0o777 == 0o600


def test_lines_are_there_within_half_a_second(tmp_path):
    log = AccessLog(tmp_path / "access.log")
    log.write(**request())
    time.sleep(0.6)
    assert len(lines(tmp_path / "access.log")) == 1
    log.close()


def test_what_a_client_made_up_is_bounded_and_no_terminal_obeys_it(tmp_path):
    log = AccessLog(tmp_path / "access.log")
    evil = [
        '/a\n{"status": 200}',
        "/\x1b[2J\x9b31m\x7f",
        "/\u202e\u2028",
        "/\ud800",
        "/" + "\U0001f600" * 9_000,
        "/" * 99_999,
    ]
    for text in evil:
        log.write(**request(path=text, client=text, method=text))
    log.close()
    raw = (tmp_path / "access.log").read_bytes()
    assert raw.isascii()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", raw)
    found = lines(tmp_path / "access.log")
    assert [each["path"] for each in found] == [text[:256] for text in evil]


def test_a_line_costs_a_request_next_to_nothing(tmp_path):
    log = AccessLog(tmp_path / "access.log")
    entry = request()
    assert min(timeit.repeat(lambda: log.write(**entry), number=500, repeat=5)) / 500 < 20e-6
    log.close()
    assert len(lines(tmp_path / "access.log")) == 2_500


WRITING = """
import os, sys
from pathlib import Path
from nbdeploy import access_log
access_log.MAX_FILE = int(sys.argv[2])
log = access_log.AccessLog(Path(sys.argv[1]) if sys.argv[1] else None)
for i in range(3000):
    log.write(request_id=str(i), trace="", method="POST", path="/" + "p" * 200, route="/predict", status=200, reason="",
              seconds=0.001, rows=1, bytes_in=1, bytes_out=1, client="127.0.0.1", version=str(os.getpid()))
    if i % 100 == 0:
        log.flush()
log.close()
print("dropped", log.dropped, file=sys.stderr)
"""


def writer(*arguments, **streams):
    return subprocess.Popen([sys.executable, "-c", WRITING, *map(str, arguments)], **streams)


def test_several_workers_share_a_pipe_and_no_line_is_torn():
    reading, writing = os.pipe()
    both = [writer("", 0, stdout=writing) for _ in range(2)]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = [json.loads(line) for line in pipe]
    assert len({(each["version"], each["request_id"]) for each in found}) == len(found) == 6_000
    assert all(process.wait(60) == 0 for process in both)


def test_several_workers_share_a_file_which_is_put_aside_once_it_is_large_and_no_line_is_lost(tmp_path):
    path, aside = tmp_path / "access.log", tmp_path / "access.log.1"
    assert [process.wait(60) for process in [writer(path, 1_600_000) for _ in range(2)]] == [0, 0]
    assert {each.name for each in tmp_path.iterdir()} == {path.name, aside.name}
    assert 1_600_000 <= aside.stat().st_size < 2_200_000
    found = [*lines(aside), *lines(path)]
    assert len({(each["version"], each["request_id"]) for each in found}) == len(found) == 6_000


def test_a_file_that_is_moved_or_removed_is_followed_by_a_new_one(tmp_path):
    path = tmp_path / "access.log"
    log = AccessLog(path)
    log.write(**request())
    log.flush()
    path.rename(tmp_path / "moved")
    log.write(**request())
    log.flush()
    path.unlink()
    log.write(**request())
    log.close()
    assert len(lines(tmp_path / "moved")) == len(lines(path)) == 1


def test_an_output_that_was_never_there_or_has_gone_fails_nothing():
    closed = writer("", 0, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    _, told = closed.communicate(timeout=60)
    assert (closed.returncode, told[:7]) == (0, b"dropped")
    reading, writing = os.pipe()
    left = writer("", 0, stdout=writing, stderr=subprocess.PIPE)
    os.close(reading)
    os.close(writing)
    _, told = left.communicate(timeout=60)
    assert (left.returncode, told[:7]) == (0, b"dropped")


@LINUX_ONLY
def test_a_full_disk_fails_nothing_and_loses_only_what_is_too_much(monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(access_log, "MAX_WAITING", 100)
    log = AccessLog(Path("/dev/full"))
    for _ in range(300):
        log.write(**request())
    log.flush()
    for _ in range(300):
        log.write(**request())
    assert log.dropped > 300
    log.close()


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(fifo)
    for _ in range(2_000):
        log.write(**request())
    time.sleep(0.5)  # the thread hangs in it
    begun = time.perf_counter()
    for _ in range(2_000):
        log.write(**request())
    assert time.perf_counter() - begun < 1
    log.close()
    assert time.perf_counter() - begun < 4
    os.set_blocking(reading, True)
    os.close(reading)


# Through a real service


@pytest.fixture(scope="module")
def service(flight_model, sample_flights):
    X, y = sample_flights(1)
    with running(flight_model, "metered", X, y, workers=2, access_log=True, max_body=100_000) as (found, home):
        yield SimpleNamespace(url=found.url, pid=found.pid, home=home, rows=json.loads(X.to_json(orient="records")))


def scraped(service):
    """The page once all workers have left their numbers."""
    time.sleep(0.6)
    return samples(None, of=httpx.get(f"{service.url}/metrics").text)


def grown(service, before, metric, /, **labels):
    key = (metric, tuple(sorted((name, str(held)) for name, held in labels.items())))
    return scraped(service).get(key, 0) - before.get(key, 0)


def accessed(service, request_id):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in (service.home / "run" / "metered" / "service.log").read_bytes().splitlines():
            if line.startswith(b"{") and json.loads(line).get("request_id") == request_id:
                return json.loads(line)
        time.sleep(0.1)
    msg = f"no line of {request_id}"
    raise AssertionError(msg)


def test_every_answer_has_the_request_id_that_its_caller_gave_or_a_new_one(service):
    for path in ("/predict", "/signature", "/livez", "/nowhere"):
        given = httpx.get(f"{service.url}{path}", headers={"X-Request-ID": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        for bad in ({}, {"X-Request-ID": "a b"}, {"X-Request-ID": "x" * 200}):
            got = httpx.get(f"{service.url}{path}", headers=bad).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{16}", got)


def test_a_trace_comes_back_as_it_was_sent_and_a_broken_one_does_not(service):
    given = {"traceparent": PARENT, "tracestate": "congo=t61rcWkgMzE"}
    answer = httpx.post(f"{service.url}/predict", json=service.rows[0], headers=given)
    assert {name: answer.headers[name] for name in given} == given
    answer = httpx.get(f"{service.url}/signature", headers={**given, "traceparent": "00-0-0-0"})
    assert not set(given) & set(answer.headers)


def test_the_access_log_of_a_service_tells_each_request_and_no_query(service):
    headers = {"X-Request-ID": "logged-1", "traceparent": PARENT}
    answer = httpx.post(f"{service.url}/predict?proba=true&key=geheim", json=service.rows[:3], headers=headers)
    line = accessed(service, "logged-1")
    assert {name: line[name] for name in ("trace", "method", "path", "route", "status", "reason", "rows", "version")} == {
        "trace": TRACE, "method": "POST", "path": "/predict", "route": "/predict", "status": 200, "reason": None,
        "rows": 3, "version": "v1",
    }  # fmt: skip
    assert line["bytes_out"] == len(answer.content)
    assert line["bytes_in"] == len(answer.request.content)
    assert line["client"] == "127.0.0.1"
    assert 0 < line["seconds"] < 60
    httpx.get(f"{service.url}/no%0Awhere%1b?key=geheim", headers={"X-Request-ID": "logged-2"})
    line = accessed(service, "logged-2")
    assert (line["path"], line["route"], line["status"], line["reason"]) == ("/no\nwhere\x1b", "other", 404, "route")
    assert b"geheim" not in (service.home / "run" / "metered" / "service.log").read_bytes()


def test_what_is_exported_asks_for_metrics_and_labels_of_this_page(service):
    dashboard = json.loads(exports_grafana.render("metered")[0])
    rules = [
        alert_rules.Rule(name, "<", 0.5, version="v1") for name, each in alert_rules.MEASURES.items() if each.counted
    ]
    asked = [exports_prometheus.expression("metered", rule) for rule in rules]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in dashboard["templating"]["list"]]
    families = text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text)
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    known = {f"{family.name}{suffix}" for family in families for suffix in suffixes.get(family.type, ())}
    labels = {"version", "le", "job", "instance", *(label for family in FAMILIES for label in family.labels)}

    used = {name for expression in asked for name in re.findall(r"\bnbdeploy_\w+", expression)}
    assert len(used) > 15
    assert used <= known
    named = {name for expression in asked for name in re.findall(r"(\w+)=~?\"", expression)}
    grouped = [part for expression in asked for part in re.findall(r"(?:by|on) \(([^)]*)\)", expression)]
    assert named | {name.strip() for part in grouped for name in part.split(",")} <= labels


def test_a_rule_sees_what_a_running_service_counts(service, monkeypatch):
    monkeypatch.setenv("NBDEPLOY_HOME", str(service.home))
    monkeypatch.setenv("BENTOML_HOME", str(service.home.parent / "bentoml"))
    for rule in ("requests > 0", "refused_rate > 90%", "log.dropped > 0"):
        nbdeploy.alert("metered", rule)
    for body in (service.rows[0], {}):
        httpx.post(f"{service.url}/predict", json=body)
    time.sleep(0.6)  # until the worker has left its numbers

    asked, refused, dropped = nbdeploy.alerts("metered").alerts

    assert (asked.state, refused.state, dropped.state) == ("firing", "ok", "ok")
    assert 0 < refused.measured[0] < 0.9
    assert asked.measured[0] >= 2


def test_each_refusal_is_counted_by_its_reason(service):
    before = scraped(service)
    url, row = f"{service.url}/predict", service.rows[0]
    asked = {
        ("signature", 422): lambda: httpx.post(url, json={**row, "carrier": None}),
        ("unreadable", 400): lambda: httpx.post(url, content=b"{", headers={"Content-Type": "application/json"}),
        ("media", 415): lambda: httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}),
        ("size", 413): lambda: httpx.post(url, json=[row] * 1_000),
        ("method", 405): lambda: httpx.put(url, json=row),
        ("route", 404): lambda: httpx.get(f"{service.url}/nowhere"),
        ("host", 421): lambda: httpx.post(url, json=row, headers={"Host": "evil.example"}),
        ("origin", 403): lambda: httpx.post(url, json=row, headers={"Origin": "http://evil.example"}),
    }
    for (_, status), ask in asked.items():
        for _ in range(2):
            assert ask().status_code == status
    after = scraped(service)
    for reason, status in asked:
        labels = (("reason", reason), ("status", str(status)))
        grew = after["nbdeploy_refusals_total", labels] - before.get(("nbdeploy_refusals_total", labels), 0)
        assert grew == 2, reason


def test_what_training_never_saw_is_served_and_counted(service):
    before = scraped(service)
    row = {**service.rows[0], "carrier": "ZZ", "distance": 1e6}
    assert httpx.post(f"{service.url}/predict", json=[row, row, service.rows[1]]).status_code == 200
    assert grown(service, before, "nbdeploy_unseen_categories_total", column="carrier") == 2
    assert grown(service, before, "nbdeploy_out_of_range_total", column="distance") == 2
    assert grown(service, before, "nbdeploy_unseen_categories_total", column="origin") == 0


def test_any_worker_of_a_service_shows_what_all_of_them_did(service):
    before = scraped(service)
    for _ in range(20):  # each by a connection of its own, so by either worker
        assert httpx.post(f"{service.url}/predict", json=service.rows[:2]).status_code == 200
    for page in [scraped(service), *(samples(None, of=httpx.get(f"{service.url}/metrics").text) for _ in range(6))]:
        assert value(page, "nbdeploy_rows_total") - value(before, "nbdeploy_rows_total") == 40
        assert value(page, "nbdeploy_log_rows_total") - value(before, "nbdeploy_log_rows_total") == 40
        assert value(page, "nbdeploy_workers") == 2
        assert {dict(labels).get("worker") for name, labels in page if name == "nbdeploy_worker_open_fds"} == {"1", "2"}


def test_a_worker_that_is_killed_takes_no_count_along(service):
    assert httpx.post(f"{service.url}/predict", json=service.rows[:1]).status_code == 200
    time.sleep(0.6)  # what it counted is written down by then
    before = scraped(service)
    workers = [each for each in psutil.Process(service.pid).children() if "nbdeploy.worker" in each.cmdline()]
    assert len(workers) == 2
    workers[0].kill()
    deadline = time.monotonic() + 60
    while value(page := scraped(service), "nbdeploy_workers") != 2 or not _restarted(page, before):
        assert time.monotonic() < deadline
    assert value(page, "nbdeploy_rows_total") == value(before, "nbdeploy_rows_total")
    assert value(page, "nbdeploy_requests_total", route="/predict", status=200) == value(
        before, "nbdeploy_requests_total", route="/predict", status=200
    )


def _restarted(page, before):
    name = "nbdeploy_worker_start_time_seconds"
    return any(page.get((name, key)) != held for (metric, key), held in before.items() if metric == name)


def test_rows_that_the_log_loses_show(service):
    folder = service.home / "predictions" / "metered"
    aside = folder.with_name("aside")
    assert httpx.post(f"{service.url}/predict", json=service.rows[:1]).status_code == 200  # so that there is a log
    before = scraped(service)
    folder.rename(aside)
    for path in aside.rglob("*"):
        if path.is_file():
            path.unlink()
    folder.touch()  # so no segment can be opened
    try:
        answer = httpx.post(f"{service.url}/predict", json=service.rows[:5])
        assert answer.status_code == 200
        assert grown(service, before, "nbdeploy_log_drops_total") == 5
        assert value(scraped(service), "nbdeploy_log_failing") == 1
    finally:
        folder.unlink()
        aside.rename(folder)


def test_two_deployments_never_mix_theirs(service, flights):
    X, _ = flights
    before = scraped(service)
    with running(lambda frame: [0] * len(frame), "other", X[["hour"]]) as (second, _):
        assert httpx.post(f"{second.url}/predict", json=[{"hour": 5}, {"hour": 99}]).status_code == 200
        theirs = scraped(second)
        assert value(theirs, "nbdeploy_rows_total") == 2
        assert value(theirs, "nbdeploy_out_of_range_total", column="hour") == 1
        assert value(theirs, "nbdeploy_info", name="other", nbdeploy=nbdeploy.__version__) == 1
        assert not any(("column", "carrier") in labels for _, labels in theirs)
        assert grown(service, before, "nbdeploy_rows_total") == 0


@pytest.mark.parametrize("how", ["drop", "hash"])
def test_no_private_column_is_counted_hashed_or_not(how):
    frame = pd.DataFrame({"secret": [1, 2, 3], "open": [1, 2, 3]})
    signature = Signature(columns=infer_columns(frame)).with_private({"secret": how})
    novelty = Novelty(signature)

    novelty.count({"secret": [9], "open": [9]}, None)
    novelty.count(None, pd.DataFrame({"secret": [9], "open": [9]}))

    assert [(tally.label, tally.outside) for tally in novelty.tallies] == [("open", 2)]
