"""The one table of verbs: it feeds the magic, the shell command, completion and the docs."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

from nbdeploy.errors import InputError, NbdeployError, did_you_mean


class Kind(Enum):
    """What an argument names: it decides how its text becomes an object, and what completes it."""

    TEXT = "text"
    MODEL = "model"
    FRAME = "frame"
    LABELS = "labels"
    DEPLOYMENT = "deployment"
    VERSION = "version"
    NOTEBOOK = "notebook"
    FILE = "file"
    WHOLE = "whole number"
    NUMBER = "number"
    SIZE = "size"
    FLAG = "flag"
    OFF = "flag that switches off"
    PAIR = "KEY=VALUE"
    LIST = "value"
    SHARES = "VERSION=PERCENT"


@dataclass(frozen=True)
class Argument:
    """One argument of a verb; `keyword` is its name in Python."""

    flag: str
    help: str
    kind: Kind = Kind.TEXT
    keyword: str = ""
    required: bool = False  # of an option
    optional: bool = False  # of a positional
    short: str = ""
    names: Kind | None = None  # what its values are, where `kind` says only how many

    @property
    def positional(self) -> bool:
        return not self.flag.startswith("-")

    @property
    def name(self) -> str:
        return self.keyword or self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Verb:
    """One verb: what it is called, what it takes, and the public function behind it."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    example: str
    succeeded: Callable[[Any, Mapping[str, Any]], bool] = field(default=lambda _result, _values: True)
    local: frozenset[str] = frozenset()  # arguments for the front ends, which the function does not take

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Call the public function with resolved arguments."""
        function = getattr(importlib.import_module("nbdeploy"), self.name)
        return function(**{key: value for key, value in values.items() if value is not None and key not in self.local})


MODEL = Argument(
    "model",
    "the fitted model: a variable in a notebook, a .pkl, .joblib or .onnx file in a shell; "
    "or the folder or URI of an MLflow model",
    Kind.MODEL,
)
NAME = Argument("name", "the deployment", Kind.DEPLOYMENT)
NEW_NAME = Argument(
    "--name",
    "of the deployment: lower-case letters, digits, '.', '_', '-', a letter or digit first and last; "
    "by default the variable's or file's own",
    Kind.DEPLOYMENT,
)
DATA = Argument(
    "--data",
    "the training inputs: a variable, or a .parquet, .csv or .npy file; needed unless the model brings an example",
    Kind.FRAME, "X",
)  # fmt: skip
TARGET = Argument("--target", "the true outcomes: a variable or file, or a column of --data", Kind.LABELS, "y")
VERSION = Argument("version", "for example v2; by default the live one", Kind.VERSION, optional=True)
OPTIONS = (
    Argument("--format", "how to store it, where there is a choice: skops"),
    Argument(
        "--private", "a column that is never shown and never logged, or with =hash as hashes; repeatable", Kind.LIST
    ),
    Argument("--metric", "a metric that you measured; repeatable", Kind.PAIR, "metrics"),
    Argument("--requirement", "a line for pip, beside what the rehearsal finds; repeatable", Kind.LIST, "requirements"),
    Argument("--clean-env", "rehearse once more in an environment of nothing but its requirements", Kind.FLAG),
    Argument("--unbatched", "each request in a model call of its own: rows depend on those asked with them", Kind.FLAG),
    Argument("--tolerance", "how far predictions may differ in a fresh process, relatively (1e-9)", Kind.NUMBER),
)
SERVING = (
    Argument("--port", "by default the former one, or a free one", Kind.WHOLE),
    Argument("--host", "the address to listen on (127.0.0.1); any but loopback needs a token"),
    Argument("--workers", "processes that answer (1)", Kind.WHOLE),
    Argument("--token", "requests need a token, also on loopback; status names its file", Kind.FLAG),
    Argument("--no-token", "they need none, though one is there; on loopback only", Kind.OFF, "token"),
    Argument("--token-file", "a file of yours with the token, which nobody else may read; else one is made", Kind.FILE),
    Argument("--tls-cert", "a certificate with its chain, PEM: the service speaks HTTPS", Kind.FILE),
    Argument("--tls-key", "the key of the certificate, PEM, without a password", Kind.FILE),
    Argument("--allowed-host", "a name that callers may use, beside loopback's and the host's; repeatable; * for any",
             Kind.LIST, "allowed_hosts"),
    Argument("--origin", "a web page that may call, for example https://app.example.com; repeatable; * for any",
             Kind.LIST, "origins"),
    Argument("--log-required", "refuse to answer what cannot be logged", Kind.FLAG),
    Argument("--log-days", "how long the log is kept (90)", Kind.NUMBER),
    Argument("--log-bytes", "how large the log may grow (10GB)", Kind.SIZE),
    Argument("--max-body", "the largest request (64MiB)", Kind.SIZE),
    Argument("--timeout", "seconds that one request may take in all (60)", Kind.NUMBER),
    Argument("--access-log", "one JSON line per request in the service's log", Kind.FLAG),
    Argument("--bentoml-middleware", "BentoML's own tracing, metrics and access log too", Kind.FLAG),
)  # fmt: skip
WHY = Argument("--why", "a few words for the history")
SIGNATURE_CHANGE = Argument("--allow-signature-change", "though it refuses what the live version takes", Kind.FLAG)
SINCE = Argument("--since", "how long ago (30m, 24h, 7d) or a moment (2026-01-31T08:00, UTC)")
UNTIL = Argument("--until", "the end of the window, as --since")

CANARY = 10  # percent, in what is proposed

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("deploy", "save a model and serve it", (MODEL, NEW_NAME, DATA, TARGET, *OPTIONS, *SERVING),
             "deploy model --name flight-delay --data X_train --target y_train"),
        Verb("save", "save a model as the next version, after a rehearsal in a fresh process",
             (MODEL, NEW_NAME, DATA, TARGET, *OPTIONS), "save model --name flight-delay --data X_train --target y_train"),
        Verb("serve", "start the service of a saved model", (NAME, VERSION, *SERVING), "serve flight-delay"),
        Verb("predict", "ask a running service",
             (NAME, Argument("data", "the rows: a variable, or a .parquet or .csv file", Kind.FRAME, "X", required=True),
              Argument("--url", "of a service elsewhere"),
              Argument("--token-file", "a file with the token that it wants", Kind.FILE),
              Argument("--proba", "add the probabilities of the classes", Kind.FLAG),
              Argument("--header", "what else to send, X-Client-ID=7 say; repeatable", Kind.PAIR, "headers")),
             "predict flight-delay X_new"),
        Verb("validate", "run gate notebooks against a version; one that is not live is served aside for it",
             (NAME, VERSION,
              Argument("--notebook", "a gate of yours, repeatable; by default the one that comes with nbdeploy and all "
                       "that are required", Kind.NOTEBOOK),
              Argument("--data", "labelled rows: a variable, or a .parquet or .csv file", Kind.FRAME),
              Argument("--target", "the column of --data that holds the labels"),
              Argument("--param", "a parameter of the notebook; repeatable", Kind.PAIR, "parameters", short="-p"),
              Argument("--env", "a variable of the environment that the notebook needs, a secret for one; repeatable", Kind.LIST),
              Argument("--require", "promotions need this notebook, with these parameters, from now on", Kind.FLAG),
              Argument("--no-require", "they do not need it any more", Kind.OFF, "require"),
              Argument("--timeout", "seconds for each notebook", Kind.NUMBER)),
             "validate flight-delay v2 -p at_least=0.8", succeeded=lambda result, _values: bool(result.passed)),
        Verb("traffic", "say which version answers whom, or show it",
             (NAME, Argument("weights", "percent by version, together 100: v1=90 v2=10", Kind.SHARES, optional=True),
              Argument("--shadow", "a version that answers into the log only; repeatable", Kind.LIST,
                       names=Kind.VERSION),
              Argument("--no-shadow", "none does", Kind.OFF, "shadow"),
              Argument("--sticky", "a column, or a header such as X-Client-ID, that keeps an asker with one version"),
              Argument("--no-sticky", "each request is drawn", Kind.OFF, "sticky"),
              Argument("--pin", "requests may name a version, ?version=v2 (at first they may)", Kind.FLAG),
              Argument("--no-pin", "they may not", Kind.OFF, "pin"), SIGNATURE_CHANGE, WHY),
             "traffic flight-delay v1=90 v2=10"),
        Verb("promote", "make a version the live one; it needs a passed gate",
             (NAME, Argument("version", "for example v2", Kind.VERSION),
              Argument("--force", "why it is promoted without a passed gate; it is kept in the history"),
              SIGNATURE_CHANGE, WHY), "promote flight-delay v2"),
        Verb("rollback", "go back to the version that was live before", (NAME, WHY), "rollback flight-delay"),
        Verb("guard", "take a canary that breaks a limit out of traffic, with no notebook open; or show what holds",
             (NAME, Argument("--error-rate", "the largest share of answers with a status of 500 or more (0.02 is 2 %)",
                             Kind.NUMBER),
              Argument("--p99-ms", "milliseconds in which all but a hundredth of the requests are answered", Kind.NUMBER),
              Argument("--drift", "the largest share of columns that may drift from its training data", Kind.NUMBER),
              Argument("--canary-minutes", "how long a clean run is (30)", Kind.NUMBER),
              Argument("--then", "what follows a clean run: promote, which needs a passed gate; by default a note"),
              Argument("--min-requests", "what a clean run takes at least (30)", Kind.WHOLE),
              Argument("--off", "stop guarding", Kind.FLAG)),
             "guard flight-delay --error-rate 0.02 --p99-ms 200 --canary-minutes 30"),
        Verb("rollout", "give a version more and more of the traffic, as long as it does well; or show how far it is",
             (NAME, Argument("version", "for example v2", Kind.VERSION, optional=True),
              Argument("--steps", "percent, each more than the one before; 100 is a promotion (1,10,50,100)"),
              Argument("--minutes", "how long a step takes at least (10)", Kind.NUMBER),
              Argument("--pause", "stay at this step", Kind.FLAG),
              Argument("--resume", "go on", Kind.FLAG),
              Argument("--abort", "give all to the live version", Kind.FLAG)),
             "rollout flight-delay v2 --steps 1,10,50,100 --minutes 10"),
        Verb("history", "what happened to the traffic, newest first", (NAME,), "history flight-delay"),
        Verb("compare", "compare a candidate or a shadow with the live version by what they answered",
             (NAME, Argument("version", "for example v2; by default the candidate, or else the shadow", Kind.VERSION,
                             optional=True), SINCE,
              Argument("--metric", "accuracy, balanced_accuracy, f1 or auc; mae, rmse or r2")), "compare flight-delay"),
        Verb("drift", "compare what was asked with what was learned from, by Evidently",
             (NAME, SINCE, UNTIL,
              Argument("--against", "reference, a version (v2), what it learned from (v2:reference), or another window "
                       "of the log (14d..7d)"),
              Argument("--columns", "compare this one alone; repeatable", Kind.LIST),
              Argument("--by", "a column whose most frequent values get verdicts of their own"),
              Argument("--max-rows", "rows per side of which numbers are compared (50000)", Kind.WHOLE),
              Argument("--html-path", "where the whole report goes; by default nbdeploy-reports/NAME/", Kind.FILE),
              Argument("--no-page", "verdicts and sentences only, in a fraction of the time", Kind.OFF, "page"),
              Argument("--fail-on-drift", "exit with code 1 on drift", Kind.FLAG)),
             "drift flight-delay --since 24h", local=frozenset({"fail_on_drift"}),
             succeeded=lambda result, values: not (values.get("fail_on_drift") and result.drifted)),
        Verb("report", "what a version was asked and answered, beside what it learned from, by Evidently",
             (NAME,
              Argument("--preset", "quality (without --metric the one there is), summary, classification, regression, "
                       "text or drift"),
              Argument("--metric", "a metric of Evidently's, ValueDrift:column=carrier say; repeatable", Kind.LIST, "metrics"),
              SINCE, UNTIL,
              Argument("--version", "for example v2; by default the live one", Kind.VERSION),
              Argument("--max-rows", "rows per side that Evidently sees (50000)", Kind.WHOLE),
              Argument("--html-path", "where the whole report goes; by default nbdeploy-reports/NAME/", Kind.FILE),
              Argument("--workspace", "a folder that evidently ui --workspace shows, which gets it too", Kind.FILE),
              Argument("--notebook", "run this notebook instead, and keep it and its page in a dated folder; "
                       "drift_report.ipynb comes with nbdeploy", Kind.FILE),
              Argument("--param", "a parameter of the notebook; repeatable", Kind.PAIR, "parameters", short="-p"),
              Argument("--fail", "exit with code 1 when a test fails; a notebook that fails always does", Kind.FLAG)),
             "report flight-delay --preset quality --since 24h", local=frozenset({"fail"}),
             succeeded=lambda result, values: (
                 bool(result.passed) or not (values.get("fail") or values.get("notebook") or values.get("parameters")))),
        Verb("watch", "how a deployment does, on one page: traffic, times, errors, drift, quality, log",
             (NAME, SINCE, UNTIL,
              Argument("--every", "how long each window is: 5m, 1h, 1d; by default some that fits"),
              Argument("--no-drift", "do not measure the drift, which takes seconds", Kind.OFF, "drift")),
             "watch flight-delay --since 7d"),
        Verb("alert", "keep a rule that the deployment is watched by, or show its rules",
             (NAME, Argument("rule", "in quotes, 'error_rate > 2% over 30m for 2 windows' say: see docs/alerts.md; or the "
                             "number of one", optional=True),
              Argument("--to", "whom it tells: an address of Apprise (mailto://, slack://, json:// ...), or env:VARIABLE, "
                       "which keeps it out of here; repeatable", Kind.LIST),
              Argument("--off", "remove the rule", Kind.FLAG)),
             "alert flight-delay 'drift.share > 0.3 for 2 windows' --to env:NBDEPLOY_ALERT_URL"),
        Verb("alerts", "look at the rules once, and tell what is new",
             (Argument("name", "one deployment; by default all that have rules", Kind.DEPLOYMENT, optional=True),
              Argument("--dry-run", "tell nobody, and write nothing down", Kind.FLAG)),
             "alerts flight-delay", succeeded=lambda result, _values: not result.exit_code),
        Verb("export", "write what other tools need to know of a deployment",
             (NAME, Argument("kind", "prometheus, for its rules of alerts; grafana, for a dashboard"),
              Argument("to", "the folder, or the file; by default the working directory", Kind.FILE, optional=True),
              Argument("--overwrite", "replace a file that is there already", Kind.FLAG)),
             "export flight-delay prometheus monitoring/"),
        Verb("predictions", "what was asked and answered, oldest first", (NAME, SINCE, UNTIL),
             "predictions flight-delay --since 1h"),
        Verb("label", "keep what turned out to be true of what was predicted",
             (NAME, Argument("labels", "a series by prediction id, or a frame with prediction_id and label, or with the "
                             "columns of --on and one of labels; in a shell a .parquet or .csv file", Kind.FRAME, required=True),
              Argument("--on", "an input to find the predictions by, instead of their ids; repeatable", Kind.LIST),
              Argument("--target", "the column of labels; by default label, or what it was called in training"),
              Argument("--since", "with --on, only predictions from then on (7d, 2026-01-31)"),
              Argument("--until", "with --on, only predictions until then")),
             "label flight-delay labels --on flight --on day"),
        Verb("quality", "how good the answers were over time, by what turned out to be true",
             (NAME, Argument("version", "only this one, v2 say", Kind.VERSION, optional=True),
              Argument("--metric", "accuracy, balanced_accuracy, f1 or auc; mae, rmse or r2; by default what its gate measured"),
              Argument("--every", "how long a window is (1d): 6h, 1d, 1w"), SINCE, UNTIL),
             "quality flight-delay --every 1d --since 30d"),
        Verb("retrain", "run a training notebook on the labelled log; what it saves is judged, and is a candidate",
             (NAME, Argument("--notebook", "yours; its parameter `data` gets the path of the labelled rows", Kind.FILE,
                             required=True),
              Argument("--param", "a parameter of the notebook; repeatable", Kind.PAIR, "parameters", short="-p"),
              SINCE, UNTIL,
              Argument("--then", "what follows a passed gate: rollout; by default nothing"),
              Argument("--if-drifted", "do nothing, and exit with 0, where it has not drifted", Kind.FLAG),
              Argument("--drift-share", "the share of drifted columns from which on it has (0.5)", Kind.NUMBER),
              Argument("--holdout", "the share of the newest labelled rows that only the gate sees (0.2)", Kind.NUMBER),
              Argument("--timeout", "seconds for the notebook, and for each gate (3600)", Kind.NUMBER),
              Argument("--env", "a variable of the environment that the notebook needs, a secret for one; repeatable", Kind.LIST)),
             "retrain flight-delay --notebook train.ipynb --since 30d --if-drifted",
             succeeded=lambda result, _values: bool(result.done)),
        Verb("status", "what runs and what is saved",
             (Argument("name", "one deployment; by default all", Kind.DEPLOYMENT, optional=True),), "status"),
        Verb("versions", "the saved versions, newest first", (NAME,), "versions flight-delay"),
        Verb("card", "write the model card of a version: what is known about it", (NAME, VERSION), "card flight-delay"),
        Verb("logs", "the last lines that a service wrote",
             (NAME, Argument("--lines", "how many (50)", Kind.WHOLE)), "logs flight-delay --lines 20"),
        Verb("stop", "end a service and every process of it", (NAME,), "stop flight-delay"),
        Verb("delete", "delete a version that is not in use",
             (NAME, Argument("version", "for example v2", Kind.VERSION)), "delete flight-delay v1"),
        Verb("panel", "the widget panel (in a notebook)",
             (Argument("name", "one deployment; by default all", Kind.DEPLOYMENT, optional=True),), "panel flight-delay"),
    )
}  # fmt: skip


class UsageProblem(NbdeployError):
    """A command line that does not parse."""


class HelpAsked(Exception):
    """``--help``: its text is the argument."""


def parse(words: Sequence[str], prog: str, variables: Sequence[str] = ()) -> tuple[Verb, dict[str, Any]]:
    """Split a command line into its verb and the text of each argument (None where it is absent).

    `variables` are further words that a misspelt verb may have meant.

    Raises
    ------
    UsageProblem
        With the usage of the verb.
    HelpAsked
        With the help text.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        raise HelpAsked(overview(prog))
    verb = VERBS.get(words[0])
    if verb is None:
        raise UsageProblem(
            f"{words[0]!r} is no verb" + (" and no variable" if prog.startswith("%") else ""),
            did_you_mean(words[0], [*VERBS, *variables]),
        )
    parser = _parser(verb, prog)
    if {"-h", "--help"} & set(words[1:]):
        raise HelpAsked(parser.format_help())
    return verb, vars(parser.parse_intermixed_args(list(words[1:])))


def resolve(verb: Verb, values: Mapping[str, Any], resolver: Callable[[Kind, str], Any]) -> dict[str, Any]:
    """Turn the arguments' texts into what the function takes; `resolver` reads models, frames and labels."""
    resolved: dict[str, Any] = {}
    for argument in verb.arguments:
        text = values[argument.name]
        if argument.kind is Kind.FRAME and text is not None:
            resolved[argument.name] = resolver(Kind.FRAME, text)
        elif argument.kind is Kind.MODEL:
            resolved[argument.name] = resolver(Kind.MODEL, text)
        elif argument.kind is Kind.LABELS and text is not None:
            resolved["X"], resolved["y"] = _labels(resolved.get("X"), text, resolver)
        elif argument.kind is Kind.PAIR:
            resolved[argument.name] = dict(_pair(item, argument) for item in text or []) or None
        elif argument.kind is Kind.SHARES:
            resolved |= dict(_pair(item, argument) for item in text or [])
        elif argument is NEW_NAME:
            resolved["name"] = text or _default_name(values["model"])
        else:
            resolved[argument.name] = text
    return resolved


def note(verb: Verb, result: Any) -> str:
    """What the user should know beside the result."""
    if verb.name not in ("deploy", "save"):
        return ""
    from nbdeploy import model_store, routing

    newest, traffic = model_store.versions(result.name)[0], routing.traffic(result.name)
    if traffic.live in (None, newest.version):
        return ""
    name, live, version = result.name, traffic.live, newest.version
    shares = {**traffic.weights, live: traffic.share(live) - CANARY, version: CANARY}
    split = " ".join(f"{each}={share:g}" for each, share in shares.items())
    steps = {
        f"validate {name} {version}": "run its gate, aside from the traffic",
        f"traffic {name} {split}": f"a canary: it answers {CANARY} % of the requests",
        f"promote {name} {version}": "it answers all, once it has passed its gate",
    }
    if shares[live] <= 0:
        del steps[f"traffic {name} {split}"]
    width = max(map(len, steps))
    lines = [f"  %deploy {command:{width}}  {what}" for command, what in steps.items()]
    return "\n".join([f"{newest.tag} is saved as a candidate; live traffic stays with {live}. Next:", *lines])


def to_dict(result: Any) -> dict[str, Any]:
    """Any verb's result as one JSON object."""
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        named = result.reset_index() if result.index.name else result
        return {"rows": named.to_dict("records")}
    if isinstance(result, list):
        return {"rows": [to_dict(item) for item in result]}
    if isinstance(result, str):
        return {"text": result}
    facts: dict[str, Any] = result.to_dict()
    return facts


def overview(prog: str) -> str:
    """The help without a verb."""
    width = max(map(len, VERBS))
    lines = [f"usage: {prog} VERB ...", "", "From a fitted model to a live, checked, watched service.", ""]
    lines += [f"  {verb.name:{width}}  {verb.summary}" for verb in VERBS.values()]
    if prog.startswith("%"):
        lines += ["", f"  {prog} VARIABLE ... is {prog} deploy VARIABLE ..."]
    return "\n".join([*lines, "", f"{prog} VERB --help tells more.", ""])


def is_optional(argument: Argument) -> bool:
    """Whether a line can go without `argument`."""
    return argument.optional if argument.positional else not argument.required


def without_addresses(text: str) -> str:
    """`text` with the schemes of its addresses alone: what stands behind one may be a password."""
    return re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s]+", r"\1…", text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        msg = f"{self.prog}: {without_addresses(message)}"
        raise UsageProblem(msg, " ".join(self.format_usage().split()))


def _parser(verb: Verb, prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{prog} {verb.name}", description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=f"example: {prog} {verb.example}", add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for argument in verb.arguments:
        options: dict[str, Any] = {"help": argument.help.replace("%", "%%")}
        if argument.kind in (Kind.FLAG, Kind.OFF):
            options["action"] = "store_const"
            options["const"] = argument.kind is Kind.FLAG
        elif argument.kind is Kind.PAIR:
            options |= {"action": "append", "metavar": argument.kind.value}
        elif argument.kind in (Kind.LIST, Kind.NOTEBOOK):
            options |= {"action": "append", "metavar": argument.kind.value.upper()}
        elif argument.kind in (Kind.WHOLE, Kind.NUMBER, Kind.SIZE):
            options["type"] = _number(argument.kind)
            options["metavar"] = "SIZE" if argument.kind is Kind.SIZE else "N"
        elif not argument.positional:
            options["metavar"] = argument.kind.value.upper()
        if argument.positional:
            options["metavar"] = argument.kind.value if argument.kind is Kind.SHARES else argument.flag.upper()
            if argument.kind is Kind.SHARES:
                options["nargs"] = "*"
            elif is_optional(argument):
                options["nargs"] = "?"
            parser.add_argument(argument.name, **options)
        else:
            flags = [argument.flag, *([argument.short] if argument.short else [])]
            parser.add_argument(*flags, dest=argument.name, required=argument.required, **options)
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="show this help")
    # Words in any order are parsed by a usage that was written down, and so has its "%" doubled.
    parser.usage = parser.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
    return parser


def _number(kind: Kind) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            if kind is Kind.SIZE:
                return _bytes(text)
            return int(text) if kind is Kind.WHOLE else float(text)
        except (ValueError, OverflowError) as error:
            msg = f"{text!r} is not a {kind.value}"
            raise argparse.ArgumentTypeError(msg) from error

    return read


def _bytes(text: str) -> int:
    """``10GB``, ``64MiB`` or a number of bytes."""
    units = {"": 1, **{f"{letter}b": 1000**power for power, letter in enumerate(" kmgt") if power}}
    units |= {f"{letter}ib": 1024**power for power, letter in enumerate(" kmgt") if power}
    number = text.rstrip("kmgtibKMGTIB")
    unit = text[len(number) :].lower()
    if unit not in units:
        raise ValueError(text)
    return int(float(number) * units[unit])


def _labels(X: Any, text: str, resolver: Callable[[Kind, str], Any]) -> tuple[Any, Any]:
    if text in getattr(X, "columns", ()):
        return X.drop(columns=[text]), X[text]
    return X, resolver(Kind.LABELS, text)


def _pair(text: str, argument: Argument) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        msg = f"{text!r} is not a {argument.name.removesuffix('s')}"
        written = argument.kind.value if argument.positional else f"{argument.flag} {argument.kind.value}"
        raise InputError(msg, hint=f"Write {written}.")
    return key, value


def _default_name(model: str) -> str:
    from pathlib import PurePath

    return PurePath(model).stem.lower().replace("_", "-")
