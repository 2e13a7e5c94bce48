"""Drift: nbdeploy against bare Evidently on the same frames in the same run, and what a log of ten million rows takes.

``python benchmarks/drift.py`` measures 10,000 and 100,000 rows of 20 columns; ``--rows 1000000 --rounds 1`` a million, where
bare Evidently alone takes minutes. Both have run once before the clock starts where there is more than one round, and
Evidently is imported. ``--log 10000000`` writes a log of that many rows over 100 days in the log's own format, and
measures in processes of their own: the memory and time of a report on all of it, on a day of it, and on a log that has no
other day. ``--first`` measures what the first report of a process waits for, without and with warming.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import drift_report

DAYS = 100
FIRST_DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)
NAME = "bench-drift"


def frame(side: int, rows: int, *, drifted: bool = True, seed: int = 0) -> pd.DataFrame:
    """Numbers, words, nulls and long tails; on side 1 every other column has drifted, where any has."""
    rng = np.random.default_rng(side + 2 * seed)
    columns: dict[str, object] = {}
    for i in range(20):
        shift = side * (i % 2) * drifted
        if i < 5:
            columns[f"normal_{i}"] = rng.normal(0.4 * shift, 1, rows)
        elif i < 8:
            columns[f"skewed_{i}"] = rng.lognormal(0.3 * shift, 1, rows)
        elif i < 11:
            columns[f"gaps_{i}"] = np.where(rng.random(rows) < 0.2, np.nan, rng.normal(0.4 * shift, 1, rows))
        elif i < 14:
            columns[f"count_{i}"] = rng.poisson(20 + 4 * shift, rows)
        elif i < 19:
            words = np.array([f"word {k}" for k in range(4 + 12 * (i - 14))], dtype=object)
            chosen = words[(rng.random(rows) ** (1 + shift) * len(words)).astype(int)]
            columns[f"words_{i}"] = np.where(rng.random(rows) < 0.05, None, chosen)
        else:
            columns[f"flag_{i}"] = rng.random(rows) < 0.5 + 0.2 * shift
    return pd.DataFrame(columns)


# -- beside bare Evidently ----------------------------------------------------------------------------------


def bare(reference: pd.DataFrame, current: pd.DataFrame, path: Path) -> dict[str, bool]:
    from evidently import Report
    from evidently.presets import DataDriftPreset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Report([DataDriftPreset()], include_tests=True).run(current, reference)
        run.save_html(str(path))
    tests = [test for test in run.dict()["tests"] if test["id"] == "drift"]
    return {test["metric_config"]["params"]["column"]: str(test["status"]).endswith("FAIL") for test in tests}


def ours(reference: pd.DataFrame, current: pd.DataFrame, path: Path) -> dict[str, bool]:
    report = drift_report.measure(reference, current, name="bench", version="v1", html_path=path)
    return report.columns["drifted"].to_dict()


def verdicts_only(reference: pd.DataFrame, current: pd.DataFrame, _path: Path) -> dict[str, bool]:
    report = drift_report.measure(reference, current, name="bench", version="v1", page=False)
    return report.columns["drifted"].to_dict()


def beside(rows: int, rounds: int, target: float) -> None:
    drift_report.warm()
    for drifted in (True, False):
        reference, current = frame(0, rows), frame(1, rows, drifted=drifted)
        ways = {"bare Evidently": bare, "nbdeploy": ours, "nbdeploy, page=False": verdicts_only}
        times: dict[str, list[float]] = {name: [] for name in ways}
        verdicts = {}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(rounds + (rounds > 1)):
                for name, measure in ways.items():
                    start = time.perf_counter()
                    verdicts[name] = measure(reference, current, Path(folder, "drift.html"))
                    if turn or rounds == 1:
                        times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        print(f"{rows:,} x 20, {'drifted' if drifted else 'undrifted'}")
        for name, taken in times.items():
            ratio = medians[name] / medians["bare Evidently"]
            print(f"  {name:<22}{medians[name]:>9.2f} s  {ratio:>6.3f}   {' '.join(f'{one:.2f}' for one in taken)}")
        told = verdicts["bare Evidently"]
        for name in list(ways)[1:]:
            same = sum(verdicts[name].get(column) == found for column, found in told.items())
            print(f"  {name}: same verdict for {same} of {len(told)} columns, {sum(told.values())} drifted")
        print(f"  target: at most {target} of bare Evidently's time")


# -- a log --------------------------------------------------------------------------------------------------


def saved() -> None:
    import nbdeploy

    inputs = frame(0, 20_000)
    nbdeploy.save(model, NAME, inputs, inputs["normal_0"] > 0, progress=False)


def model(inputs: pd.DataFrame) -> Any:
    """The quickest model there is."""
    return (inputs["normal_0"] > 0).to_numpy()


def write_log(rows: int, days: list[int]) -> None:
    """Parquet files as `nbdeploy.log_keeping` seals them, one a day, of rows as a service would have had them."""
    import pyarrow as pa
    from pyarrow import parquet

    from nbdeploy import model_store
    from nbdeploy.log_keeping import META, ROWS
    from nbdeploy.log_segments import PARQUET, place
    from nbdeploy.log_tables import Header, frame_table
    from nbdeploy.log_values import logged_columns

    signature = model_store.get(NAME).signature
    header = Header(tuple(logged_columns(signature.columns)), signature.outputs)
    per_day, whole = rows // DAYS, None
    for day in days:
        if whole is None or day % 10 == 0:
            whole = frame(1, per_day, seed=day)
        begins = FIRST_DAY + timedelta(days=day)
        table = frame_table(header, whole)
        at = begins.timestamp() * 1e6 + np.linspace(0, 86_399e6, per_day)
        own = {
            "prediction": pa.array((whole["normal_0"] > 0).to_numpy()),
            "probabilities": pa.nulls(per_day, pa.list_(pa.float64())),
            "prediction_id": pa.array([f"{day:04x}{row:012x}-0" for row in range(per_day)]),
            "version": pa.array(["v1"] * per_day),
            "time": pa.array(at.astype("int64")).cast(pa.timestamp("us", tz="UTC")),
            "purpose": pa.array([""] * per_day),
        }
        for label, array in own.items():
            table = table.append_column(label, array)
        about = {META: json.dumps(header.to_dict()).encode(), META + b"-counts": json.dumps({"rows": per_day}).encode()}
        table = table.replace_schema_metadata(about)
        path = (
            place(NAME)
            / PARQUET
            / "v1"
            / f"day={begins:%Y-%m-%d}"
            / f"{int(begins.timestamp() * 1000)}-0a0b0c0d.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        parquet.write_table(table, path, row_group_size=ROWS, compression="zstd")


def child(what: dict[str, Any]) -> dict[str, Any]:
    """What a report takes in a process of its own: seconds once Evidently is imported, and the memory at its peak."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(what)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_child(what: dict[str, Any]) -> None:
    import nbdeploy

    drift_report.warm()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = []
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
    start = time.perf_counter()
    report = nbdeploy.drift(NAME, what.get("since"), until=what.get("until"), page=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({
        "seconds": seconds, "rows": report.rows_current, "drifted": int(report.columns["drifted"].dropna().sum()),
        "megabytes": peak / 1024, "before": before / 1024,
    }))  # fmt: skip


def of_log(rows: int) -> None:
    day = {"since": "2026-02-10T00:00:00Z", "until": "2026-02-11T00:00:00Z"}
    with tempfile.TemporaryDirectory(prefix="nbdeploy-drift-") as folder:
        for label, days in (("alone", [40]), ("of 100", list(range(DAYS)))):
            os.environ["NBDEPLOY_HOME"] = str(Path(folder, label, "home"))
            os.environ["BENTOML_HOME"] = str(Path(folder, label, "bentoml"))
            saved()
            write_log(rows, days)
            found = min((child(day) for _ in range(3)), key=lambda one: one["seconds"])
            print(
                f"a day {label:<8} {found['rows']:>12,} rows {found['seconds']:>7.2f} s {found['megabytes']:>7.0f} MB"
            )
        found = child({})
        print(
            f"all of it      {found['rows']:>12,} rows {found['seconds']:>7.2f} s {found['megabytes']:>7.0f} MB at its peak "
            f"({found['before']:.0f} before), at most 1,536; {found['drifted']} columns drifted"
        )


# -- the first report of a process --------------------------------------------------------------------------


FIRST = """
import sys, time
import numpy as np, pandas as pd, nbdeploy
from nbdeploy import drift_warming
if sys.argv[1] == "warmed":
    drift_warming.in_background(after=0.0)
    slowest, last, until = 0.0, time.perf_counter(), time.perf_counter() + 15
    while not drift_warming.done() and last < until:
        sum(range(1000)); now = time.perf_counter(); slowest = max(slowest, now - last); last = now
        time.sleep(0.002)
    print("slowest", slowest)
start = time.perf_counter()
from nbdeploy.drift_report import measure
rng = np.random.default_rng(0)
frames = [pd.DataFrame({f"c{i}": rng.normal(size=10_000) for i in range(10)}) for _ in (0, 1)]
measure(*frames, name="n", version="v1")
print("first", time.perf_counter() - start)
start = time.perf_counter(); measure(*frames, name="n", version="v1"); print("second", time.perf_counter() - start)
"""


def first() -> None:
    for way in ("cold", "warmed"):
        done = subprocess.run([sys.executable, "-c", FIRST, way], capture_output=True, text=True, check=True)
        print(f"{way:<8}", " ".join(f"{w} {float(s):.2f} s" for w, s in map(str.split, done.stdout.splitlines())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", help="of the frames that both compare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=int, help="rows of a log")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if asked.child:
        in_child(json.loads(asked.child))
        return
    nothing = asked.rows is None and not asked.log and not asked.first
    for rows in (asked.rows or []) if not nothing else [10_000, 100_000]:
        beside(rows, asked.rounds, 0.1 if rows >= 1_000_000 else 0.5 if rows <= 10_000 else 0.333)
    if asked.log:
        of_log(asked.log)
    if asked.first:
        first()


if __name__ == "__main__":
    main()
