"""The model card: facts that are known, what the user writes, what matters to the model; and nothing runs in it."""

from __future__ import annotations

import json
import shlex
import stat
import time
from datetime import datetime, timezone
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import nbdeploy
from nbdeploy import __main__, artifact, card_html, card_markdown, gate, importance, model_card, model_store
from nbdeploy.errors import InputError, NotFound
from nbdeploy.home import folder, write_json

PAYLOADS = [
    "<script>document.title='x'</script>",
    "</script></style></pre></code></details><script>document.title='x'</script>",
    "<img src=x onerror=document.title='x'>",
    "'\"><svg onload=document.title='x'>",
    "[a](javascript:document.title='x')",
    "![a](http://evil.invalid/x.png)",
    "`</code>` | cell | **bold** \\| ```",
    "\n\n# heading\n\n<!-- nbdeploy:facts end inputs -->\n",
    "-->",
    "&lt;b&gt; $x$ http://evil.invalid www.evil.invalid",
    "\u202egnp.exe\u2028",
]


class Mean:
    """The first column, and nothing else, decides."""

    def predict(self, X):
        return X.iloc[:, 0].to_numpy(dtype=float)


@pytest.fixture
def saved():
    """Save a version without a rehearsal; with `measured`, as if its importance had been measured."""

    def save(model, X, y=None, name="flight-delay", *, measured=None, **options):
        with model_store.stage(model, name, X, y, artifact.Options(**options)) as staged:
            version = model_store.commit(staged)
        if measured is not None:
            write_json(version.path / importance.FILE, {"digest": version.digest, **measured})
        return version

    return save


@pytest.fixture
def plain(saved):
    """A small version whose importance is known."""
    X = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": ["x", "y", "z"]})
    return saved(Mean(), X, measured={"skipped": "not for this test"})


def sentences(card):
    return " ".join(repr(card).replace("\\", "").split())


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


# What it says


def test_a_card_says_what_is_known(flight_model, flights):
    X, y = flights
    version = nbdeploy.save(flight_model, "flight-delay", X, y, metrics={"auc": 0.917}, progress=False)

    card = nbdeploy.card("flight-delay", progress=False)

    text = sentences(card)
    assert text.startswith("# flight-delay v1 Predicts **late** (classification) from 10 columns.")
    for said in (
        "| Classes | False, True |",
        "| `dep_delay` | float | none: refused | -20 to 291 |",
        "| `origin` | string | none: refused | EWR, JFK, LGA |",
        "| Rows | 2,000 |",
        "| auc | 0.917 |",
        "No gate was run on this version",
        "How much ROC-AUC",
        "It has never seen a missing value; a null is refused in every column.",
        "scikit-learn==",
        "`logisticregression__max_iter` | `1000`",
        version.digest,
    ):
        assert said in text, said
    assert card.facts["importance"]["columns"][0]["column"] == "dep_delay"
    assert card.path.read_text() == card.markdown
    assert (version.path / "card.html").read_text() == card.html
    for name in ("card.md", "card.html", "importance.json"):
        assert stat.S_IMODE((version.path / name).stat().st_mode) == 0o600
    assert model_store.get("flight-delay").digest == artifact.digest(artifact.manifest(version.path))
    artifact.load(version.path, version.files)


def test_what_is_absent_says_how_to_get_it(plain):
    text = sentences(nbdeploy.card("flight-delay"))

    for said in (
        "pass `metrics={'accuracy': 0.91}` to save",
        "`%deploy validate flight-delay`",
        "pass the true outcomes to save: `y=y_train`",
        "No labels were stored with it, so nothing here says how good it is.",
        "Not measured: not for this test.",
        "`sections={'Intended use': '…'}`",
    ):
        assert said in text, said


def test_the_example_request_is_a_command_that_a_shell_reads_as_it_was(saved):
    X = pd.DataFrame({"it's": ['a "quoted" $(thing)', "b"], "n": [1, 2]})
    version = saved(Mean(), X[["n", "it's"]], measured={"skipped": ""})

    command = nbdeploy.card("flight-delay").facts["request"]

    words = shlex.split(command, comments=True)
    assert words[1:3] == ["curl", "-s"]
    assert json.loads(words[-1]) == [dict(version.signature.example)]


def test_of_a_private_column_there_is_the_name_and_the_type(saved):
    X = pd.DataFrame(
        {"n": [1.0, 2.0, 3.0], "who": ["Ada Lovelace", "Bob", "Cyd"], "age": [36_361.5, 41_417.5, 57_571.5]}
    )
    version = saved(Mean(), X, private=["who", "age"], measured={"skipped": ""})

    card = nbdeploy.card("flight-delay")

    everything = card.markdown + card.html + card._repr_html_() + json.dumps(card.to_dict())
    for value in ("Ada", "Lovelace", "Bob", "Cyd", "36361", "41417", "57571"):
        assert value not in everything, value
    assert "| `who` | string |  | private |" in card.markdown
    assert json.loads(shlex.split(card.facts["request"], comments=True)[-1])[0]["who"] == "(private)"
    assert card.facts["example"]["n"] == version.signature.example["n"]


def test_the_latest_gate_of_this_version_is_told_with_its_checks(plain):
    evidence = folder("gates", "flight-delay", plain.digest[:16])

    def keep(stem, passed, value, digest=plain.digest):
        result = gate.GateResult(
            "flight-delay", "v1", digest, passed, (gate.Check.of("accuracy", value, at_least=0.8),),
            evidence / f"{stem}.ipynb", "" if passed else "accuracy is low", datetime(2026, 1, int(stem), tzinfo=timezone.utc), 3.2,
        )  # fmt: skip
        write_json(evidence / f"{stem}.json", result.to_dict())

    keep("1", passed=True, value=0.9)
    keep("3", passed=False, value=0.5)
    keep("5", passed=True, value=0.9, digest="0" * 64)
    (evidence / "7.json").write_text("{broken")
    write_json(evidence / "8.json", {"digest": plain.digest, "odd": True})

    card = nbdeploy.card("flight-delay")

    assert "✗ **Failed**: accuracy is low, 2026-01-03 00:00 UTC, in 3.2 s." in card.markdown
    assert "| ✗ | accuracy | 0.5 | at least 0.8 |" in card.markdown
    assert "3.ipynb" in card.markdown
    assert "Its latest gate failed." in card.markdown


def test_a_verdict_that_its_checks_do_not_bear_out_is_no_pass(plain):
    evidence = folder("gates", "flight-delay", plain.digest[:16])
    check = gate.Check.of("accuracy", 0.5, at_least=0.8).to_dict() | {"passed": True}
    write_json(
        evidence / "1.json",
        {"digest": plain.digest, "passed": True, "reason": "", "checks": [check], "notebook": "n", "started": "2026",
         "seconds": 1},
    )  # fmt: skip

    assert nbdeploy.card("flight-delay").facts["gate"]["passed"] is False


def test_everything_is_json(plain):
    facts = nbdeploy.card("flight-delay").to_dict()

    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_an_unknown_version_is_not_found(plain):
    with pytest.raises(NotFound, match="v7"):
        nbdeploy.card("flight-delay", "v7")


def test_the_shell_prints_markdown_and_json(plain, capsys):
    assert __main__.main(["card", "flight-delay"]) == 0
    assert capsys.readouterr().out.startswith("# flight-delay v1\n")

    assert __main__.main(["--json", "card", "flight-delay", "v1"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["digest"] == plain.digest


# What the user writes


def test_sections_of_the_user_are_kept_and_replaced_by_heading(plain):
    nbdeploy.card("flight-delay", sections={"Intended use": "For *travellers*.\n\n## Not\n\nfor staff", "Owner": "ops"})

    card = nbdeploy.card("flight-delay", sections={"Owner": "the desk"})

    assert card.sections == {"Intended use": "For *travellers*.\n\n### Not\n\nfor staff", "Owner": "the desk"}
    assert "sections={" not in card.markdown
    assert card.markdown.index("Intended use") < card.markdown.index("## Inputs")
    assert nbdeploy.card("flight-delay").markdown == card.markdown


def test_what_is_written_by_hand_stays_in_its_place(plain):
    path = nbdeploy.card("flight-delay").path
    text = path.read_text()
    text = text.replace(
        "<!-- nbdeploy:facts begin metrics -->", "## Who asks\n\nThe desk.\n\n<!-- nbdeploy:facts begin metrics -->"
    )
    text = "Read me first.\n\n" + text.replace("## Limits", "## Limits that I changed") + "\n## History\n\nNone.\n"
    path.write_text(text)

    again = nbdeploy.card("flight-delay").markdown

    assert again.startswith("Read me first.\n")
    assert again.endswith("## History\n\nNone.\n")
    assert again.index("## Gate") > again.index("## Who asks\n\nThe desk.\n") > again.index("## Training data")
    assert "Limits that I changed" not in again


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("<!-- nbdeploy:facts end inputs -->\n", ""),
        lambda text: text.replace("<!-- nbdeploy:facts begin inputs -->\n", ""),
        lambda text: text + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(text.partition("<!-- nbdeploy:facts begin gate -->")[:1]),
        lambda text: "",
    ],
)
def test_broken_markers_cost_no_word_of_the_users_and_no_fact(plain, damage):
    card = nbdeploy.card("flight-delay", sections={"Mine": "my words"})
    card.path.write_text(damage(card.path.read_text()), newline="")

    again = nbdeploy.card("flight-delay").markdown

    if damage(card.markdown):
        assert "my words" in again
    for key in ("summary", "inputs", "gate", "provenance"):
        assert again.count(f"<!-- nbdeploy:facts begin {key} -->") == 1
        assert again.count(f"<!-- nbdeploy:facts end {key} -->") == 1


def test_a_heading_in_code_is_no_section(plain):
    card = nbdeploy.card("flight-delay", sections={"How": "```\n## not a heading\n```\nand more"})

    assert card.sections == {"How": "```\n## not a heading\n```\nand more"}


@pytest.mark.parametrize("sections", [{"Use": 3}, {" ": "x"}, {"Use": "x" * 300_000}])
def test_what_is_no_section_is_refused(plain, sections):
    with pytest.raises(InputError, match="section"):
        nbdeploy.card("flight-delay", sections=sections)


# Nothing in it runs


@pytest.fixture
def hostile(saved):
    """A version with a payload in every place that others fill."""

    X = pd.DataFrame({f"{i} {payload}": [1.0, 2.0, 3.0] for i, payload in enumerate(PAYLOADS)})
    X["text"] = (PAYLOADS * 3)[:3]
    names = list(X.columns)
    version = saved(
        Mean(), X, pd.Series([1.0, 2.0, 3.0], name=PAYLOADS[0]),
        measured={
            "columns": [{"column": name, "mean": 0.3, "std": 0.1, "repeats": 5} for name in names],
            "unmeasured": [], "score": PAYLOADS[0], "against": "the labels", "baseline": 1.0, "rows": 3, "repeats": 5,
            "complete": True,
        },
    )  # fmt: skip
    path = version.path / artifact.PROVENANCE
    facts = json.loads(path.read_text()) | {
        "metrics": {payload: payload for payload in PAYLOADS},
        "parameters": {payload: payload for payload in PAYLOADS},
        "cells": [{"name": payload, "source": payload} for payload in PAYLOADS],
        "model": PAYLOADS[1], "notebook": PAYLOADS[2], "user": PAYLOADS[6], "platform": PAYLOADS[7],
        "git": {"commit": PAYLOADS[3], "dirty": True},
    }  # fmt: skip
    path.write_text(json.dumps(facts))
    evidence = folder("gates", "flight-delay", version.digest[:16])
    checks = [gate.Check.of(payload, 1, at_least=0, detail=payload).to_dict() for payload in PAYLOADS]
    write_json(
        evidence / "1.json",
        {"digest": version.digest, "passed": True, "reason": PAYLOADS[0], "checks": checks, "notebook": PAYLOADS[1],
         "started": PAYLOADS[2], "seconds": 1},
    )  # fmt: skip
    return version


ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "div", "section", "h1", "h2", "h3", "p", "b", "em", "strong", "code",
    "pre", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "a", "svg", "g", "text",
    "rect", "desc", "path", "tspan", "s",
}  # fmt: skip


def test_nothing_that_others_named_becomes_markup(hostile):
    card = nbdeploy.card("flight-delay")

    for text in (card.html, card._repr_html_(), card_markdown_as_html(card.markdown)):
        for tag, attributes in Tags(text).found:
            assert tag in ALLOWED, tag
            assert not [name for name in attributes if name.startswith("on")]
            assert "href" not in attributes
            assert "src" not in attributes
    assert "default-src 'none'" in card.html
    assert "script-src" not in card.html
    assert "\u202e" not in card.html + card.markdown
    assert nbdeploy.card("flight-delay").markdown == card.markdown


def card_markdown_as_html(text):
    """Markdown as GitHub and JupyterLab read it: HTML in it counts. Our own comments and details are HTML too."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def test_hostile_names_leave_the_markdown_as_many_tables_and_headings_as_harmless_ones(hostile):
    card = nbdeploy.card("flight-delay")

    titles = [section.title for section in card.parts]
    html = card_markdown_as_html(card.markdown)
    assert "<summary>Notebook cell: &lt;img src=x onerror=" in html
    assert html.count("<h1>") + html.count("<h2>") == len(titles)
    rows = card.markdown.partition("begin inputs -->")[2].partition("<!--")[0].count("\n| ")
    assert rows == len(card.facts["inputs"]) + 1


@pytest.mark.browser
def test_in_a_browser_no_name_runs_and_the_page_reaches_nobody(hostile, lab_browser):
    card = nbdeploy.card("flight-delay", sections={"Mine": "\n\n".join(PAYLOADS)})
    asked = []

    with lab_browser.new_page() as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(card.path.with_name("card.html").as_uri())
        page.wait_for_load_state("networkidle")
        title = page.title()
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")

    assert title == "flight-delay v1"
    assert len(asked) == 1
    assert wide <= 0


@pytest.mark.timeout(180)
def test_in_jupyterlab_the_card_fits_in_both_themes_and_no_name_runs(lab, hostile):
    shown = nbdeploy.card("flight-delay", sections={"Mine": "\n\n".join(PAYLOADS)})._repr_html_()
    (lab.folder / "card.html").write_text(shown)
    show = "from IPython.display import display\ndisplay({'text/html': open('card.html').read()}, raw=True)"
    lab.open(lab.write("card.ipynb", show))
    lab.run_all()
    title = lab.page.title()
    card = lab.output(0).locator(".nbdeploy-card")

    for theme in ("light", "dark"):
        lab.set_theme(theme)
        for width in (1280, 900):
            lab.set_viewport(width, 900)
            lab.shot(f"card-{theme}-{width}")
            assert card.evaluate("card => card.scrollWidth - card.clientWidth") <= 0
            colours = card.evaluate(
                "card => [getComputedStyle(card).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert colours[0] != colours[1]

    assert card.locator("svg rect").count() == len(PAYLOADS) + 1
    assert "$x$" in card.inner_text()
    assert card.locator("mjx-container, .MathJax").count() == 0
    assert lab.page.title() == title
    assert not lab.page_errors


def test_html_in_the_users_markdown_is_text_and_links_lead_to_the_web_or_to_mail(plain):
    links = {
        "ok": "https://example.com/a?b=1", "mail": "mailto:a@example.com", "js": "javascript:alert(1)",
        "data": "data:text/html,x", "file": "file:///etc/passwd", "local": "card.md",
    }  # fmt: skip
    text = (
        "<b onclick=x>bold</b>\n\n"
        + " ".join(f"[{name}]({url})" for name, url in links.items())
        + "\n\n![i](https://a.b/c.png)"
    )

    card = nbdeploy.card("flight-delay", sections={"Mine": text})

    found = [attributes["href"] for tag, attributes in Tags(card.html).found if tag == "a" and "href" in attributes]
    assert found == [links["ok"], links["mail"], "https://a.b/c.png"]
    assert "&lt;b onclick=x&gt;" in card.html
    assert not [tag for tag, _ in Tags(card.html).found if tag == "img"]


def test_what_a_notebook_keeps_is_small_however_large_the_card(saved):
    X = pd.DataFrame({f"a rather long name of column number {i}": [1.0, 2.0] for i in range(900)})
    saved(Mean(), X, measured={"skipped": ""})

    card = nbdeploy.card("flight-delay", sections={"Mine": "word " * 20_000})

    assert sum(map(len, card._repr_mimebundle_().values())) < 60_000
    assert str(card.path) in card._repr_mimebundle_()["text/plain"]


# What a service shows


def test_a_service_shows_the_page_or_the_facts(plain):
    assert "Not measured: not for this test" in card_html.served("flight-delay", "v1", plain.path)

    card = nbdeploy.card("flight-delay", sections={"Mine": "my words"})

    assert card_html.served("flight-delay", "v1", plain.path) == card.html
    # A version that is rehearsed by its own service is moved into the store after that.
    assert card_html.served("flight-delay", "v1", plain.path / "gone") == card.html


# What matters


def measure(version, **options):
    return importance.measure(version.path, version.digest, version.files, **options)


def test_importance_is_measured_once_in_another_process(saved, monkeypatch):
    X = pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50.0)[::-1] ** 2})

    class Here:
        def predict(self, X):
            import os

            return X["a"].to_numpy() * (1 if os.getpid() != here else -1)

    import os

    here = os.getpid()
    version = saved(Here(), X, pd.Series(np.arange(50.0), name="y"))
    waits = []

    found = measure(version, on_wait=lambda: waits.append(1))

    assert found["baseline"] == 1.0  # in this process it would be far below 0
    assert [column["column"] for column in found["columns"]] == ["a", "b"]
    assert found["columns"][1] == {"column": "b", "mean": 0.0, "std": 0.0, "repeats": 5}
    assert found["score"] == "R²"
    assert waits
    monkeypatch.setattr(importance.subprocess, "Popen", None)
    assert measure(version) == found
    write_json(version.path / importance.FILE, found | {"digest": "of another"})
    with pytest.raises(TypeError):
        measure(version)


@pytest.fixture
def loaded(tmp_path):
    def write_and_load(model, X, y=None):
        place = tmp_path / "version"
        place.mkdir()
        artifact.write(place, model, X, y)
        model = artifact.load(place, artifact.manifest(place))
        labels = artifact.read_frame(place / artifact.LABELS) if y is not None else None
        return model, artifact.read_reference(place, model.signature), labels

    return write_and_load


def test_two_classes_with_probabilities_are_scored_by_roc_auc(loaded, flight_model, flights):
    found = importance.compute(*loaded(flight_model, *flights), seconds=60)

    assert (found["score"], found["against"], found["rows"], found["repeats"]) == ("ROC-AUC", "the labels", 1000, 5)
    assert found["columns"][0]["column"] == "dep_delay"
    assert 0.85 < found["baseline"] < 1
    assert found["complete"]


def test_other_classes_are_scored_by_balanced_accuracy(loaded, flights):
    from sklearn.svm import LinearSVC

    X, y = flights
    X = X[["dep_delay", "distance"]]

    found = importance.compute(*loaded(LinearSVC().fit(X, y), X, y), seconds=60)

    assert found["score"] == "balanced accuracy"
    assert found["columns"][0]["column"] == "dep_delay"


def test_without_labels_it_is_how_much_its_own_answers_change(loaded):
    X = pd.DataFrame(
        {
            "kind": pd.Categorical(["low", "high"] * 30),
            "when": pd.date_range("2020-01-01", periods=60, tz="UTC"),
            "count": pd.array([None, 1, 2] * 20, dtype="Int64"),
            "name": ["a", None, "b"] * 20,
        }
    )

    class Kind:
        def predict(self, X):
            assert list(map(str, X.dtypes))[:3] == ["category", str(X["when"].dtype), "Int64"]
            return X["kind"].astype(str).to_numpy()

    found = importance.compute(*loaded(Kind(), X), seconds=60)

    assert (found["score"], found["against"], found["baseline"]) == ("share of equal answers", "its own answers", 1.0)
    first, *rest = found["columns"]
    assert first["column"] == "kind"
    assert 0.3 < first["mean"] < 0.7
    assert [column["mean"] for column in rest] == [0, 0, 0]


def test_labels_in_another_code_than_the_answers_are_not_taken_for_errors(loaded):
    class Sign:
        def predict(self, X):
            return np.where(X["a"] > 0, "yes", "no")

    X = pd.DataFrame({"a": [-1.0, 1.0] * 20, "b": range(40)})

    found = importance.compute(*loaded(Sign(), X, pd.Series([0, 1] * 20, name="y")), seconds=60)

    assert found["against"] == "its own answers"


def test_several_outputs_are_measured_together(loaded):
    class Both:
        def predict(self, X):
            return {"twice": 2 * X["a"].to_numpy(), "half": X["b"].to_numpy() / 2}

    X = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)[::-1], "c": 1.0})

    found = importance.compute(*loaded(Both(), X), seconds=60)

    assert [column["column"] for column in found["columns"]] == ["a", "b", "c"]
    assert found["columns"][2]["mean"] == 0


def test_when_time_is_up_it_says_what_it_has(loaded):
    class Slow:
        def predict(self, X):
            time.sleep(0.05)
            return X.to_numpy().sum(axis=1)

    X = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 20)), columns=[f"c{i}" for i in range(20)])
    model, reference, _ = loaded(Slow(), X)

    started = time.monotonic()
    found = importance.compute(model, reference, None, seconds=0.5)

    assert time.monotonic() - started < 3
    assert not found["complete"]
    assert 1 <= len(found["columns"]) < 20
    assert len(found["columns"]) + len(found["unmeasured"]) == 20


def test_a_column_whose_mixture_the_model_refuses_stays_unmeasured(loaded):
    class Picky:
        def predict(self, X):
            if not (X["a"] == X["twin"]).all():
                raise ValueError
            return X["b"].to_numpy()

    X = pd.DataFrame({"a": range(30), "twin": range(30), "b": np.arange(30.0)})

    found = importance.compute(*loaded(Picky(), X), seconds=60)

    assert [column["column"] for column in found["columns"]] == ["b"]
    assert found["unmeasured"] == ["a", "twin"]


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        (pd.DataFrame({"text": [f"word {i}" for i in range(300)]}), "a single input column, free text"),
        (np.zeros((5, 4, 4)), "holds many values"),
    ],
)
def test_where_mixing_columns_says_nothing_the_card_says_why(saved, X, reason):
    class Length:
        def predict(self, X):
            return np.arange(len(X), dtype=float) * 0

    saved(Length(), X)

    assert reason in sentences(nbdeploy.card("flight-delay"))


def test_a_model_that_fails_or_a_missing_scikit_learn_is_said_and_not_kept(saved, monkeypatch):
    X = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    version = saved(Mean(), X)
    monkeypatch.setattr(importance.processes, "environment", lambda: {"PATH": "/nowhere"} | _broken_path(version))

    assert "skipped" in measure(version)
    assert not (version.path / importance.FILE).exists()


def _broken_path(version):
    # A sitecustomize that hides scikit-learn from the fresh process.
    import os
    from pathlib import Path

    hidden = version.path.parent / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text("import sys; sys.modules['sklearn'] = None")
    root = str(Path(__file__).parent.parent)
    return dict(os.environ) | {"PYTHONPATH": f"{hidden}{os.pathsep}{root}"}


# How it reads


def test_the_plot_is_a_picture_with_a_name_and_a_number_for_each_column():
    from nbdeploy.card_blocks import Bars

    drawn = card_html.svg(Bars((("dep_delay", 0.31, 0.02), ("a<b", -0.01, 0.0)), "loss of R²"))

    assert drawn.count("<rect") == 2
    assert "a&lt;b" in drawn
    assert "0.3100" in drawn
    assert "<script" not in drawn


def test_markdown_means_only_what_it_says():
    assert card_markdown.escaped("a_b*c|d`e<f>[g](h) & $i$") == r"a\_b\*c\|d\`e&lt;f&gt;\[g\](h) &amp; \$i\$"
    assert card_markdown.escaped("www.x.y and http://x") == r"www\.x.y and http\://x"
    assert model_card.MARKDOWN in artifact.UNRECORDED
