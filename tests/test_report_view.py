"""The view that shows a third party's page: what it lets through, what it saves, what it says."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nbdeploy import report_view

PAGE = "<html><head></head><body><script>document.body.dataset.ran = 'yes'; LIBRARY</script><p>hello</p></body></html>"

HARNESS = """
async ([esm, title, parts]) => {
  const { default: widget } = await import(URL.createObjectURL(new Blob([esm], { type: 'text/javascript' })));
  const listeners = new Set();
  const model = {
    get: (name) => ({ key: 'k' + Math.random(), title })[name],
    on: (_, listener) => listeners.add(listener),
    off: (_, listener) => listeners.delete(listener),
    send: ({ id, what }) => setTimeout(() => {
      const bytes = parts[what] && Uint8Array.from(atob(parts[what]), (c) => c.charCodeAt(0));
      [...listeners].forEach((l) => bytes ? l({ id }, [new DataView(bytes.buffer)]) : l({ id, error: parts.error }, []));
    }),
  };
  await widget.render({ model, el: document.querySelector('main') });
}
"""


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "library.js").write_text("LIBRARY")
    return report_view.Bundle(tmp_path / "library.js")


@pytest.fixture
def chromium_page(lab_browser):
    with lab_browser.new_page() as page:
        yield page


@pytest.fixture
def widget(bundle):
    return report_view.view(report_view.pack(PAGE, bundle), bundle, title="a page")


def test_sealing_names_the_scripts_that_may_run_and_forbids_every_other():
    sealed = report_view.seal(PAGE, title="t", note="n")

    policy = sealed.partition('content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert "script-src 'sha256-" in policy
    assert "'unsafe-eval'" not in policy


def test_the_title_and_the_note_are_text():
    sealed = report_view.seal(PAGE, title="<img src=x onerror=1>", note="</div><script>1</script>")

    assert "<img" not in sealed
    assert "<script>1" not in sealed
    assert "&lt;/div&gt;&lt;script&gt;1" in sealed


def test_a_page_without_a_head_is_refused_rather_than_left_open():
    with pytest.raises(ValueError, match="no <head>"):
        report_view.seal("<p>hello</p>", title="t", note="n")


def test_a_packed_page_leaves_its_bundle_out(bundle):
    packed = gzip.decompress(report_view.pack(PAGE, bundle)).decode()

    assert "LIBRARY" not in packed
    assert packed.replace(report_view.SLOT, bundle.text) == PAGE


def test_a_page_whose_bundle_is_not_found_travels_whole(tmp_path):
    bundle = report_view.Bundle(tmp_path / "gone.js")

    assert gzip.decompress(report_view.pack(PAGE, bundle)).decode() == PAGE


def test_neither_page_nor_bundle_is_in_the_state_that_a_notebook_saves(widget):
    state = json.dumps(widget.get_state(), default=str)

    assert "hello" not in state
    assert len(state) < 8_000


def test_the_view_answers_each_question_with_the_bytes_asked_for(widget, bundle, monkeypatch):
    sent = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=(): sent.append((content, list(buffers))))

    for message in (
        {"id": "1", "what": "page"},
        {"id": "2", "what": "bundle"},
        {"id": "3", "what": "secret"},
        "junk",
        {},
    ):
        widget._handle_custom_msg(message, [])

    assert [content["id"] for content, _ in sent] == ["1", "2", "3"]
    assert gzip.decompress(sent[1][1][0]).decode() == bundle.text
    assert "KeyError" in sent[2][0]["error"]


def test_the_live_output_has_no_words_of_its_own(widget):
    data, _ = widget._repr_mimebundle_()

    assert data["text/plain"] == ""
    assert "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.parametrize(("shell", "outputs"), [(None, 1), (object(), 1), (SimpleNamespace(kernel=object()), 2)])
def test_only_a_live_kernel_shows_more_than_the_static_part(bundle, monkeypatch, shell, outputs):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda shown, **_: displayed.append(shown))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    static = {"text/html": "<p>x</p>", "text/plain": "words"}

    report_view.show(static, b"", bundle, title="t")

    assert len(displayed) == outputs
    assert displayed[0] == static


def test_a_table_shows_markup_as_text_and_links_only_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [("<b>x", "drift", "<i>", "1", "2")]

    inside = report_view.verdict_table("<s>", ("a",) * 5, rows, more="<u>", link=tmp_path / "a b" / "r'.html")
    outside = report_view.verdict_table("s", ("a",) * 5, rows, link=Path("/elsewhere/r.html"))

    for markup in ("<b>x", "<i>", "<s>", "<u>"):
        assert markup not in inside
    assert 'href="a%20b/r%27.html"' in inside
    assert "href" not in outside


def shown(tab, widget, **parts):
    encoded = {name: base64.b64encode(value).decode() if name != "error" else value for name, value in parts.items()}
    tab.set_content("<!doctype html><title>notebook</title><main></main>")
    tab.evaluate(HARNESS, [widget._esm, "a page", encoded])


@pytest.mark.browser
def test_the_page_is_shown_in_an_iframe_that_may_only_run_scripts(chromium_page, widget, bundle):
    page = report_view.pack(report_view.seal(PAGE.replace("LIBRARY", "/* LIBRARY */"), title="t", note="n"), bundle)
    shown(chromium_page, widget, page=page, bundle=bundle.packed())

    frame = chromium_page.frame_locator("iframe")
    frame.get_by_text("hello").wait_for()
    assert frame.locator("body").get_attribute("data-ran") == "yes"
    assert chromium_page.locator("iframe").get_attribute("sandbox") == "allow-scripts"
    assert chromium_page.locator("iframe").get_attribute("title") == "a page"


@pytest.mark.browser
def test_the_iframe_is_as_high_as_its_page_and_heeds_nobody_else(chromium_page, widget, bundle):
    tall = PAGE.replace("LIBRARY", "/* LIBRARY */").replace("<p>", '<p style="height:900px">')
    page = report_view.pack(report_view.seal(tall, title="t", note="n"), bundle)
    shown(chromium_page, widget, page=page, bundle=bundle.packed())

    height = "() => parseInt(document.querySelector('iframe').style.height)"
    chromium_page.wait_for_function(f"({height})() > 900")
    before = chromium_page.evaluate(height)
    chromium_page.evaluate("() => window.postMessage({ nbdeployHeight: 2000 }, '*')")
    chromium_page.wait_for_timeout(100)
    assert chromium_page.evaluate(height) == before < 1100


@pytest.mark.browser
def test_an_error_is_shown_as_text(chromium_page, widget):
    shown(chromium_page, widget, error="<img src=x onerror=\"document.title='gone'\">")

    assert "<img src=x" in chromium_page.locator("main").inner_text()
    assert chromium_page.title() == "notebook"


@pytest.mark.browser
def test_a_script_that_was_not_there_at_sealing_does_not_run(chromium_page, tmp_path):
    sealed = report_view.seal(PAGE.replace("LIBRARY", ""), title="t", note="n")
    late = "<script>document.title='late'</script><img src=x onerror=\"document.title='late'\">"
    path = tmp_path / "page.html"
    path.write_text(sealed.replace("</body>", f"{late}</body>"))

    chromium_page.goto(path.as_uri())
    chromium_page.wait_for_timeout(200)

    assert chromium_page.title() == "t"
    assert chromium_page.locator("body").get_attribute("data-ran") == "yes"
