"""The panel's section on traffic without a browser: it is told what the browser tells, and read as text."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

import nbdeploy
from conftest import _use_home as use_home
from nbdeploy import panel_parts, releases, routing, validation
from nbdeploy.errors import GateError
from nbdeploy.panel_release import Release
from nbdeploy.panel_static import Facts, Snapshot
from nbdeploy.release_plan import GuardRules, Rollout, Run
from nbdeploy.routing import Traffic
from nbdeploy.version_numbers import VersionNumbers

X = pd.DataFrame({"a": [1.0, 2.0], "carrier": ["UA", "AA"]})
EVIL = "</td></script><img src=x onerror=document.title='x'><script>document.title='x'</script>"
ROLLOUT = Rollout("v2", "v1", (1.0, 10.0, 100.0), 10.0, Run(1000.0), at=1).to_dict()
GUARD = {
    "rules": GuardRules(error_rate=0.02).to_dict(), "told": str(GuardRules(error_rate=0.02)), "watch": {}, "refused": None,
    "tripped": {"time": "2026-01-31T08:15:00+00:00", "version": "v2", "why": "12 of 100 failed"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The processes that load `Says` find this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
        yield


class Says:
    """Always says the same."""

    def __init__(self, word):
        self.word = word

    def predict(self, X):
        return [self.word] * len(X)


def wait_for(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def html(view):
    return " ".join(w.value for w in panel_parts._with_children(view.box) if type(w).__name__ == "HTML")


def shown(view):
    text = []
    parser = HTMLParser()
    parser.handle_data = text.append
    parser.feed(html(view))
    return " ".join(text)


def tags(markup):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, _attrs: found.append(tag)
    parser.feed(markup)
    return found


def facts(view):
    return view.traffic.control.facts


def tell(view, **message):
    """What the browser sends, in which `live` is what it shows."""
    view.traffic.told(view.traffic.control, {"live": facts(view)["live"], **message}, [])


def settled(view):
    wait_for(lambda: not facts(view)["busy"])
    return shown(view)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Homes with three versions, saved once."""
    base = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, base / "home", base / "bentoml")
        for word in ("one", "two", "three"):
            nbdeploy.save(Says(word), "says", X, progress=False)
    return base


@pytest.fixture
def three(stored, home, monkeypatch):
    """Three versions, the first of them live, none of them running, each with a passed gate."""
    monkeypatch.setattr(releases, "must_be_promotable", lambda *_args: [])
    for part in ("home/versions", "bentoml/models"):
        shutil.copytree(stored / part, home.parent / part)
    for made in (home, home.parent / "bentoml"):
        made.chmod(0o700)
    routing.go_live("says", "v1", "first release")


# On a real deployment


def test_a_canary_a_promotion_and_a_rollback_on_a_running_deployment(monkeypatch):
    monkeypatch.setattr(releases, "must_be_promotable", lambda *_args: [])
    nbdeploy.deploy(Says("one"), "says", X, progress=False)
    nbdeploy.save(Says("two"), "says", X, progress=False)
    view = nbdeploy.panel("says")
    assert facts(view)["chosen"] == "v2"
    assert facts(view)["others"][0]["label"] == "Promote v2 (v1 stays loaded)"

    tell(view, do="traffic", version="v2", share=50)
    wait_for(lambda: facts(view)["busy"])
    assert "Changing the split" in shown(view)
    settled(view)
    assert dict(nbdeploy.traffic("says").weights) == {"v1": 50, "v2": 50}
    answers = {nbdeploy.predict("says", X)["prediction"].iloc[0] for _ in range(40)}
    assert answers == {"one", "two"}

    tell(view, do="promote", version="v2", why="it is better")
    settled(view)
    assert set(nbdeploy.predict("says", X)["prediction"]) == {"two"}
    assert "says v2 ● live" in shown(view)
    assert "it is better" in shown(view)
    assert facts(view)["back"]["label"] == "Roll back to v1"

    tell(view, do="rollback", version="v1")
    settled(view)
    assert set(nbdeploy.predict("says", X)["prediction"]) == {"one"}
    assert nbdeploy.history("says")["action"].tolist() == ["rollback", "promote", "traffic", "served"]


# What can be done


@pytest.mark.usefixtures("three")
def test_each_button_says_what_it_will_do_and_to_what():
    nbdeploy.promote("says", "v2", progress=False)
    nbdeploy.traffic("says", v2=80, v3=20, progress=False)
    found = facts(nbdeploy.panel("says"))

    assert [one["version"] for one in found["others"]] == ["v3", "v1"]
    third, first = found["others"]
    assert (third["share"], third["rest"], third["most"]) == (20, 100, 99)
    assert third["says"] == "All requests go to v3, and none fails. v2 stays saved: a rollback returns to it."
    assert first["beside"] == "v3 20 %"
    assert first["most"] == 79
    assert found["back"]["label"] == "Roll back to v1"
    assert found["back"]["says"] == (
        "All requests go back to v1, and none fails. v2 stays saved. v3 gets none any more."
    )


@pytest.mark.usefixtures("three")
def test_what_is_impossible_says_why():
    found = facts(nbdeploy.panel("says"))

    assert found["back"]["refused"] == "Nothing was live before v1."


@pytest.mark.usefixtures("three")
def test_a_version_without_a_gate_is_refused_in_the_words_of_the_gate(monkeypatch):
    def refuse(name, version, _force=""):
        msg = f"{name}:{version} has passed no gate"
        raise GateError(msg, f"Run %deploy validate {name} {version}.")

    monkeypatch.setattr(releases, "must_be_promotable", refuse)
    view = nbdeploy.panel("says")
    assert facts(view)["others"][0]["refused"] == "says:v3 has passed no gate. Run %deploy validate says v3."

    tell(view, do="promote", version="v3")
    assert "says:v3 has passed no gate" in settled(view)
    assert nbdeploy.traffic("says").live == "v1"


def test_with_one_version_there_is_nobody_to_promote():
    nbdeploy.save(Says("one"), "says", X, progress=False)
    routing.go_live("says", "v1", "first release")

    found = facts(nbdeploy.panel("says"))

    assert (found["others"], found["chosen"]) == ([], "")


def test_before_the_first_release_there_is_nothing_to_split():
    nbdeploy.save(Says("one"), "says", X, progress=False)
    view = nbdeploy.panel("says")

    assert facts(view) == {}
    assert "Nothing is live yet" in shown(view)


@pytest.mark.usefixtures("three")
def test_the_slider_leaves_other_candidates_their_share_and_ends_a_shadow():
    nbdeploy.traffic("says", v1=90, v2=10, shadow=["v3"], progress=False)
    view = nbdeploy.panel("says")

    tell(view, do="traffic", version="v3", share=40)
    settled(view)
    assert dict(nbdeploy.traffic("says").weights) == {"v1": 50, "v2": 10, "v3": 40}
    assert nbdeploy.traffic("says").shadow == ()
    tell(view, do="traffic", version="v2", share=0)
    settled(view)
    assert dict(nbdeploy.traffic("says").weights) == {"v1": 60, "v3": 40}


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"do": "traffic", "version": "v2", "share": 100}, "says:v1 is live and would get no request"),
        ({"do": "traffic", "version": "v2", "share": "many"}, "'many' is no share"),
        ({"do": "traffic", "version": EVIL, "share": 5}, "is neither a version nor an option"),
        ({"do": "promote", "version": "v9"}, "'says' has no version 'v9'"),
        ({"do": "promote", "version": EVIL}, "has no version"),
        ({"do": "rollback", "version": "v2"}, "the traffic of 'says' has been changed: v1 is live now"),
        ({"do": "promote", "version": "v2", "live": "v3"}, "the traffic of 'says' has been changed: v1 is live now"),
    ],
)
def test_what_is_refused_is_one_line_and_changes_nothing(message, says):
    view = nbdeploy.panel("says")
    before = nbdeploy.traffic("says")

    tell(view, **message)

    wait_for(lambda: says in shown(view))
    assert not {"img", "script"} & {*tags(html(view))}
    assert says in repr(view)
    assert nbdeploy.traffic("says") == before


@pytest.mark.usefixtures("three")
def test_a_message_that_means_nothing_does_nothing():
    view = nbdeploy.panel("says")

    for message in ({}, {"do": "delete"}, {"do": ["promote"]}, {"do": "rollout", "order": "start"}):
        tell(view, **message)

    assert not facts(view)["busy"]


@pytest.mark.usefixtures("three")
def test_one_change_at_a_time_and_it_says_what_it_does(monkeypatch):
    go, promoted = threading.Event(), []

    def promote(_name, version, **_options):
        promoted.append(version)
        go.wait(20)

    monkeypatch.setattr(releases, "promote", promote)
    view = nbdeploy.panel("says")

    tell(view, do="promote", version="v2")
    tell(view, do="promote", version="v2")
    tell(view, do="traffic", version="v2", share=5)
    wait_for(lambda: "Promoting v2" in shown(view))
    assert facts(view)["busy"]
    go.set()
    settled(view)

    assert promoted == ["v2"]
    assert "Promoting" not in shown(view)


@pytest.mark.usefixtures("three")
def test_a_candidate_is_validated_aside_and_its_result_is_shown(monkeypatch):
    go = threading.Event()

    def validate(name, version, *, wait, progress, on_progress):
        assert (name, version, wait, progress) == ("says", "v2", False, False)

        class Run:
            def result(self):
                on_progress(3, 9)
                go.wait(20)
                return "passed all 9"

        return Run()

    monkeypatch.setattr(validation, "validate", validate)
    view = nbdeploy.panel("says")
    tell(view, do="validate", version="v2")
    wait_for(lambda: "3 of 9 cells" in shown(view))
    assert "Validating v2" in shown(view)
    assert facts(view)["validating"]
    assert not facts(view)["busy"]  # a rollback need not wait for it
    go.set()
    wait_for(lambda: view._output.outputs)

    assert "passed all 9" in view._output.outputs[0]["data"]["text/plain"]


# What it shows


@pytest.mark.usefixtures("three")
def test_it_shows_who_answers_whom_and_what_happened():
    nbdeploy.promote("says", "v2", why="better", progress=False)
    nbdeploy.traffic("says", v2=90, v3=10, sticky="carrier", pin=False, progress=False)
    view = nbdeploy.panel("says")
    said = " ".join(shown(view).split())

    assert "v2 live 90 % v3 candidate 10 % v1 previous" in said
    assert "sticky by carrier" in said
    assert "requests may not name a version" in said
    assert "promote v1 → v2 better" in said
    assert "rollback     goes to v1" in repr(view)
    assert "traffic      v2 live 90 %, v3 candidate 10 %, v1 previous" in repr(view)
    assert "better" in view.snapshot().markup()


def test_numbers_of_each_version_stand_beside_it():
    slow = VersionNumbers("v2", 2000, 30, 0, 2000, (0.1, 0.2), (1900, 100, 0))
    release = Release(Traffic("says", live="v1", weights={"v1": 90.0, "v2": 10.0}), numbers={"v2": slow})
    said = release.table()

    assert "<td>2,000</td><td>30 (1.5%)</td><td>180 ms</td>" in said


def test_a_long_list_of_versions_stays_short():
    saved = tuple(f"v{number}" for number in range(400, 0, -1))
    held = Traffic("says", live="v2", weights={"v2": 95.0, "v1": 5.0}, before=("v1",), shadow=("v3",))
    release = Release(held, saved)

    offered = [one["version"] for one in release.control()["others"]]
    assert offered == ["v400", "v399", "v398", "v397", "v396", "v395", "v3", "v1"]
    assert len(release.versions()) == 6
    assert len(json.dumps(release.control())) < 4_000


def test_a_rollout_says_how_far_it_is_and_can_be_paused_resumed_and_aborted():
    plan = Rollout("v2", "v1", (1.0, 10.0, 100.0), 10.0, Run(time.time() - 190, said="it waits\nfor requests"), at=1)
    held = Traffic("says", live="v1", weights={"v1": 90.0, "v2": 10.0}, rollout=plan.to_dict())
    paused = replace(held, rollout=plan.stopped(time.time()).to_dict())

    assert Release(held).control()["rollout"] == {
        "says": "Rollout of v2: 1 %, 10 % (now), 100 %; 10 min each; it waits for requests; 3 min of this step are over",
        "orders": ["pause", "abort"],
    }
    assert Release(paused).control()["rollout"]["orders"] == ["resume", "abort"]
    assert Release(held).control(orders=False)["rollout"]["orders"] == []
    assert ("rollout", "v2: 1 %, 10 % (now), 100 %; 10 min each; it waits for requests") in Release(held).rows()


@pytest.mark.usefixtures("three")
def test_an_order_for_a_rollout_reaches_it(monkeypatch):
    orders = []
    monkeypatch.setattr(nbdeploy, "rollout", lambda name, **order: orders.append((name, order)), raising=False)
    routing.change("says", lambda old: replace(old, rollout=ROLLOUT))
    view = nbdeploy.panel("says")

    tell(view, do="rollout", order="pause")
    settled(view)

    assert orders == [("says", {"pause": True})]


def test_a_guard_says_what_holds_and_what_it_did():
    held = Traffic("says", live="v1", weights={"v1": 100.0}, guard=GUARD)

    assert Release(held).control()["guard"] == (
        "Guard: errors at most 2 %; a clean run of 30 min is noted; v2 was taken out of traffic: 12 of 100 failed"
    )
    assert "12 of 100 failed" in Snapshot(Facts("says"), releases=Release(held).rows()).text()


def test_nothing_of_a_release_becomes_markup():
    def release(text):
        step = {"time": text, "who": text, "action": text, "from": text, "to": text, "why": text, "evidence": text}
        held = Traffic(
            "says", live="v1", weights={"v1": 90.0, text: 10.0}, shadow=(f"{text}s",), sticky=text, before=(f"{text}b",),
            rollout=Rollout(text, "v1", (1.0, 10.0), 10.0, Run(0.0, said=text)).to_dict(),
            guard={**GUARD, "told": text, "tripped": {"version": text, "why": text}},
        )  # fmt: skip
        return Release(held, (text, f"{text}b"), (step, {**step, "why": ""}))

    def drawn(text):
        made = release(text)
        return [
            tags(part) for part in (made.table(), made.history(), Snapshot(Facts("x"), releases=made.rows()).markup())
        ]

    assert drawn(EVIL) == drawn("harmless")
    assert "<" not in panel_parts._source("panel_traffic.js").replace("=>", "")
    assert "innerHTML" not in panel_parts._source("panel_traffic.js")
