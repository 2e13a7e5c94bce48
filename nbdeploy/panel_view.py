"""The panel: a deployment's state, its buttons, a form to try it; live in the notebook while its kernel lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbdeploy import deployment, model_store, panel_form, validation, watching, workflow
from nbdeploy.errors import NbdeployError
from nbdeploy.panel_parts import Kit, View, Work, displayed, put
from nbdeploy.panel_release import Release
from nbdeploy.panel_static import NOTHING, Facts, Snapshot, error_box, escaped, facts_list, overview, said, title
from nbdeploy.panel_traffic import CHANGES, VALIDATE, TrafficPart
from nbdeploy.routing import Traffic
from nbdeploy.signature import Signature

LOG_LINES = 12
SHOWN = ("validate", VALIDATE, "drift")  # whose result is shown


def panel(name: str | None = None) -> Panel | Overview:
    """Show a deployment with buttons, or all of them; as the last expression of a cell it displays itself.

    It follows what is on disk every few seconds, whoever changed it. Beside it stands a static table that
    remains when the kernel is gone.

    Parameters
    ----------
    name : str, optional
        Of what was saved; by default a list of all, one of them chosen.

    Raises
    ------
    NotFound
        Nothing is saved under `name`.
    """
    return Overview() if name is None else Panel(name)


class Panel(View):
    """One deployment: what it is, what can be done with it, who answers whom, a form to try it, the end of its log.

    Attributes
    ----------
    name : str
    validate, drift, serve, stop, predict : ipywidgets.Button
        They call the functions of the same names in the background.
    traffic : TrafficPart
        The slider and the buttons of its releases.
    """

    def __init__(self, name: str, outer: View | None = None) -> None:
        super().__init__()
        self.name = name
        self._outer = outer or self  # the view whose static table shows this one
        self._facts = _facts(name)
        self._lock = threading.RLock()
        self._looking = threading.Lock()  # one look at a time: an old one must not overwrite a newer one
        self._busy: dict[str, Work] = {}
        self._error = self._trouble = self._result = ""
        self.build()
        self.refresh()

    def build(self) -> None:
        self._log: tuple[object, str] = (None, "")
        self._signature: Signature | None = None
        self._digest = ""
        kit, name = Kit(), self.name
        self.validate = kit.button(
            "Validate", "Run the gate notebook against the running service, and keep it as evidence.", primary=True
        )
        self.drift = kit.button("Drift", "Compare what it was asked with what it learned from.")
        self.serve = kit.button("Serve", f"Start the service of {name} on this machine.")
        self.stop = kit.button(
            "Stop",
            f"End the service of {name} at once, with every process of it. Its versions and logs stay; Serve starts it again.",
        )
        self.predict = kit.button(
            "Predict", "Ask the running service about this row. It is logged like any request.", primary=True
        )
        self._actions: dict[str, tuple[Any, str, Callable[[Work], object]]] = {
            "validate": (self.validate, "Validating", self._validate),
            "drift": (self.drift, "Measuring drift", lambda _: watching.drift(name)),
            "serve": (self.serve, "Starting", lambda _: workflow.serve(name, progress=False)),
            "stop": (self.stop, "Stopping", lambda _: workflow.stop(name)),
            "predict": (self.predict, "Asking", self._predict),
        }
        for verb, (button, _, _) in self._actions.items():
            button.on_click(lambda _, verb=verb: self._clicked(verb))
        self._title, self._list, self._heading, self._answer = (kit.html() for _ in range(4))
        self._works, self._tail = kit.html("plain"), kit.html("log")
        self._link, self._form, self._output = kit.link(), kit.form(), kit.output()
        self._link.on_msg(self._heard)
        self._form.on_msg(self._heard)
        ask = kit.box("ask", self.predict, self._answer)
        self.traffic = TrafficPart(name, kit, self._start)
        self.box = kit.box(
            "box",
            kit.box("head", self._title, kit.box("actions", self.validate, self.drift, self.serve, self.stop)),
            kit.box("facts", self._link, self._list),
            self._works,
            self.traffic.box,
            self._output,
            kit.box("try", self._heading, self._form, ask, vertical=True),
            self._tail,
            vertical=True,
        )

    # -- what is shown ----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        result = self._error or self.traffic.error or self._trouble or self._result
        return Snapshot(self._stated(), result=result, releases=self.traffic.release.rows())

    def refresh(self) -> None:
        with self._looking:
            try:
                facts, trouble = _facts(self.name), ""
            except NbdeployError as error:  # its versions were deleted, or a state file is damaged
                facts, trouble = Facts(self.name), said(error)
            release = Release(Traffic(self.name))
            with suppress(NbdeployError, OSError):
                release = self.traffic.look()
            log = self._read_log(facts)
            with suppress(NbdeployError, OSError):  # the facts above say what is wrong with it
                self._fill_form(facts)
            with self._lock:
                self._facts, self._trouble, self._log = facts, trouble, log
                self.traffic.release = release
                self._show()

    def _stated(self) -> Facts:
        # While this panel starts or stops it, the disk says nothing of that yet.
        for verb, state in (("serve", "starting"), ("stop", "stopping")):
            if verb in self._busy:
                return replace(self._facts, state=state)
        return self._facts

    def _show(self) -> None:
        with self._lock:
            if self.box is None:  # closed while something was at work
                return
            facts = self._stated()
            put(self._title, title(facts))
            put(self._list, facts_list(facts))
            working = (work.markup() for verb, work in self._busy.items() if verb not in self.traffic.verbs)
            put(self._works, "".join(working) + error_box(self._error or self._trouble))
            log = (
                f'<pre tabindex="0">{escaped(self._log[1])}</pre>'
                if self._log[1]
                else "<p>It has said nothing yet.</p>"
            )
            put(self._tail, f'<div class="nbdeploy-section">Log</div>{log}')
            self.traffic.show(self._busy)
            self._link.url = facts.url if facts.running else ""
            changing = "serve" in self._busy or "stop" in self._busy
            possible = {
                "validate": facts.state == "live",
                "drift": not changing,
                "serve": facts.state == "stopped",
                "stop": facts.running and not changing,
                "predict": facts.state == "live" and self._signature is not None,
            }
            for verb, (button, _, _) in self._actions.items():
                button.disabled = verb in self._busy or not possible[verb]
                (button.add_class if verb in self._busy else button.remove_class)("nbdeploy-busy")
        self._outer.update_screens()

    def _fill_form(self, facts: Facts) -> None:
        saved = model_store.get(self.name, facts.version or None)
        if saved.digest == self._digest:
            return
        signature = saved.signature.shown()
        more = len(signature.columns) - panel_form.MAX_FIELDS
        note = f"<p>{more} more columns are sent as in the example row.</p>" if more > 0 else ""
        with self._lock:
            self._signature, self._digest = signature, saved.digest
            put(self._heading, f'<div class="nbdeploy-section">Try it</div>{note}')
            put(self._answer, "")
            self._form.values = panel_form.texts(signature)
            self._form.fields = panel_form.fields(signature)

    def _read_log(self, facts: Facts) -> tuple[object, str]:
        key: object = facts.state
        if (running := deployment.find(self.name)) is not None:
            with suppress(OSError):
                seen = Path(running.log).stat()
                key = (running.identity, seen.st_size, seen.st_mtime_ns)
        if key == self._log[0]:
            return self._log
        with suppress(NbdeployError, OSError):
            return key, workflow.logs(self.name, LOG_LINES)
        return key, ""

    # -- what is done -----------------------------------------------------------------------------------

    def _heard(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if message.get("submit"):
            self._clicked("predict")
        if (more := message.get("views")) in (1, -1):
            for screen in self._outer.screens:
                screen.seen(more)

    def _clicked(self, verb: str) -> None:
        button, doing, action = self._actions[verb]
        if not button.disabled:  # else it is a second click that was on its way
            self._start(verb, doing, action)

    def _start(self, verb: str, doing: str, action: Callable[[Work], object]) -> None:
        with self._lock:
            if verb in self._busy or (verb in CHANGES and CHANGES & self._busy.keys()):
                return
            self._busy[verb] = work = Work(doing, self._show)
            self._fail(verb, "")
            self._show()
        threading.Thread(
            target=self._run, args=[verb, work, action], name=f"nbdeploy-panel-{verb}", daemon=True
        ).start()
        threading.Thread(target=work.tick, name="nbdeploy-panel-clock", daemon=True).start()

    def _run(self, verb: str, work: Work, action: Callable[[Work], object]) -> None:
        failure, result, shown = "", None, None
        try:
            result = action(work)
            if verb in SHOWN:
                shown = displayed(result)
        except BaseException as error:  # noqa: BLE001 - it becomes a line of text; nobody could catch it here
            failure = said(error)
        release = self.traffic.release
        if verb in self.traffic.verbs:  # what is shown is from before
            with suppress(NbdeployError, OSError):
                release = self.traffic.look()
        work.done.set()
        with self._lock:
            self.traffic.release = release
            del self._busy[verb]
            self._fail(verb, failure)
            if verb == "predict" and not failure:
                put(self._answer, str(result))
            if shown is not None:
                self._output.outputs, self._result = shown, repr(result)
        self.refresh()

    def _fail(self, verb: str, failure: str) -> None:
        """Say what went wrong where the user looks."""
        if verb in self.traffic.verbs:
            self.traffic.error = failure
        elif verb != "predict":
            self._error = failure
        elif failure:
            put(self._answer, error_box(failure))

    def _validate(self, work: Work) -> object:
        run: Any = validation.validate(self.name, wait=False, progress=False, on_progress=work.on_progress)
        return run.result()

    def _predict(self, _: Work) -> str:
        signature = self._signature
        assert signature is not None
        row = panel_form.record(signature, self._form.values)
        clock = time.monotonic()
        answered = workflow.predict(self.name, [row], proba=signature.classes is not None)
        by = f"{answered.iloc[0]['version']} in {(time.monotonic() - clock) * 1000:.0f} ms"
        found, chances = panel_form.answer(signature, answered)
        return (
            f'<div class="nbdeploy-answer" role="status"><b>{escaped(found)}</b><span>{escaped(chances)}</span>'
            f'<span class="nbdeploy-quiet">{escaped(by)}</span></div>'
        )


class Overview(View):
    """All deployments in a table, and the panel of the chosen one.

    Attributes
    ----------
    choice : ipywidgets.Dropdown
    chosen : Panel or None
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._everyone: tuple[Facts, ...] = ()
        self.chosen: Panel | None = None
        self.build()
        self.refresh()

    def build(self) -> None:
        kit = Kit()
        self._table = kit.html("all")
        self.choice = kit.choice()
        self.choice.observe(self._choose, "value")
        self.chosen = None
        self.box = kit.box("overview", self._table, vertical=True)

    def snapshot(self) -> Snapshot:
        inner = self.chosen.snapshot() if self.chosen is not None else Snapshot(None)
        return replace(inner, everyone=self._everyone)

    def refresh(self) -> None:
        everyone = tuple(Facts(str(name), **row.to_dict()) for name, row in workflow.status().iterrows())
        with self._lock:
            if self.box is None:
                return
            self._everyone = everyone
            put(self._table, overview(everyone) if everyone else f"<p>{escaped(NOTHING)}</p>")
            names = tuple(facts.name for facts in everyone)
            if names != self.choice.options:
                kept = self.choice.value
                running = next((facts.name for facts in everyone if facts.running), None)
                self.choice.unobserve(self._choose, "value")  # it would make a panel of the first on the way
                self.choice.options = names
                self.choice.value = kept if kept in names else running or next(iter(names), None)
                self.choice.observe(self._choose, "value")
                if self.chosen is None or self.choice.value != kept:
                    self._choose({"new": self.choice.value})
            chosen = self.chosen
        if chosen is not None:
            chosen.refresh()
        self.update_screens()

    def _choose(self, change: Any) -> None:
        with self._lock:
            former, self.chosen = self.chosen, None
            inner = []
            if change["new"] is not None:
                self.chosen = Panel(change["new"], outer=self)
                inner = [self.choice, self.chosen.box]
            self.box.children = [self._table, *inner]
        if former is not None:
            former.close()
        self.update_screens()


# -- helpers ------------------------------------------------------------------------------------------------


def _facts(name: str) -> Facts:
    return Facts(name, **workflow.status(name).loc[name].to_dict())
