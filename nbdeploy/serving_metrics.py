"""Prometheus metrics of one deployment: plain numbers in each worker, summed when somebody asks.

Each worker counts in Python numbers of its own and writes them to a file of its own, four times a second. Any of them
answers for all. Nothing is shared in memory and no file is mapped: prometheus_client's own way of summing processes is
one folder per interpreter, chosen when it is imported, and a mapped file kills its process when the disk is full.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import nbdeploy
from nbdeploy import routing
from nbdeploy.errors import NbdeployError
from nbdeploy.novelty import OTHER, Novelty
from nbdeploy.worker_numbers import SECONDS, Numbers, Share, add, gauges_of

if TYPE_CHECKING:
    import pandas as pd

    from nbdeploy.signature import Signature

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 16_384, 131_072)
REQUESTS = ROWS[:9]
MAX_LABELS = 500  # pairs of route and status, or of reason and status: more can only be a mistake of ours

logger = logging.getLogger("bentoml.nbdeploy")


class Log(Protocol):
    """What the metrics tell of the log.

    Attributes
    ----------
    rows_written, dropped : int
        Rows, since this process began.
    failing : str
        Whether the last row was lost.
    """

    rows_written: int
    dropped: int
    failing: str


@dataclass(frozen=True)
class Family:
    """One metric: its name without suffix, what it is, and the labels beside the version."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


FAMILIES = (
    Family("counter", "nbdeploy_requests", "Requests answered or refused", ("route", "status")),
    Family("counter", "nbdeploy_refusals", "Requests that got a 4xx or 5xx, by reason", ("status", "reason")),
    Family("histogram", "nbdeploy_request_seconds", "Time from a request's headers to its answer", ("route",), SECONDS),
    Family("gauge", "nbdeploy_in_flight_requests", "Requests begun and not answered yet"),
    Family("counter", "nbdeploy_rows", "Rows answered"),
    Family("histogram", "nbdeploy_model_call_seconds", "Time of a model call", (), SECONDS),
    Family("histogram", "nbdeploy_batch_rows", "Rows of a model call", (), ROWS),
    Family("histogram", "nbdeploy_batch_requests", "Requests of a model call", (), REQUESTS),
    Family("gauge", "nbdeploy_waiting_rows", "Rows that wait for the model"),
    Family("counter", "nbdeploy_unseen_categories", "Values that are no category of training", ("column",)),
    Family("counter", "nbdeploy_out_of_range", "Values outside the range of training", ("column",)),
    Family("counter", "nbdeploy_nulls", "Missing values", ("column",)),
    Family("counter", "nbdeploy_log_rows", "Rows written to the log"),
    Family("counter", "nbdeploy_log_drops", "Rows that the log lost"),
    Family("gauge", "nbdeploy_log_failing", "Workers whose log cannot be written at the moment"),
    Family("counter", "nbdeploy_shadow_requests", "Requests handed to a shadow, and those that it was too slow for", ("fate",)),
    Family("gauge", "nbdeploy_info", "What is served, and by which nbdeploy", ("name", "nbdeploy")),
    Family("gauge", "nbdeploy_workers", "Processes that answer"),
    Family("gauge", "nbdeploy_worker_start_time_seconds", "When the worker began, since the epoch", ("worker",)),
    Family("gauge", "nbdeploy_worker_resident_memory_bytes", "Memory of the worker", ("worker",)),
    Family("counter", "nbdeploy_worker_cpu_seconds", "Processor time of the worker, user and system", ("worker",)),
    Family("gauge", "nbdeploy_worker_open_fds", "Open file descriptors of the worker", ("worker",)),
)  # fmt: skip


class _Histogram:
    __slots__ = ("bounds", "numbers")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        # How many fell into each bucket, those beyond the last, and the sum.
        self.numbers: list[float] = [0] * (len(bounds) + 1) + [0.0]

    def observe(self, value: float) -> None:
        self.numbers[bisect_left(self.bounds, value)] += 1
        self.numbers[-1] += value


class _Asked:
    """The requests of one route that ended with one status."""

    __slots__ = ("count", "seconds")

    def __init__(self, seconds: _Histogram) -> None:
        self.count = 0
        self.seconds = seconds


class Metrics:
    """What one worker counts, and the page that shows it for all workers.

    `arrived` and `finished` are called in the event loop's thread, `called` and `saw` in the model's; each number
    has one thread that changes it, so there is no lock. `render` may run in any thread. None of them raises for
    what a request held.

    Parameters
    ----------
    name, version : str
        What is served. The version is a label of every metric.
    folder : Path, optional
        Where the workers of one deployment, and of no other, leave their numbers for each other. A worker that is
        killed loses those of its last 0.25 s. Without a folder `render` shows this instance alone.
    worker : str, optional
        The label of this worker, the same for the one that takes its place. By default its process id.
    leads : bool
        Whether the process counts under this version, among those that are loaded in it.
    """

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        log: Log,
        *,
        folder: Path | None = None,
        worker: str = "",
        leads: bool = True,
    ) -> None:
        self._name, self._version, self._log = name, version, log
        self._folder = folder
        self._asked: dict[tuple[str, int], _Asked] = {}
        self._by_route: dict[str, _Histogram] = {}
        self._refused: dict[tuple[int, str], int] = {}
        self._in_flight = 0
        self._rows = 0
        self._waiting = 0
        self._call_seconds = _Histogram(SECONDS)
        self._batch_rows = _Histogram(ROWS)
        self._batch_requests = _Histogram(REQUESTS)
        self._novelty = Novelty(signature)
        self._complained = False
        self.leads = leads
        self._share = Share(folder, worker or str(os.getpid()), self._numbers)

    def arrived(self) -> None:
        """Count a request that has begun."""
        self._in_flight += 1

    def left(self) -> None:
        """Count that a request which `arrived` has ended, whichever version has answered it."""
        self._in_flight -= 1

    def finished(self, route: str, status: int, reason: str, seconds: float) -> None:
        """Count a request that this version has answered, or refused.

        Parameters
        ----------
        route : str
            One of the known paths, or ``other``: never what a client made up.
        reason : str
            One of our own words for why it was refused; without a meaning below 400.
        """
        try:
            asked = self._asked[route, status]
        except KeyError:
            asked = self._first(route, status)
        asked.count += 1
        histogram = asked.seconds  # as in `observe`, without the call
        histogram.numbers[bisect_left(SECONDS, seconds)] += 1
        histogram.numbers[-1] += seconds
        if status >= 400:
            key = (status, reason or OTHER)
            if key not in self._refused and len(self._refused) >= MAX_LABELS:
                key = (status, OTHER)
            self._refused[key] = self._refused.get(key, 0) + 1

    def _first(self, route: str, status: int) -> _Asked:
        if len(self._asked) >= MAX_LABELS:
            route = OTHER
        if route not in self._by_route:
            self._by_route[route] = _Histogram(SECONDS)
        return self._asked.setdefault((route, status), _Asked(self._by_route[route]))

    def called(self, rows: Sequence[int], seconds: float, waiting_rows: int) -> None:
        """Count a model call: the rows of each request that it answered, its time, and how many rows wait now."""
        together = sum(rows)
        self._rows += together
        self._call_seconds.observe(seconds)
        self._batch_rows.observe(together)
        self._batch_requests.observe(len(rows))
        self._waiting = waiting_rows

    def saw(self, columns: Mapping[str, Sequence[Any]] | None, frame: pd.DataFrame | None) -> None:
        """Count what training never saw in the rows of a model call. See `Novelty.count`."""
        try:
            self._novelty.count(columns, frame)
        except Exception as error:  # noqa: BLE001 - a count is not worth an answer
            if not self._complained:  # the kind alone: its text may quote a value
                logger.warning("values unlike those of training are not counted: %s", type(error).__name__)
            self._complained = True

    def close(self) -> None:
        """Leave the last numbers for the other workers. What is counted later is lost."""
        self._share.close()

    def render(self) -> tuple[bytes, str]:
        """The text of ``/metrics`` and its media type: of all workers of the deployment, however they ended."""
        registry = CollectorRegistry()
        registry.register(_Page(self._share))
        if self._folder is not None:
            registry.register(_Guarded(self._name))
        if self._folder is not None and any(self._folder.glob("*.db")):
            registry.register(_Libraries(self._folder))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _numbers(self) -> Numbers:
        """Everything counted so far, by metric and labels. Runs beside the threads that count."""
        version = self._version
        asked, refused = list(self._asked.items()), list(self._refused.items())
        numbers: Numbers = {
            "nbdeploy_requests": {(version, route, str(status)): [one.count] for (route, status), one in asked},
            "nbdeploy_refusals": {(version, str(status), reason): [count] for (status, reason), count in refused},
            "nbdeploy_request_seconds": {
                (version, route): list(one.numbers) for route, one in list(self._by_route.items())
            },
            "nbdeploy_in_flight_requests": {(version,): [self._in_flight]},
            "nbdeploy_rows": {(version,): [self._rows]},
            "nbdeploy_model_call_seconds": {(version,): list(self._call_seconds.numbers)},
            "nbdeploy_batch_rows": {(version,): list(self._batch_rows.numbers)},
            "nbdeploy_batch_requests": {(version,): list(self._batch_requests.numbers)},
            "nbdeploy_waiting_rows": {(version,): [self._waiting]},
            "nbdeploy_log_rows": {(version,): [self._log.rows_written]},
            "nbdeploy_log_drops": {(version,): [self._log.dropped]},
            "nbdeploy_log_failing": {(version,): [int(bool(self._log.failing))]},
            "nbdeploy_info": {(version, self._name, nbdeploy.__version__): [1]},
            **({"nbdeploy_workers": {(version,): [1]}} if self.leads else {}),
        }
        tallies = self._novelty.tallies
        for name, kept in (
            ("nbdeploy_unseen_categories", [(each.label, each.unseen) for each in tallies]),
            ("nbdeploy_out_of_range", [(each.label, each.outside) for each in tallies]),
            ("nbdeploy_nulls", [(each.label, each.nulls) for each in tallies]),
        ):
            found = numbers[name] = {}
            for label, count in kept:
                if count is not None:
                    add(found, (version, label), [count])
        return numbers


class _Page(Collector):
    """Our own metrics, of all workers."""

    def __init__(self, share: Share) -> None:
        self._share = share

    def collect(self) -> Iterator[Any]:
        counted, living = self._share.counted(), self._share.living()
        gauges = gauges_of(living)
        for family in FAMILIES:
            source = gauges if family.kind == "gauge" or "worker" in family.labels else counted
            yield _family(family, source.get(family.name, {}))


class _Guarded(Collector):
    """What the guard of the deployment has done, which no worker counts."""

    def __init__(self, name: str) -> None:
        self._name = name

    def collect(self) -> Iterator[Any]:
        try:
            guard = routing.traffic(self._name).guard
        except (NbdeployError, OSError) as error:  # somebody's editor is at the file
            logger.warning("the guard of %s cannot be read: %s", self._name, type(error).__name__)
            return
        if guard is None:
            return
        metric = GaugeMetricFamily("nbdeploy_guard_tripped", "Canaries that the guard took out", labels=["version"])
        for version in guard["watch"]:
            metric.add_metric([version], 0)
        if tripped := guard["tripped"]:
            metric.add_metric([tripped["version"]], 1)
        yield metric


def _family(family: Family, found: Mapping[tuple[str, ...], Sequence[float]]) -> Any:
    labels = ["version", *family.labels]
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=labels)
        for key, numbers in sorted(found.items()):
            *counts, total = numbers
            histogram.add_metric(key, _buckets(family.bounds, counts), total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=labels)
    for key, numbers in sorted(found.items()):
        metric.add_metric(key, numbers[0])
    return metric


def _buckets(bounds: Iterable[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    buckets, sofar = [], 0.0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        sofar += count
        buckets.append((str(floatToGoString(bound)), sofar))  # type: ignore[no-untyped-call]
    return buckets


class _Libraries(Collector):
    """What others in the workers count with prometheus_client's own metrics: BentoML, or the model's code."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        try:
            found = list(multiprocess.MultiProcessCollector(None, str(self._folder)).collect())  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - a file half written must not hide our own numbers
            logger.warning("the metrics of other libraries cannot be read: %s", type(error).__name__)
            return
        ours = {family.name for family in FAMILIES}
        yield from (metric for metric in found if metric.name not in ours)
