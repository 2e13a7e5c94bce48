"""What a rule of alerts says, and where one that says nothing goes wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbdeploy
from nbdeploy import __main__, alert_rules
from nbdeploy.alert_rules import parse
from nbdeploy.errors import AlertError, RuleError
from watched import SHOP, ask, asked

DOCS = Path(__file__).parent.parent / "docs" / "alerts.md"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("drift.share > 0.3 for 2 windows", "drift.share > 30% over 1h for 2 windows"),
        ("error_rate>2%", "error_rate > 2% over 1h"),
        ("  refused_rate >= .5 over 1.5h ", "refused_rate >= 50% over 90m"),
        ("drift", "drift over 1h"),
        ("drift('dep_delay') over 2w", 'drift("dep_delay") over 14d'),
        ('drift("a \\"b\\" \\\\") > 1e-2', 'drift("a \\"b\\" \\\\") > 0.01 over 1h'),
        ("p99 > 0.2s of v2", "p99 > 200 ms of v2 over 1h"),
        ("p50 < 7 for 1 window over 1d", "p50 < 7 ms over 1d"),
        ("requests < 1 over 1h", "requests < 1 over 1h"),
        ("quality < 0.9 over 7d", "quality < 0.9 over 7d"),
        ("quality.accuracy < 90% over 7d of v12", "quality.accuracy < 90% of v12 over 7d"),
        ("quality.r2 <= -0.5", "quality.r2 <= -0.5 over 1h"),
        ("log.dropped > 0", "log.dropped > 0 over 1h"),
        ("log.unreadable > 0", "log.unreadable > 0"),
    ],
)
def test_a_rule_is_kept_in_one_way(text, kept):
    assert parse(text).text == kept
    assert parse(kept) == parse(text)


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("drift.shares > 0.3", "drift.shares", "'drift.shares' is no measure. Did you mean 'drift.share'?"),
        ("quality.accurcy < 1", "quality.accurcy", "Did you mean 'quality.accuracy'?"),
        ("error_rate > 2", "2", "error_rate is a share, from 0 to 1. Two percent is 0.02, or 2%."),
        ("error_rate > 101%", "101", "is a share"),
        ("p99 > -1", "-1", "never below 0"),
        ("p99 > 61s", "61", "no time so long"),
        ("p99 > 5 %", "%", "p99 is not measured in %"),
        ("p99 > 1e999", "1e999", "beyond any number"),
        ("p99 = 3", "=", "'=' is not expected here. Expected: one of > >= < <=."),
        ("p99 > fast", "fast", "Expected: a number"),
        ("error_rate", "", "error_rate is compared with nothing. For example error_rate > 2%."),
        ("error_rate >", "", "the rule ends too early. Expected: a number."),
        ("error_rate > 2% over 1y", "1y", "Expected: a duration, 30m or 7d say."),
        ("error_rate > 2% over 5s", "5s", "a window is from 1m to 366d long"),
        ("error_rate > 2% over 9999999999999999999999d", "9999999999999999999999d", "a window is from"),
        ("error_rate > 2% for 0 windows", "0", "1 to 100 windows"),
        ("error_rate > 2% for 2", "", "Expected: the word windows."),
        ("error_rate > 2% over 1h over 2h", "2h", "it says twice how long a window is"),
        ("error_rate > 2% twice", "twice", "'twice' is not expected here"),
        ("error_rate > 2% of 2", "2", "Expected: a version"),
        ("drift > 0.3", "drift", "'drift' is a verdict, not a number"),
        ("drift(carrier) > 1", "carrier", "Expected: a column's name in quotes"),
        ("drift('carrier", "'", "Expected: a column's name in quotes"),
        ("p99('carrier') > 1", "p99", "p99 is not of a column"),
        ("log.unreadable > 0 over 1h", "1h", "of this moment"),
        ("> 3", ">", "Expected: a measure"),
    ],
)
def test_a_rule_that_does_not_parse_shows_the_spot(text, at, says, capsys):
    asked([(1, 2)])
    with pytest.raises(RuleError) as raised:
        parse(text)

    message, rule, mark = str(raised.value).split("\n")
    assert says in message
    assert rule == f"  {text}"
    assert mark.strip() == "^" * max(1, len(at))
    assert mark.index("^") - 2 == (text.rindex(at) if at else len(text))

    assert ask(text) == 1
    shell = capsys.readouterr()
    assert (shell.out, shell.err) == ("", f"nbdeploy: {raised.value}\n")
    assert __main__.main(["--json", "alert", SHOP, text]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["rule"], facts["error"]) == ("RuleError", text, message)
    assert text[facts["position"] :][: len(at)] == at


def test_in_a_notebook_the_spot_stands_under_the_message():
    asked([(1, 2)])
    with pytest.raises(RuleError) as raised:
        nbdeploy.alert(SHOP, "eror_rate > 2%")

    lines = re.sub(r"\x1b\[\d+m", "", "\n".join(raised.value._render_traceback_())).split("\n")
    assert lines == [
        "RuleError: 'eror_rate' is no measure",
        "  eror_rate > 2%",
        "  ^^^^^^^^^",
        "  Did you mean 'error_rate'?",
    ]


def test_the_mark_stands_under_the_spot_though_characters_are_wide_or_unseen():
    for text, width in (("drift('日本') > x", 16), ("drift('a\tb\x1b[2J') > x", 19)):
        with pytest.raises(RuleError) as raised:
            parse(text)
        _, rule, mark = str(raised.value).split("\n")
        assert rule.isprintable()
        assert mark == " " * (2 + width) + "^"


@pytest.mark.parametrize("text", ["", " ", "\n", "x" * 501, "drift('\ud800')", None, 3, b"drift"])
def test_what_is_hardly_a_rule_is_refused(text):
    with pytest.raises(AlertError):
        parse(text)


WORDS = [
    *alert_rules.MEASURES, "of", "over", "for", "windows", "window", "v2", "1h", "30m", "2", "0.5", "%", "ms", "s", ">", ">=",
    "<", "(", ")", '"a"', "'b'", "\\", '"', "'", "-", "1e9", "\t", "\n", "日",
]  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)))
def test_any_text_is_a_rule_or_an_error_of_ours(text):
    found = read(text)
    if isinstance(found, RuleError):
        assert str(found).count("\n") == 2
        assert 0 <= found.position <= len(found.rule)
    elif isinstance(found, AlertError):
        assert "\n" not in str(found)
    else:
        assert parse(found.text) == found


def read(text):
    try:
        return parse(text)
    except AlertError as error:
        return error


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.floats(0, 1), st.sampled_from([">", ">=", "<", "<="]),
    st.integers(60, 10**6), st.integers(1, 100),
)  # fmt: skip
def test_a_rule_survives_its_own_text(column, limit, comparison, seconds, windows):
    rules = [
        alert_rules.Rule("drift", comparison, limit, column=column, window=seconds, windows=windows),
        alert_rules.Rule("error_rate", comparison, round(limit, 12), version="v3", window=seconds, windows=windows),
        alert_rules.Rule("p99", comparison, limit * 1000, window=seconds),
    ]
    assert [parse(rule.text) for rule in rules] == rules


def test_the_grammar_in_the_docs_is_the_grammar():
    page = DOCS.read_text()
    assert alert_rules.GRAMMAR.strip() in page
    assert all(f"`{name}`" in page or name.startswith("quality.") for name in alert_rules.MEASURES)
    assert all(f"`{name.partition('.')[2]}`" in page for name in alert_rules.MEASURES if name.startswith("quality."))


def test_a_notebook_and_a_shell_say_the_same(capsys, monkeypatch):
    asked([(1, 2)])
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "nbdeploy")
    kept = shell.run_line_magic("deploy", "alert shop 'drift(\"a\") > 0.1 for 2 windows' --to env:A --to env:B")
    assert (kept.rules, kept.to) == (('drift("a") > 0.1 over 1h for 2 windows',), (("env:A", "env:B"),))
    assert ask('drift("a") > 0.1 for 2 windows', "--to", "env:A", "--to", "env:B") == 0
    assert capsys.readouterr().out == f"{kept!r}\n"
    assert shell.run_line_magic("deploy", "alert shop 1 --off").rules == ()
    with pytest.raises(RuleError):
        shell.run_line_magic("deploy", "alert shop 'p98 > 1'")
    shell.run_line_magic("unload_ext", "nbdeploy")
