"""The rules of a deployment as alerting rules of Prometheus, as far as its metrics can tell.

`expression` is also what draws a rule's measure elsewhere. Names and texts are data: quoted for PromQL, and by the YAML writer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from nbdeploy import alert_store
from nbdeploy.alert_rules import ENOUGH, Rule, duration, parse, plain
from nbdeploy.drift_columns import visible
from nbdeploy.errors import InputError, RuleError

# The routes that ask for predictions, as `version_numbers.predicts` has them.
ROUTES = "/predict|/invocations|/bentoml/predict|.*:predict|.*/infer"
BY = "job, instance"  # one deployment is one target

_STATUS = {"error_rate": "5..", "refused_rate": "4.."}
_UNITS = {
    "share": "{{ $value | humanizePercentage }}",
    "ms": '{{ printf "%.3g" $value }} ms',
    "count": '{{ printf "%.0f" $value }}',
}


def render(name: str) -> tuple[str, tuple[str, ...]]:
    """The text of a rule file for the rules of `name`, and what is not in it.

    Raises
    ------
    InputError
        The deployment has no rules, or none that Prometheus could judge.
    """
    import yaml

    kept = alert_store.rules(name)
    if not kept:
        msg = f"{name!r} has no rules of alerts to export"
        raise InputError(msg, hint=f"Set one: nbdeploy alert {name} 'error_rate > 2%'.")
    parsed, left_out = _parsed(name, [rule.text for rule in kept])
    if not parsed:
        msg = f"Prometheus can judge none of the rules of {name!r}"
        raise InputError(msg, hint=f"They need the log: run nbdeploy alerts {name} from cron.")
    group = {"name": f"nbdeploy-{name}", "rules": [_alerting(name, rule) for rule in parsed]}
    told = [f"not exported, for Prometheus does not see it: {visible(text)}" for text in left_out]
    told += [f"these need nbdeploy alerts {name}, from cron say"] if left_out else []
    head = [
        f"# Made by nbdeploy export {name} prometheus. Check it: promtool check rules FILE",
        *(f"# {note}" for note in told),
    ]
    body = yaml.safe_dump({"groups": [group]}, sort_keys=False, allow_unicode=True, width=10_000)
    return "\n".join([*head, body]), tuple(told)


def expression(name: str, rule: Rule) -> str:
    """The PromQL that gives something when one window of `rule` breaks its limit; '' where no metric tells."""
    if not rule.about.counted:
        return ""
    asked, ours = _selector(rule), f"on ({BY}) nbdeploy_info{{name={_quoted(name)}}}"
    limit = f"{rule.comparison} {plain(rule.limit)}"
    window = f"[{duration(rule.window)}]"
    requests = f"sum by ({BY}) (increase(nbdeploy_requests_total{_braces(asked)}{window}))"
    if rule.measure in ENOUGH:
        buckets = f"sum by ({BY}, le) (increase(nbdeploy_request_seconds_bucket{_braces(asked)}{window}))"
        counted = f"sum by ({BY}) (increase(nbdeploy_request_seconds_count{_braces(asked)}{window}))"
        quantile = f"1000 * histogram_quantile(0.{rule.measure[1:]}, {buckets})"
        return f"{quantile} {limit} and on ({BY}) {counted} >= {ENOUGH[rule.measure]} and {ours}"
    if rule.measure in _STATUS:
        some = _braces([*asked, f'status=~"{_STATUS[rule.measure]}"'])
        several = f"sum by ({BY}) (increase(nbdeploy_requests_total{some}{window}))"
        return f"({several} or 0 * {requests}) / {requests} {limit} and {ours}"
    if rule.measure == "log.dropped":
        version = [each for each in asked if each.startswith("version=")]
        lost = f"sum by ({BY}) (increase(nbdeploy_log_drops_total{_braces(version)}{window}))"
        return f"{lost} {limit} and {ours}"
    nobody = (
        f"0 * max by ({BY}) (nbdeploy_info{{name={_quoted(name)}}})"  # before the first request there is no counter
    )
    found = f"({requests} or {nobody}) {limit} and {ours}"
    if not rule.breaks(0.0):
        return found
    return f"{found} or absent_over_time(nbdeploy_info{{name={_quoted(name)}}}{window})"


# -- helpers ------------------------------------------------------------------------------------------------


def _parsed(name: str, texts: Sequence[str]) -> tuple[list[Rule], list[str]]:
    parsed, left_out = [], []
    for text in texts:
        try:
            rule = parse(text)
        except RuleError:  # of another nbdeploy
            left_out.append(text)
            continue
        if expression(name, rule):
            parsed.append(rule)
        else:
            left_out.append(text)
    return parsed, left_out


def _alerting(name: str, rule: Rule) -> dict[str, Any]:
    words = re.split(r"[._]", rule.measure)
    value = _UNITS[rule.about.kind]
    # That it holds at every look until the last window begins is more than that it holds in each window: see docs/alerts.md.
    wait = {"for": duration(rule.window * (rule.windows - 1))} if rule.windows > 1 else {}
    return {
        "alert": f"Nbdeploy{''.join(word.capitalize() for word in words)}",
        "expr": expression(name, rule),
        **wait,
        "labels": {"severity": "warning", "deployment": name, "rule": _untemplated(rule.text)},
        "annotations": {
            "summary": _untemplated(f"{name}: {rule.text}"),
            "description": f"{rule.about.words.capitalize()} in {duration(rule.window)}: {value}. See nbdeploy status {name}.",
        },
    }


def _selector(rule: Rule) -> list[str]:
    version = [f"version={_quoted(rule.version)}"] if rule.version else []
    return [*version, f"route=~{_quoted(ROUTES)}"]


def _braces(matchers: Sequence[str]) -> str:
    return f"{{{', '.join(matchers)}}}" if matchers else ""


def _quoted(text: str) -> str:
    """A string of PromQL: Go's, of which JSON's is one."""
    return json.dumps(text)


def _untemplated(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
