"""Each event is told once, and once that it is over; and nobody learns an address."""

from __future__ import annotations

import email
import email.policy
import errno
import json
import logging
import os
import random
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

import nbdeploy
from nbdeploy import __main__, alert_delivery, alert_store, alerting, model_store, routing
from nbdeploy.prediction_log import Entry, LogWriter, new_request_id
from watched import CANARY, SHOP, Hook, asked, counted, forget, look, mail_sink, only


@pytest.fixture(autouse=True)
def shop(home):
    """A deployment that somebody asked once."""
    asked([(1, 2)])
    return home


@pytest.fixture
def hook():
    with Hook() as made:
        yield made


@pytest.fixture
def mail():
    with mail_sink() as made:
        yield made


def test_an_event_is_told_once_and_once_that_it_is_over(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=100, errors=1)
    assert look().deliveries == ()

    counted(9, requests=100, errors=50)
    first = look()
    again = look()

    assert [(one.what, one.delivered) for one in first.deliveries] == [("alert", True)]
    assert again.deliveries == ()
    assert only(again).event == only(first).event
    assert [(kind, title) for kind, title, _ in hook.got] == [("failure", "FIRING: shop: error_rate > 2% over 1h")]
    assert hook.got[0][2].splitlines()[:2] == ["error_rate > 2% over 1h", "measured: 25.5% (51 of 200 requests) in 1h"]

    forget()
    counted(8, requests=100)
    assert only(look()).recovered
    assert look().deliveries == ()

    assert hook.titles[1:] == ["RECOVERED: shop: error_rate > 2% over 1h"]
    assert {re.search(r"event: ([0-9a-f]{16})", message)[1] for _, _, message in hook.got} == {only(first).event}

    counted(7, requests=100, errors=100)
    assert only(look()).event != only(first).event
    assert len(hook.got) == 3


def test_what_nobody_took_is_told_at_the_next_look_in_order(hook):
    other = "json://127.0.0.1:9/"  # nobody listens there
    nbdeploy.alert(SHOP, "error_rate > 2%", to=[hook.url, other])
    hook.status = 503
    counted(10, requests=10, errors=10)
    found = look()
    assert [(one.delivered, one.why) for one in found.deliveries] == [
        (False, "it was refused with status 503"), (False, "there was no connection"),
    ]  # fmt: skip
    assert found.exit_code == 1

    forget()
    counted(10, requests=10)
    found = look()
    assert (found.exit_code, found.firing, hook.got) == (3, (), [])

    hook.status = 200
    assert look().exit_code == 3  # the other one
    assert [title.split(":")[0] for title in hook.titles] == ["FIRING", "RECOVERED"]
    nbdeploy.alert(SHOP, "1", to=hook.url)
    assert (look().exit_code, len(hook.got)) == (0, 2)


def test_mail_is_plain_text_in_which_data_means_nothing(mail):
    column = "<b>@everyone</b> [x](javascript:alert(1)) https://evil.example\r\nBcc: you@evil.example"
    X = pd.DataFrame({column: np.random.default_rng(0).normal(size=500)})
    nbdeploy.save(LinearRegression().fit(X, X[column]), "odd", X, X[column], progress=False)
    routing.go_live("odd", "v1", "a test")
    signature = model_store.get("odd", "v1").signature
    with LogWriter("odd", signature.columns, outputs=signature.outputs, keep_every=None) as log:
        for value in np.random.default_rng(1).normal(9, 1, size=50):
            assert log.write([Entry("v1", new_request_id(), {signature.columns[0].name: [value]}, [value])])
    quoted = column.replace('"', '\\"')
    nbdeploy.alert("odd", f'drift("{quoted}")', to=mail.url)

    assert [one.delivered for one in look("odd").deliveries] == [True]

    (envelope,) = mail.got
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    text = message.get_content()
    assert envelope.rcpt_tos == ["me@mail.example"]
    assert message["Bcc"] is None
    assert message.get_content_type() == "text/plain"
    for told in (text, message["Subject"]):
        assert "FIRING" in message["Subject"]
        assert not re.search(r"[<>]b>|@everyone|javascript:|https://evil", told)
        assert "everyone" in told


def test_looks_at_the_same_time_tell_it_once(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)
    code = "import nbdeploy, sys; sys.stdin.read(); print(len(nbdeploy.alerts('shop').deliveries))"
    root = str(Path(nbdeploy.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        for _ in range(2)
    ]

    told = [int(one.communicate(timeout=120)[0]) for one in running]

    assert (sorted(told), len(hook.got)) == ([0, 1], 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_many_looks_at_once_some_killed_each_event_is_told_once(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    root = str(Path(nbdeploy.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command, chance, kills = [sys.executable, "-c", "import nbdeploy; nbdeploy.alerts('shop')"], random.Random(0), 0
    for number in range(12):
        forget()
        counted(5, requests=10, errors=10 * (number % 2 == 0))
        running = [subprocess.Popen(command, env=env) for _ in range(3)]
        if number % 3 == 0:
            time.sleep(chance.uniform(0.5, 4))
            running[0].kill()
            kills += 1
        assert sum(process.wait() != 0 for process in running) <= (number % 3 == 0)

    told = [title.partition(":")[0] for title in hook.titles]
    once = [one for one, before in zip(told, [None, *told], strict=False) if one != before]
    assert once == ["FIRING", "RECOVERED"] * 6
    assert len(told) - len(once) <= kills  # killed between the answer and its note


def test_a_target_in_the_environment_is_read_when_it_is_told(hook, monkeypatch):
    nbdeploy.alert(SHOP, "error_rate > 2%", to="env:SHOP_HOOK")
    counted(10, requests=10, errors=10)
    (first,) = look().deliveries
    assert (first.delivered, first.to) == (False, "env:SHOP_HOOK")
    assert first.why.startswith("the variable SHOP_HOOK is not set.")
    monkeypatch.setenv("SHOP_HOOK", "nonsense")
    assert "no kind of address" in look().deliveries[0].why

    monkeypatch.setenv("SHOP_HOOK", hook.url)
    assert [one.delivered for one in look().deliveries] == [True]
    assert len(hook.got) == 1


def test_a_target_that_comes_later_is_told_of_what_fires(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%")
    counted(10, requests=10, errors=10)
    assert (look().exit_code, look().deliveries) == (1, ())
    nbdeploy.alert(SHOP, "1", to=hook.url)
    assert [one.delivered for one in look().deliveries] == [True]
    assert look().deliveries == ()


def test_a_rule_that_was_removed_is_not_told_any_more(hook):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    nbdeploy.alert(SHOP, "p99 > 1000")
    hook.status = 500
    counted(10, requests=10, errors=10)
    look()
    assert len(alerting.state(SHOP)) == 1
    nbdeploy.alert(SHOP, "1", off=True)
    hook.status = 200
    assert alerting.state(SHOP) == []
    assert (look().deliveries, hook.got) == ((), [])


def test_a_dry_run_tells_nobody_and_leaves_no_trace(hook, shop):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)
    found = look(dry_run=True)
    assert (found.exit_code, found.dry_run, only(found).state) == (1, True, "firing")
    assert (hook.got, [path.name for path in (shop / "alerts" / SHOP).iterdir()]) == ([], ["rules.json"])
    assert "dry run: nobody was told" in repr(found)


def test_a_full_disk_is_told_though_it_cannot_be_noted(hook, monkeypatch):
    nbdeploy.alert(SHOP, "log.dropped > 0", to=hook.url)
    counted(10, requests=10, dropped=4)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(alert_store, "write_json", full)
        found = look()
    assert [one.delivered for one in found.deliveries] == [True]
    assert (
        "No space left on device, so it will be told again" in " ".join(found.trouble).replace(": No", " No")
        or found.trouble
    )
    assert len(hook.got) == 1
    assert [one.delivered for one in look().deliveries] == [True]
    assert look().deliveries == ()


def test_a_look_that_is_killed_before_it_tells_is_made_up_for(hook, monkeypatch):
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    counted(10, requests=10, errors=10)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(alert_delivery, "send", killed)
        with pytest.raises(KeyboardInterrupt):
            look()
    (event,) = alerting.state(SHOP)
    assert [one.delivered for one in look().deliveries] == [True]
    assert f"event: {event.event}" in hook.got[0][2]
    assert (look().deliveries, len(hook.got)) == ((), 1)


def test_what_waits_is_bounded(monkeypatch, hook):
    monkeypatch.setattr(alert_store, "MAX_WAITING", 3)
    hook.status = 500
    nbdeploy.alert(SHOP, "error_rate > 2%", to=hook.url)
    for errors in (10, 0, 10, 0, 10):
        forget()
        counted(10, requests=10, errors=errors)
        found = look()
    assert any("were given up" in trouble for trouble in found.trouble)
    hook.status = 200
    look()
    assert [title.split(":")[0] for title in hook.titles] == ["FIRING", "RECOVERED", "FIRING"]


def test_all_deployments_that_have_rules_are_looked_at(shop, capsys):
    asked([(1.0, 2.0)], name="late")
    nbdeploy.alert(SHOP, "error_rate > 2%")
    nbdeploy.alert("late", "error_rate > 2%")
    counted(10, requests=10, errors=10, name="late")
    found = look(None)
    assert [(alert.name, alert.state) for alert in found.alerts] == [("late", "firing"), (SHOP, "no data")]

    (shop / "alerts" / "late" / "state.json").write_text("{")
    found = look(None)
    assert [alert.name for alert in found.alerts] == [SHOP]
    assert (found.exit_code, found.trouble[0].startswith("late: ")) == (3, True)
    (shop / "alerts" / "late" / "rules.json").write_text("{")
    assert [alert.name for alert in look(None).alerts] == [SHOP]
    (shop / "alerts" / "late" / "rules.json").write_text('{"rules": []}')
    assert (look(None).exit_code, look(None).trouble) == (0, ())


def test_an_address_is_never_shown_whole(hook, shop, capsys, caplog):
    caplog.set_level(1)
    dead = f"jsons://me:{CANARY}@127.0.0.1:9/{CANARY}?x={CANARY}"
    bad = [f"slack://{CANARY}", f"{CANARY}", f"mailto://{CANARY}", f"nope://{CANARY}", f"env:{CANARY}!", f"{CANARY}:x"]

    kept = nbdeploy.alert(
        SHOP, "error_rate > 2%", to=[hook.url, dead, f"tgram://123456789:{'a' * 20}{CANARY.replace('-', '_')}/77"]
    )
    counted(10, requests=10, errors=10)
    hook.status = 404
    found = look()
    said = [
        repr(kept),
        kept._repr_html_(),
        json.dumps(kept.to_dict()),
        repr(found),
        found._repr_html_(),
        json.dumps(found.to_dict()),
    ]
    for each in bad:
        assert __main__.main(["alert", SHOP, "p99 > 3", "--to", each]) == 1
        if "://" in each:
            assert __main__.main(["alert", SHOP, "p99 > 3", each]) == 2  # --to is missing
    assert __main__.main(["alert", SHOP]) == 0
    assert __main__.main(["alerts", SHOP]) == 1
    captured = capsys.readouterr()
    said += [captured.out, captured.err, caplog.text, str(nbdeploy.status()), repr(nbdeploy.history(SHOP))]

    assert not [text for text in said if CANARY in text or CANARY.replace("-", "_") in text]
    assert "json://127.0.0.1" in said[0]
    assert "tgram://…" in said[0]
    holders = [path for path in shop.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert holders == [shop / "alerts" / SHOP / "rules.json"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert logging.getLogger("urllib3").propagate
