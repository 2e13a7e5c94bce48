"""The sections of a card, from its facts: what is said, before it becomes Markdown or HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from nbdeploy.card_blocks import Bars, Code, Details, Fence, Items, Mark, Section, Strong, Table, Text, number, one_line

MAX_ROWS = 200  # of a table
MAX_SOURCE = 20_000  # characters of one block of code


def sections(facts: Mapping[str, Any], *, purpose_known: bool = False) -> list[Section]:
    """Every section, in order. `purpose_known` says that the user has written sections of their own."""
    return [
        _summary(facts, purpose_known),
        Section("inputs", "Inputs", tuple(_inputs(facts))),
        Section("request", "An example request", tuple(_request(facts))),
        Section("training", "Training data", tuple(_training(facts))),
        Section("metrics", "Metrics", tuple(_metrics(facts))),
        Section("gate", "Gate", tuple(_gate(facts))),
        Section("importance", "What matters to it", tuple(_importance(facts))),
        Section("limits", "Limits", tuple(_limits(facts))),
        Section("drift", "Drift baseline", tuple(_drift(facts))),
        Section("requirements", "Requirements", tuple(_requirements(facts))),
        Section("parameters", "Parameters", tuple(_parameters(facts))),
        Section("provenance", "Where it comes from", tuple(_provenance(facts))),
    ]


# -- one function per section -----------------------------------------------------------------------------


def _summary(facts: Mapping[str, Any], purpose_known: bool) -> Section:
    predicts = facts["predicts"]
    model = facts["provenance"].get("model")
    what: list[Any] = ["Predicts ", Strong(predicts["target"]) if predicts["target"] else "one value"]
    what.append(f" ({predicts['task']}) from {_count(len(facts['inputs']), 'column')}.")
    rows: list[tuple[Any, ...]] = []
    if predicts["classes"] is not None:
        rows.append(("Classes", _listed([number(value) for value in predicts["classes"]], 20)))
    also = ", and the probability of each class" if predicts["classes"] is not None else ""
    for output in predicts["outputs"][:20]:
        name = (Code(output["name"]), ": ") if output["name"] else ()
        many = f" of shape {_shape(output['shape'])}" if output["shape"] else ""
        rows.append(("Answer", (*name, Code(output["dtype"]), f"{many} per row{also}")))
    if model:
        rows.append(("Model", Code(model)))
    rows.append(("Saved", _moment(facts["created"])))
    rows.append(("SHA-256", Code(facts["digest"][:16] or "not recorded")))
    blocks: list[Any] = [Text(tuple(what)), Table(tuple(rows))]
    if not purpose_known:
        blocks.append(
            _absent(
                "What it is for, and what it is not for, only you know: pass ",
                Code("sections={'Intended use': '…'}"),
                " to ",
                Code("nbdeploy.card"),
                ", or write it in card.md.",
            )
        )
    return Section("summary", f"{facts['name']} {facts['version']}", tuple(blocks))


def _inputs(facts: Mapping[str, Any]) -> Iterable[Any]:
    rows = []
    for column in facts["inputs"][:MAX_ROWS]:
        if column["private"]:
            rows.append((Code(column["name"]), column["type"], "", "private"))
            continue
        kind = f"{column['type']}, {_shape(column['shape'])}" if column.get("shape") else column["type"]
        share = column["null_share"]
        nulls = "none: refused" if not column["nullable"] else f"{_percent(share)}: taken"
        rows.append((Code(column["name"]), kind, nulls, _seen(column)))
    yield Table(tuple(rows), ("Column", "Type", "Nulls in training", "Seen in training"))
    if (hidden := len(facts["inputs"]) - len(rows)) > 0:
        yield _absent(f"and {hidden} more; ", Code("GET /signature"), " lists them all.")
    if facts["container"] != "frame":
        yield Text((f"The model is handed them as one {one_line(facts['container'])}, in this order.",))


def _request(facts: Mapping[str, Any]) -> Iterable[Any]:
    if not facts["request"]:
        yield _absent(
            "A row of it is too long to show; ", Code("GET /signature"), " has one under ", Code("example"), "."
        )
        return
    yield Fence(facts["request"], "shell")
    if any(column["private"] for column in facts["inputs"]):
        yield _absent("Put real values in place of ", Code("(private)"), ".")


def _training(facts: Mapping[str, Any]) -> Iterable[Any]:
    training = facts["training"]
    rows = training["rows"]
    labels = "with the true outcomes" if training["labels"] else "without the true outcomes"
    table: list[tuple[Any, ...]] = [
        ("Rows", "unknown" if rows is None else f"{rows:,}"),
        ("Columns", f"{training['columns']:,}"),
        ("Stored sample", f"{_count(training['reference_rows'], 'row')}, {labels}"),
    ]
    if training["digest"]:
        table.append(("SHA-256 of the training data", Code(training["digest"])))
    yield Table(tuple(table))
    if not training["labels"]:
        yield _absent("To have its quality measured, pass the true outcomes to save: ", Code("y=y_train"), ".")


def _metrics(facts: Mapping[str, Any]) -> Iterable[Any]:
    if not facts["metrics"]:
        yield _absent("None were given: pass ", Code("metrics={'accuracy': 0.91}"), " to save.")
        return
    rows = list(_flat(facts["metrics"]))
    yield Table(
        tuple((one_line(name), number(value)) for name, value in rows[:MAX_ROWS]), ("Metric", "Value"), frozenset({1})
    )
    yield Text(("As given by whoever saved it; nbdeploy did not measure them.",), quiet=True)


def _gate(facts: Mapping[str, Any]) -> Iterable[Any]:
    gate = facts["gate"]
    if gate is None:
        yield _absent("No gate was run on this version: ", Code(f"%deploy validate {facts['name']}"), ".")
        return
    words = "Passed" if gate["passed"] else "Failed"
    why = f": {one_line(gate['reason'], 300)}" if gate["reason"] else ""
    yield Text(
        (Mark(gate["passed"]), " ", Strong(words), f"{why}, {_moment(gate['started'])}, in {gate['seconds']:.1f} s.")
    )
    rows = tuple(
        (Mark(check["passed"]), one_line(check["name"]), check["shown"], check["wanted"], one_line(check["detail"]))
        for check in gate["checks"][:MAX_ROWS]
    )
    if rows:
        yield Table(rows, ("", "Check", "Value", "Wanted", "Detail"))
    yield Text(("Evidence: ", Code(one_line(gate["notebook"], 400))), quiet=True)


def _importance(facts: Mapping[str, Any]) -> Iterable[Any]:
    found = facts["importance"]
    if found is None:
        yield _absent("Not measured yet: ", Code(f"nbdeploy.card({facts['name']!r})"), " does it.")
        return
    if "skipped" in found:
        yield _absent(f"Not measured: {one_line(found['skipped'], 400)}.")
        return
    own = found["against"] != "the labels"
    score = one_line(found["score"])
    if not own:
        unit = f"loss of {score}"
        said = f"How much {score} (here {number(round(found['baseline'], 4))}) is lost when a column's values are mixed among the rows"
    elif score == "R²":
        unit = "change of its answers, as loss of R²"
        said = "How much its own answers change, as loss of R², when a column's values are mixed among the rows"
    else:
        unit = "share of its answers that change"
        said = "How much its own answers change, as a share of rows, when a column's values are mixed among the rows"
    shown = found["columns"] if len(found["columns"]) <= 50 else found["columns"][:20]
    yield Text((f"{said}: the longer the bar, the more it relies on that column.",))
    yield Bars(tuple((column["column"], column["mean"], column["std"]) for column in shown), unit)
    trained = "" if own else " Those are rows that it may have been trained on: this is no measure of how good it is."
    yield _absent(
        f"Measured on {_count(found['rows'], 'row')} of the stored sample.{trained} Each column was mixed up to ",
        f"{found['repeats']} times; ± is one standard deviation. Columns that say the same share what they matter, ",
        "so each alone looks smaller.",
    )
    if own:
        yield _absent(
            "There are no labels to measure quality with; pass ",
            Code("y="),
            " to save and it is measured against them.",
        )
    if len(shown) < len(found["columns"]):
        yield _absent(
            f"The {len(shown)} most important of {len(found['columns'])} columns are shown; importance.json has all."
        )
    if found["unmeasured"]:
        names_left = _listed([one_line(name, 60) for name in found["unmeasured"]], 8)
        yield _absent(f"Not measured, because the model fails on mixed rows or time was up: {names_left}.")
    elif not found["complete"]:
        yield _absent("Time was up before every column was mixed 5 times, so the bars are rougher than usual.")


def _limits(facts: Mapping[str, Any]) -> Iterable[Any]:
    training, inputs = facts["training"], [column for column in facts["inputs"] if not column["private"]]
    lines: list[Any] = []
    if training["rows"] is not None:
        lines.append(f"It was trained on {_count(training['rows'], 'row')}.")
    if any(column["minimum"] is not None for column in inputs):
        lines.append("Outside of the ranges under Inputs it extrapolates; such rows are answered, not refused.")
    if any(column["categories"] is not None for column in inputs):
        lines.append("A category that is not among those seen in training is answered, not refused.")
    full = [one_line(column["name"], 60) for column in inputs if not column["nullable"]]
    if full and len(full) == len(facts["inputs"]):
        lines.append("It has never seen a missing value; a null is refused in every column.")
    elif full:
        lines.append(f"It has never seen a missing value in {_listed(full, 12)}; a null there is refused.")
    if any(column["type"] == "float" and not column["finite"] for column in inputs):
        lines.append("Some numbers in its training data were infinite.")
    if not training["labels"]:
        lines.append("No labels were stored with it, so nothing here says how good it is.")
    if facts["gate"] is None:
        lines.append("No gate was run on it.")
    elif not facts["gate"]["passed"]:
        lines.append("Its latest gate failed.")
    yield Items(tuple(lines))


def _drift(facts: Mapping[str, Any]) -> Iterable[Any]:
    training = facts["training"]
    yield Text(
        (
            Code(f"nbdeploy.drift({facts['name']!r})"),
            f" compares what the service was asked with these {training['reference_rows']:,} rows, column by column, ",
            "and its predictions with those on these rows.",
        )
    )
    rows = []
    for column in facts["inputs"][:MAX_ROWS]:
        if column["private"]:
            rows.append((Code(column["name"]), "", "", "private"))
            continue
        middle = "" if column["middle"] is None else _moment_or(column["middle"], column["type"])
        distinct = "" if column["distinct"] is None else f"{column['distinct']:,}"
        rows.append((Code(column["name"]), _percent(column["null_share"]), distinct, middle))
    yield Details(
        f"The baseline of {_count(len(facts['inputs']), 'column')}",
        (Table(tuple(rows), ("Column", "Nulls", "Distinct values", "Median or most frequent"), frozenset({1, 2})),),
    )


def _requirements(facts: Mapping[str, Any]) -> Iterable[Any]:
    if not facts["requirements"]:
        yield _absent("None were recorded; a version that is saved anew records them.")
        return
    yield Fence("\n".join(one_line(line, 300) for line in facts["requirements"][:500]))


def _parameters(facts: Mapping[str, Any]) -> Iterable[Any]:
    parameters = facts["parameters"]
    if not isinstance(parameters, dict) or not parameters:
        yield _absent("None were recorded; a model that has ", Code("get_params"), " tells them when it is saved.")
        return
    rows = tuple((Code(one_line(name)), Code(_json(value))) for name, value in list(parameters.items())[:MAX_ROWS])
    more = f"; {len(rows)} are shown" if len(rows) < len(parameters) else ""
    yield Details(f"{_count(len(parameters), 'parameter')}{more}", (Table(rows, ("Parameter", "Value")),))


def _provenance(facts: Mapping[str, Any]) -> Iterable[Any]:
    known = facts["provenance"]
    git = known.get("git")
    rows: list[tuple[Any, ...]] = []
    for name, key in (("Model", "model"), ("Stored as", "format"), ("Notebook", "notebook"), ("Platform", "platform")):
        if known.get(key):
            rows.append((name, Code(one_line(known[key], 300))))
    if isinstance(retrained := known.get("retrained"), dict):
        window = "".join(f" {word} {retrained[word]}" for word in ("since", "until") if retrained.get(word))
        told = f"from {retrained.get('of')} on {retrained.get('rows')} labelled rows of its log{window}"
        rows.append(("Retrained", one_line(told, 300)))
    if isinstance(git, dict):
        dirty = ", with changes that were not committed" if git.get("dirty") else ""
        rows.append(("Git commit", (Code(one_line(git.get("commit", ""), 64)), dirty)))
    for name, key in (("Python", "python"), ("Saved by", "user")):
        if known.get(key):
            rows.append((name, one_line(known[key])))
    rows += [("Saved", _moment(facts["created"])), ("SHA-256", Code(facts["digest"]))]
    yield Table(tuple(rows))
    if not isinstance(git, dict):
        yield _absent("It was not saved from a git repository: work in one, and the commit is recorded.")
    for cell in facts["cells"][:100]:
        source = cell["source"]
        cut = (
            source
            if len(source) <= MAX_SOURCE
            else f"{source[:MAX_SOURCE]}\n# … {len(source) - MAX_SOURCE:,} characters more"
        )
        yield Details(f"Notebook cell: {one_line(cell['name'])}", (Fence(cut, "python"),))


# -- words --------------------------------------------------------------------------------------------------


def _absent(*spans: Any) -> Text:
    return Text(spans, quiet=True)


def _shape(shape: Iterable[int | None]) -> str:
    return " x ".join("?" if size is None else str(size) for size in shape)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    if share == 0:
        return "none"
    return "below 0.1 %" if share < 0.001 else f"{share * 100:.3g} %"


def _listed(words: list[str], most: int) -> str:
    text = ", ".join(words[:most])
    return text if len(words) <= most else f"{text} and {len(words) - most:,} more"


def _moment(iso: str) -> str:
    text = one_line(iso, 40)
    return f"{text[:16].replace('T', ' ')} UTC" if len(text) >= 16 and text[10] == "T" else text


def _moment_or(value: Any, kind: str) -> str:
    return (
        one_line(str(value).removesuffix("T00:00:00").replace("T", " "), 40)
        if kind in ("datetime", "date")
        else number(value)
    )


def _seen(column: Mapping[str, Any]) -> str:
    if column["categories"] is not None:
        words = [one_line(value, 40) if value != "" else "''" for value in column["categories"]]
        return _listed(words, 8)
    if column["minimum"] is not None:
        return f"{_moment_or(column['minimum'], column['type'])} to {_moment_or(column['maximum'], column['type'])}"
    return "free text" if column["type"] == "string" else ""


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} · ")
        else:
            yield f"{prefix}{name}", _json(value) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 200)
