"""The pieces of the panel: its widgets, the view in a cell, the one thread that keeps all views current."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from IPython import get_ipython
from IPython.display import display

from nbdeploy.panel_static import Snapshot, escaped, plain

REFRESH = 3.0


def _source(name: str) -> str:
    # Papermill saves it in the notebook with every widget: no indentation, no comments.
    lines = map(str.strip, (Path(__file__).parent / "static" / name).read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


class Link(anywidget.AnyWidget):
    """The address of a service, as the browser can reach it. It brings the panel's style along."""

    _esm = _source("panel_link.js")
    _css = _source("panel.css")
    url = traitlets.Unicode().tag(sync=True)


class Form(anywidget.AnyWidget):
    """A grid of fields. `values` are the texts in them; Enter sends ``{"submit": True}``."""

    _esm = _source("panel_form.js")
    fields = traitlets.List(traitlets.Dict()).tag(sync=True)
    values = traitlets.List(traitlets.Unicode()).tag(sync=True)


class TrafficControl(anywidget.AnyWidget):
    """The slider and the buttons of the traffic. `facts` are those of `nbdeploy.panel_release.Release.control`."""

    _esm = _source("panel_traffic.js")
    facts = traitlets.Dict().tag(sync=True)


class _Root(widgets.VBox):  # type: ignore[misc]
    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        made = super()._repr_mimebundle_(**kwargs)
        return {**made, "text/plain": ""} if isinstance(made, dict) else made  # the static output says it in words


class Kit:
    """Makes the widgets of one view, with one layout and one style for all: a notebook saves each of those too."""

    def __init__(self) -> None:
        self._layout = widgets.Layout()
        self._button = widgets.ButtonStyle()
        self._html: dict[str, Any] = {}  # ipywidgets does not export the style of its HTML; the first one's is taken

    def html(self, name: str = "") -> Any:
        made = widgets.HTML(layout=self._layout, **self._html)
        self._html = {"style": made.style}
        return _named(made, name)

    def button(self, description: str, tooltip: str, *, primary: bool = False) -> Any:
        kind = "primary" if primary else ""
        return widgets.Button(
            description=description, tooltip=tooltip, button_style=kind, layout=self._layout, style=self._button
        )

    def box(self, name: str, *children: Any, vertical: bool = False) -> Any:
        return _named((widgets.VBox if vertical else widgets.HBox)(children, layout=self._layout), name)

    def choice(self) -> Any:
        return widgets.Dropdown(description="Show", layout=self._layout)

    def output(self) -> Any:
        return widgets.Output(layout=self._layout)

    def link(self) -> Any:
        return _named(Link(layout=self._layout), "link")

    def form(self) -> Any:
        return _named(Form(layout=self._layout), "form")

    def traffic(self) -> Any:
        return _named(TrafficControl(layout=self._layout), "control")


def put(widget: Any, value: str) -> None:
    """Set the text of a widget where it changed, so that nothing is sent for nothing."""
    if widget.value != value:
        widget.value = value


def displayed(value: object) -> tuple[dict[str, Any], ...]:
    """What `value` displays, caught in this thread alone, as outputs of an output widget."""
    caught: list[dict[str, Any]] = []
    publisher: Any = getattr(get_ipython(), "display_pub", None)
    if hasattr(publisher, "register_hook"):

        def catch(message: dict[str, Any]) -> None:
            caught.append(message["content"])

        publisher.register_hook(catch)
        try:
            display(value)
        finally:
            publisher.unregister_hook(catch)
    else:
        caught.append({"data": {"text/plain": plain(repr(value))}, "metadata": {}})
    return tuple({"output_type": "display_data", "data": c["data"], "metadata": c["metadata"]} for c in caught)


@dataclass(eq=False)
class Work:
    """Something that a button started, and how far it is."""

    title: str
    show: Callable[[], None]
    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    steps: tuple[int, int] = (0, 0)

    def on_progress(self, done: int, total: int) -> None:
        self.steps = (done, total)
        self.show()

    def tick(self) -> None:
        """Show the seconds that pass, until it is done."""
        while not self.done.wait(1):
            self.show()

    def markup(self) -> str:
        done, total = self.steps
        bar = f'<progress value="{done}" max="{total}"></progress><span>{done} of {total} cells</span>' if total else ""
        seconds = f"{time.monotonic() - self.began:.0f} s"
        return f'<div class="nbdeploy-work" role="status"><span>{escaped(self.title)} … {seconds}</span>{bar}</div>'


class View:
    """What displays itself as a static table and, in a live kernel, as the widgets of its `box` beside it."""

    box: Any = None

    def __init__(self) -> None:
        self.screens: list[Screen] = []

    def build(self) -> None:
        """Make the box."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        raise NotImplementedError

    def refresh(self) -> None:
        """Look at the disk and show what is there."""
        raise NotImplementedError

    def update_screens(self) -> None:
        for screen in list(self.screens):
            screen.update()

    def close(self) -> None:
        """Let go of the live view. What it started goes on."""
        for screen in list(self.screens):
            screen.close()
        former, self.box = self.box, None
        if former is not None:
            for widget in _with_children(former):
                for each in (widget, widget.layout, getattr(widget, "style", widget)):
                    each.close()

    def __repr__(self) -> str:
        return self.snapshot().text()

    def _ipython_display_(self) -> None:
        if self.box is None:  # it was closed when its former cell was run again
            self.build()
            self.refresh()
        screen = Screen(self)
        self.screens.append(screen)
        screen.open()


class Screen:
    """A view in a cell, until the cell is run again."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._last = view.snapshot()
        self._handle: Any = None
        self._root: Any = None
        self._browsers: int | None = None  # that show it; None before the first one does

    def open(self) -> None:
        self._handle = display(_bundle(self._last), raw=True, display_id=True)
        if getattr(get_ipython(), "kernel", None) is not None:
            self._root = _named(_Root([self._view.box]), "panel")
            display(self._root)
            watch.add(self)

    def seen(self, more: int) -> None:
        """Note that a browser shows it, or shows it no longer."""
        self._browsers = (self._browsers or 0) + more

    def update(self) -> None:
        """Bring the static table up to date."""
        now = self._view.snapshot()
        with self._lock:
            if self._handle is not None and now != self._last:
                self._last = now
                self._handle.update(_bundle(now), raw=True)

    def refresh(self) -> None:
        if self._browsers != 0:  # nobody looks at a cell that was deleted
            self._view.refresh()

    def close(self) -> None:
        with self._lock:
            self._handle = None
        watch.discard(self)
        if self in self._view.screens:
            self._view.screens.remove(self)
        if self._root is not None:
            self._root.close()
        if not self._view.screens:
            self._view.close()


class Watch:
    """One thread for all screens of this process. It ends when there are none, and keeps no process alive."""

    def __init__(self, pause: float = REFRESH) -> None:
        self._pause = pause
        self._lock = threading.Lock()
        self._open: dict[Screen, tuple[str, str]] = {}
        self.thread: threading.Thread | None = None

    def add(self, screen: Screen) -> None:
        """Keep `screen` current, in place of what an earlier run of its cell showed."""
        cell, run = _cell()
        with self._lock:
            former = [other for other, (its, ran) in self._open.items() if cell and its == cell and ran != run]
            self._open[screen] = (cell, run)
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="nbdeploy-panel-watch", daemon=True)
                self.thread.start()
        for other in former:
            other.close()

    def discard(self, screen: Screen) -> None:
        with self._lock:
            self._open.pop(screen, None)

    def _run(self) -> None:
        pause = self._pause
        while True:
            time.sleep(pause)
            with self._lock:
                screens = list(self._open)
                if not screens:
                    self.thread = None
                    return
            clock = time.monotonic()
            for screen in screens:
                with suppress(Exception):  # the next turn may do better; without this thread all would stand still
                    screen.refresh()
            # However long a look takes, looking is at most a twentieth of the time.
            pause = max(self._pause, 20 * (time.monotonic() - clock))


watch = Watch()


# -- helpers ------------------------------------------------------------------------------------------------


def _bundle(snapshot: Snapshot) -> dict[str, str]:
    return {"text/html": snapshot.markup(), "text/plain": snapshot.text()}


def _named(widget: Any, name: str) -> Any:
    return widget.add_class(f"nbdeploy-{name}") if name else widget


def _with_children(widget: Any) -> list[Any]:
    return [widget, *(each for child in getattr(widget, "children", ()) for each in _with_children(child))]


def _cell() -> tuple[str, str]:
    """Which cell runs, and which run of it this is; empty where the front end does not say."""
    shell: Any = get_ipython()
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return str(request.get("metadata", {}).get("cellId", "")), str(request.get("header", {}).get("msg_id", ""))
