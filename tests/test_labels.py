"""A label is on the disk before anybody hears that it is; the last one counts, and no label is lost."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbdeploy
from log_processes import NAME, entry, writer
from nbdeploy import __main__, label_log, prediction_log, protocol_labels
from nbdeploy.errors import InputError
from nbdeploy.exchange import Asked, Refused, Served
from nbdeploy.label_log import ID, MAX_LABELS
from nbdeploy.log_clock import DAY
from nbdeploy.log_keeping import expire
from nbdeploy.log_segments import place
from nbdeploy.request_body import Unreadable
from nbdeploy.signature import Signature

FIRST, SECOND, THIRD = (f"{letter * 16}-0" for letter in "abc")


def log_some(count: int) -> list[str]:
    with writer() as log:
        entries = [entry() for _ in range(count)]
        assert log.write(entries)
    return [f"{each.request}-0" for each in entries]


def files() -> list[Path]:
    return sorted((place(NAME) / "labels").glob("*.jsonl"))


# -- in Python ----------------------------------------------------------------------------------------------


def test_labels_are_shown_beside_what_was_predicted():
    ids = log_some(4)
    series = pd.Series([True, False], index=pd.Index(ids[:2], name="prediction_id"))

    told = nbdeploy.label(NAME, series)

    assert (told.name, told.labels) == (NAME, 2)
    assert told.to_dict() == {
        "name": NAME, "labels": 2, "new": 2, "changed": 0, "repeated": 0, "unknown": 0, "missing": 0,
    }  # fmt: skip
    shown = nbdeploy.predictions(NAME)
    assert list(shown.columns)[-5:] == ["prediction", "prediction_id", "version", "time", "label"]
    assert [None if pd.isna(v) else v for v in shown.set_index("prediction_id")["label"][ids]] == [
        True,
        False,
        None,
        None,
    ]
    prediction_log.seal(NAME)
    assert nbdeploy.predictions(NAME)["label"].notna().sum() == 2


def test_the_last_label_counts_and_all_are_kept():
    log_some(1)
    for value in (1, 2, 3):
        nbdeploy.label(NAME, {FIRST: value, SECOND: "x"})
    nbdeploy.label(NAME, {SECOND: None})

    assert label_log.read(NAME) == {FIRST: 3}
    assert [each["labels"].get(FIRST) for each in label_log.history(NAME)] == [1, 2, 3, None]


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([1.5, None], index=[FIRST, SECOND]),
        pd.DataFrame({"prediction_id": [FIRST, SECOND], "label": [1.5, np.nan]}),
        pd.DataFrame({"label": [1.5]}, index=[FIRST]),
        {FIRST: np.float32(1.5)},
        pd.Series(pd.array([1.5, None], dtype="Float64"), index=[FIRST, SECOND]),
    ],
)
def test_labels_come_in_the_forms_that_people_have(labels):
    log_some(1)
    assert nbdeploy.label(NAME, labels).labels == 1
    assert label_log.read(NAME) == {FIRST: 1.5}


def test_moments_and_categories_are_labels_too():
    moments = pd.Series(pd.to_datetime(["2026-01-31T08:00"]), index=[FIRST])
    assert label_log.given(moments).labels == {FIRST: "2026-01-31T08:00:00"}
    assert label_log.given({FIRST: dt.date(2026, 1, 31)}).labels == {FIRST: "2026-01-31"}
    assert label_log.given(pd.Series(pd.Categorical(["late"]), index=[FIRST])).labels == {FIRST: "late"}


@pytest.mark.parametrize(
    "labels",
    [
        [1, 2], "late", 3, pd.Series([1]), pd.DataFrame({"prediction_id": [FIRST]}), {FIRST: [1]}, {FIRST: float("inf")},
        {FIRST: 2**70}, {FIRST: "x" * 1001}, {FIRST: "\ud800"}, {FIRST + "\n": 1}, {"../" + FIRST: 1}, {FIRST.upper(): 1},
        {"a" * 16 + "-01": 1}, {1: 1},
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_and_nothing_is_kept(labels):
    log_some(1)
    with pytest.raises(InputError):
        nbdeploy.label(NAME, labels)
    if isinstance(labels, dict):
        with pytest.raises(InputError):
            nbdeploy.label(NAME, {SECOND: 1, **labels})
    assert label_log.read(NAME) == {}


def test_labels_of_an_unknown_deployment_are_refused():
    with pytest.raises(nbdeploy.NotFound):
        nbdeploy.label("nobody", {FIRST: 1})


@settings(max_examples=300)
@given(st.from_regex(ID) | st.text(max_size=40))
def test_an_id_is_nothing_but_hexadecimal_digits_and_a_row(text):
    assert bool(ID.fullmatch(text)) == (not list(label_log.label_problems({text: 1})))
    if ID.fullmatch(text):
        assert set(text) <= set("0123456789abcdef-")
        assert len(text) <= 26


def test_the_verb_labels_from_a_file(tmp_path, capsys):
    ids = log_some(2)
    pd.DataFrame({"prediction_id": ids, "label": ["late", "on time"]}).to_csv(tmp_path / "labels.csv", index=False)

    assert __main__.main(["--json", "label", NAME, str(tmp_path / "labels.csv")]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["labels"], told["new"]) == (NAME, 2, 2)
    assert label_log.read(NAME) == dict(zip(ids, ["late", "on time"], strict=True))
    assert __main__.main(["label", NAME, str(tmp_path / "labels.csv")]) == 0
    assert f"2 labels for {NAME}: 2 repeated" in capsys.readouterr().out


# -- over HTTP ----------------------------------------------------------------------------------------------

(ROUTE,) = protocol_labels.routes(Served(NAME, "v1", Signature(())))


def post(body: object) -> dict:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return orjson.loads(ROUTE.show(Asked("POST", "/labels", {}, {"content-type": "application/json"}, content)).body)


def test_the_route_keeps_labels():
    assert (ROUTE.method, ROUTE.path, ROUTE.threaded) == ("POST", "/labels", True)
    assert post({"labels": {FIRST: True, SECOND: "late", THIRD: 1.5}}) == {"labels": 3}
    assert label_log.read(NAME) == {FIRST: True, SECOND: "late", THIRD: 1.5}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], None), ({}, None), ({"labels": []}, "labels"), ({"labels": {}}, "labels"), ({"labels": {FIRST: 1}, "x": 1}, None),
        ({"labels": {"x": 1}}, "x"), ({"labels": {FIRST: [1]}}, FIRST), ({"labels": {FIRST: {"a": 1}}}, FIRST),
        ({"labels": {FIRST: "x" * 2000}}, FIRST), ({"labels": {"x" * 5000: 1}}, "x" * 80),
        ({"labels": {f"{k:016x}-0": 1 for k in range(MAX_LABELS + 1)}}, "labels"), (None, None), ("x", None),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_its_place(body, named):
    with pytest.raises(Refused) as refused:
        post(body)
    assert refused.value.status == 422
    (problem, *_) = refused.value.problems
    assert problem["column"] == named
    assert len(refused.value.error) < 400
    assert len(json.dumps(refused.value.problems)) < 1000
    assert label_log.read(NAME) == {}


def test_the_problems_of_a_request_are_bounded():
    with pytest.raises(Refused) as refused:
        post({"labels": {f"bad-{k}": 1 for k in range(5_000)}})
    assert len(refused.value.problems) == 100


def test_what_is_not_json_is_unreadable():
    for body in (b"", b"{", b"\xff", b'{"labels": {"' + FIRST.encode() + b'": 1}'):
        with pytest.raises(Unreadable):
            post(body)
    with pytest.raises((Unreadable, InputError, Refused)):
        post(f'{{"labels": {{"{FIRST}": 1, "{FIRST}": 2}}}}'.encode())
    with pytest.raises((Unreadable, InputError, Refused)):
        post(f'{{"labels": {{"{FIRST}": NaN}}}}'.encode())


def test_a_disk_that_refuses_is_told(home):
    place(NAME).parent.mkdir(parents=True, exist_ok=True)
    place(NAME).write_text("no folder")
    with pytest.raises(Refused) as refused:
        post({"labels": {FIRST: 1}})
    assert refused.value.status == 503
    assert "Retry-After" in refused.value.headers
    place(NAME).unlink()
    assert post({"labels": {FIRST: 1}}) == {"labels": 1}


def test_a_running_service_takes_labels(flights, flight_model):
    X, y = flights
    service = nbdeploy.deploy(flight_model, "flight-delay", X, y, progress=False)
    ids = nbdeploy.predict("flight-delay", X.head(3))["prediction_id"].tolist()

    def ask(content: bytes, media: str = "application/json") -> httpx.Response:
        return httpx.post(f"{service.url}/labels", content=content, headers={"Content-Type": media}, timeout=30)

    answer = ask(json.dumps({"labels": {ids[0]: True, ids[1]: False}}).encode())
    assert (answer.status_code, answer.json()) == (200, {"labels": 2})
    assert ask(json.dumps({"labels": {"x": 1}}).encode()).status_code == 422
    assert ask(b"{").status_code == 400
    assert ask(b"{}", "text/csv").status_code == 415
    assert ask(b" " * (3 << 20)).status_code == 413
    nbdeploy.stop("flight-delay")
    nbdeploy.label("flight-delay", {ids[1]: True})  # with the service stopped
    shown = nbdeploy.predictions("flight-delay").set_index("prediction_id")["label"]
    assert shown[ids[:2]].tolist() == [True, True]
    assert pd.isna(shown[ids[2]])


# -- on disk ------------------------------------------------------------------------------------------------


def add_some(which: int) -> None:
    for k in range(40):
        label_log.add(NAME, {f"{which:08x}{k:08x}-0": which})


def test_processes_that_label_at_once_lose_nothing():
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(add_some, range(8), chunksize=1)
    assert label_log.read(NAME) == {f"{which:08x}{k:08x}-0": which for which in range(8) for k in range(40)}
    assert len(files()) == 1


def test_what_a_killed_process_left_behind_tears_nothing():
    label_log.add(NAME, {FIRST: 1})
    (path,) = files()
    for torn in (
        b'{"time": 1, "labels": {"',
        b"\x00" * 200_000,
        json.dumps({"time": 1, "labels": {SECOND: 2}}).encode(),
    ):
        with path.open("ab") as file:
            file.write(torn)
        assert label_log.read(NAME) == {FIRST: 1}
        label_log.add(NAME, {FIRST: 1})
        assert path.read_bytes().endswith(b"\n")
        assert b"\x00" not in path.read_bytes()
    label_log.add(NAME, {THIRD: 3})
    assert label_log.read(NAME) == {FIRST: 1, THIRD: 3}


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (apt-get install strace)")
@pytest.mark.parametrize("fault", ["write:error=ENOSPC", "fsync:error=EIO"])
def test_a_label_that_is_not_on_the_disk_is_not_acknowledged(home, fault):
    if subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode:
        pytest.skip("needs leave to trace")
    label_log.add(NAME, {FIRST: 1})
    code = (
        "from nbdeploy import label_log, errors\n"
        f"try: label_log.add({NAME!r}, {{{FIRST!r}: 2}})\n"
        "except OSError: raise SystemExit(7)"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    call = fault.partition(":")[0]
    traced = ["strace", "-f", "-qq", "-o", os.devnull, "-P", files()[0], "-e", f"trace={call}", "-e", f"inject={fault}"]
    assert subprocess.run([*traced, sys.executable, "-c", code], check=False, env=environment).returncode == 7
    assert label_log.read(NAME) == {FIRST: 1}
    label_log.add(NAME, {FIRST: 3})
    assert label_log.read(NAME) == {FIRST: 3}


def test_labels_are_synced_before_they_are_acknowledged(home):
    if (
        not shutil.which("strace")
        or subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode
    ):
        pytest.skip("needs strace and leave to trace")
    code = f"from nbdeploy import label_log; label_log.add({NAME!r}, {{{FIRST!r}: 1}}); print('kept', flush=True)"
    command = ["strace", "-f", "-y", "-e", "trace=write,fsync", sys.executable, "-c", code]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    calls = [line for line in told.splitlines() if "labels/" in line or "kept" in line]
    assert ["write(" in calls[0], "fsync(" in calls[1], "kept" in calls[-1]] == [True] * 3
    assert any(f"{NAME}/labels>" in line for line in told.splitlines() if "fsync(" in line)  # its name, too


def test_old_labels_go_and_the_file_in_use_stays():
    label_log.add(NAME, {FIRST: 1})
    (path,) = files()
    path.rename(path.with_name("1000000000000-00000000.jsonl"))
    label_log.add(NAME, {SECOND: 2})
    assert len(files()) == 2
    assert label_log.read(NAME) == {FIRST: 1, SECOND: 2}

    assert expire(NAME, 1e9 + 100 * DAY, days=90, max_bytes=1 << 40) == 1
    assert label_log.read(NAME) == {SECOND: 2}
    assert expire(NAME, 1e12, days=1, max_bytes=0) == 0
    assert label_log.read(NAME) == {SECOND: 2}


def test_of_a_call_that_the_disk_refuses_nothing_is_kept(monkeypatch):
    label_log.add(NAME, {FIRST: 1})
    real, calls = os.write, []

    def refuses(descriptor: int, data: bytes) -> int:
        if calls:
            raise OSError(28, "no space left")
        calls.append(real(descriptor, data[: len(data) // 2]))
        return calls[0]

    with monkeypatch.context() as patched:
        patched.setattr(label_log.os, "write", refuses)
        with pytest.raises(OSError, match="no space"):
            label_log.add(NAME, {f"{k:016x}-0": 2 for k in range(2 * MAX_LABELS)})
    assert label_log.read(NAME) == {FIRST: 1}


def test_many_labels_are_several_files(monkeypatch):
    ids = {f"{k:016x}-0": "x" * 900 for k in range(10_000)}
    for _ in range(2):
        label_log.add(NAME, ids)
    assert len(files()) == 2
    assert label_log.read(NAME) == ids


def test_labels_are_the_users_own_under_any_umask(home):
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            label_log.add(f"u{umask}", {FIRST: 1})
        finally:
            os.umask(before)
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))
