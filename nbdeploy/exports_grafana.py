"""A dashboard for Grafana of what a deployment's metrics say; the limits of its rules are lines in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbdeploy import alert_store
from nbdeploy.alert_rules import Rule, parse
from nbdeploy.errors import RuleError
from nbdeploy.exports_prometheus import ROUTES

SCHEMA = 39  # of Grafana 10 and later, which read older ones too
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'instance=~"$instance"'
ASKED = f'{HERE}, version=~"$version", route=~"{ROUTES}"'
MINE = f'{HERE}, version=~"$version"'
EACH = "[$__rate_interval]"


@dataclass(frozen=True)
class Chart:
    """One panel: its title, how wide it is (of 24), and its lines as legend and PromQL.

    Attributes
    ----------
    unit : str
        As Grafana calls it.
    measure : str
        Whose rules' limits are drawn.
    scale : float
        What a limit is multiplied by to be in `unit`.
    """

    title: str
    about: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    measure: str = ""
    scale: float = 1.0
    stacked: bool = False
    width: int = 12
    kind: str = field(default="timeseries")


def _quantile(q: str, metric: str, which: str) -> str:
    return f"histogram_quantile({q}, sum by (version, le) (rate({metric}_bucket{{{which}}}{EACH})))"


def _rate(metric: str, which: str, by: str = "version") -> str:
    return f"sum by ({by}) (rate({metric}{{{which}}}{EACH}))"


_TOTAL = f"sum(rate(nbdeploy_requests_total{{{ASKED}}}{EACH}))"


def _share_of_status(status: str) -> str:
    some = _rate("nbdeploy_requests_total", f'{ASKED}, status=~"{status}"')
    every = _rate("nbdeploy_requests_total", ASKED)
    return f"({some} or 0 * {every}) / {every}"


CHARTS = (
    Chart("Requests", "Requests for predictions a second, by the version that answered.",
          (("{{version}}", _rate("nbdeploy_requests_total", ASKED)),), "reqps"),
    Chart("Time to answer", "From a request's headers to the end of its answer; half, nine tenths and 99 of 100 take no longer.",
          tuple((f"{{{{version}}}} p{name}", _quantile(q, "nbdeploy_request_seconds", ASKED))
                for name, q in (("50", "0.5"), ("90", "0.9"), ("99", "0.99"))), "s", "p99", 0.001),
    Chart("Errors", "Share of the requests with a status of 500 or more.",
          (("{{version}}", _share_of_status("5..")),), "percentunit", "error_rate"),
    Chart("Refused", "Share of the requests with a status of 400 to 499.",
          (("{{version}}", _share_of_status("4..")),), "percentunit", "refused_rate"),
    Chart("Errors and refusals by reason", "A second, on every route; docs/metrics.md says what the reasons are.",
          (("{{reason}}", _rate("nbdeploy_refusals_total", MINE, "reason")),), "reqps", stacked=True),
    Chart("Share of each version", "Of the requests for predictions.",
          (("{{version}}", f"{_rate('nbdeploy_requests_total', ASKED)} / scalar({_TOTAL})"),), "percentunit", stacked=True),
    Chart("Rows", "Rows answered a second.", (("{{version}}", _rate("nbdeploy_rows_total", MINE)),), "rowsps", width=8),
    Chart("In flight", "Requests begun and not answered yet.",
          (("{{version}}", f"sum by (version) (nbdeploy_in_flight_requests{{{MINE}}})"),
           ("waiting rows {{version}}", f"sum by (version) (nbdeploy_waiting_rows{{{MINE}}})")), width=8),
    Chart("Model calls", "Time of a model call, 99 of 100, and how many requests one answers.",
          (("p99 {{version}}", _quantile("0.99", "nbdeploy_model_call_seconds", MINE)),), "s", width=8),
    Chart("Requests of a model call", "More than 1 where they are answered together.",
          (("{{version}}", f"{_rate('nbdeploy_batch_requests_sum', MINE)} / {_rate('nbdeploy_batch_requests_count', MINE)}"),),
          width=8),
    Chart("Log", "Rows that the log lost, and workers that cannot write to it.",
          (("lost {{version}}", f"sum by (version) (increase(nbdeploy_log_drops_total{{{MINE}}}{EACH}))"),
           ("failing {{version}}", f"sum by (version) (nbdeploy_log_failing{{{MINE}}})")), "short", "log.dropped", width=8),
    Chart("Shadows", "Requests handed to a shadow a second.",
          (("{{version}} {{fate}}", _rate("nbdeploy_shadow_requests_total", MINE, "version, fate")),), "reqps", width=8),
    Chart("Categories that training never saw", "Values a row, by column: the first sign of drift.",
          (("{{column}}", f"{_rate('nbdeploy_unseen_categories_total', MINE, 'column')} / scalar(sum(rate(nbdeploy_rows_total{{{MINE}}}{EACH})))"),)),
    Chart("Values outside the range of training", "Values a row, by column.",
          (("{{column}}", f"{_rate('nbdeploy_out_of_range_total', MINE, 'column')} / scalar(sum(rate(nbdeploy_rows_total{{{MINE}}}{EACH})))"),)),
    Chart("Workers", "Processes that answer users.", (("workers", f"sum(nbdeploy_workers{{{HERE}}})"),), width=8),
    Chart("Memory", "Of each worker.",
          (("worker {{worker}}", f"nbdeploy_worker_resident_memory_bytes{{{HERE}}}"),), "bytes", width=8),
    Chart("Processor", "Cores that each worker keeps busy.",
          (("worker {{worker}}", _rate("nbdeploy_worker_cpu_seconds_total", HERE, "worker")),), width=8),
)  # fmt: skip


def render(name: str) -> tuple[str, tuple[str, ...]]:
    """The JSON of a dashboard of `name`, and what to do with it."""
    made = {
        "uid": f"nbdeploy-{alert_store.digest(name)}",  # the same for the same name: an import replaces the former one
        "title": f"nbdeploy: {name}",
        "description": f"The deployment {name}. Made by nbdeploy export {name} grafana.",
        "tags": ["nbdeploy", name],
        "editable": True,
        "graphTooltip": 1,  # one cross-hair for all charts
        "refresh": "30s",
        "schemaVersion": SCHEMA,
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(name)},
        "panels": list(_panels(name)),
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n", ("in Grafana: Dashboards, New, Import",)


# -- helpers ------------------------------------------------------------------------------------------------


def _variables(name: str) -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [source, *(_variable(name, label) for label in ("instance", "version"))]


def _variable(name: str, label: str) -> dict[str, Any]:
    query = f"label_values(nbdeploy_info{{name={json.dumps(name)}}}, {label})"
    return {
        "name": label, "label": label.capitalize(), "type": "query", "datasource": SOURCE, "query": query, "refresh": 2,
        "multi": True, "includeAll": True, "sort": 1, "current": {"selected": True, "text": "All", "value": "$__all"},
    }  # fmt: skip


def _panels(name: str) -> Iterator[dict[str, Any]]:
    rules, x, y, height = _rules(name), 0, 0, 8
    for number, chart in enumerate(CHARTS, 1):
        if x + chart.width > 24:
            x, y = 0, y + height
        place = {"h": height, "w": chart.width, "x": x, "y": y}
        yield _panel(number, chart, place, [rule for rule in rules if rule.measure == chart.measure])
        x += chart.width


def _panel(number: int, chart: Chart, place: dict[str, int], rules: Sequence[Rule]) -> dict[str, Any]:
    limits = sorted({rule.limit * chart.scale for rule in rules if rule.comparison in (">", ">=")})
    steps = [{"value": None, "color": "green"}, *({"value": limit, "color": "red"} for limit in limits)]
    custom = {
        "fillOpacity": 15 if chart.stacked else 5,
        "stacking": {"mode": "normal" if chart.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if limits else "off"},
    }
    defaults = {"unit": chart.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}, "custom": custom}
    return {
        "id": number,
        "type": chart.kind,
        "title": chart.title,
        "description": chart.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend, "range": True}
            for index, (legend, query) in enumerate(chart.lines)
        ],
    }


def _rules(name: str) -> list[Rule]:
    found = []
    for kept in alert_store.rules(name):
        try:
            found.append(parse(kept.text))
        except RuleError:  # of another nbdeploy
            continue
    return found
