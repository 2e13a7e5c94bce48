"""Labels over HTTP: what turned out to be true of what was predicted."""

from __future__ import annotations

from itertools import islice
from typing import Any

from nbdeploy import label_log
from nbdeploy.errors import NbdeployError
from nbdeploy.exchange import Asked, Refused, Reply, Route, Served, dump
from nbdeploy.label_log import MAX_LABELS, MAX_PROBLEMS
from nbdeploy.request_body import read_json
from nbdeploy.signature import problem, shown

LIMIT = 2 << 20  # bytes of a body


def routes(served: Served) -> list[Route]:
    """``POST /labels`` of a deployment."""

    def labels(asked: Asked) -> Reply:
        given = read(asked.body)
        try:
            label_log.add(served.name, given)
        except (OSError, NbdeployError) as error:
            msg = "the labels could not be kept: the disk refuses"
            raise Refused(503, msg, headers={"Retry-After": "5"}, reason="log") from error
        return Reply(dump({"labels": len(given)}))

    return [Route("POST", "/labels", show=labels, limit=LIMIT, threaded=True)]


def read(body: bytes) -> dict[str, Any]:
    """The labels in a body, by prediction id.

    Raises
    ------
    Unreadable
        It is not JSON.
    Refused, InputError
        It holds something else than labels, or more than 10,000.
    """
    value = read_json(body)
    if not isinstance(value, dict) or value.keys() != {"labels"}:
        raise _refused(problem(None, None, "an object with the key 'labels' and no other", shown(value)))
    labels = value["labels"]
    if not isinstance(labels, dict):
        expected = "an object with a value per prediction id"
        raise _refused(problem(None, "labels", expected, shown(labels)))
    if not 0 < len(labels) <= MAX_LABELS:
        raise _refused(problem(None, "labels", f"1 to {MAX_LABELS:,} labels", f"{len(labels):,}"))
    if found := list(islice(label_log.label_problems(labels), MAX_PROBLEMS)):
        raise _refused(*found)
    return labels


def _refused(*problems: dict[str, Any]) -> Refused:
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = f"{first['column']}: " if first["column"] is not None else ""
    return Refused(422, f"{where}expected {first['expected']}, got {first['got']}{more}", problems)
