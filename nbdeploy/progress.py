"""Progress of long work: tqdm's own bar, in the notebook's form or the terminal's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Step(Protocol):
    """Called with the name of the step that begins, or without one to say that time passes, maybe at what."""

    def __call__(self, name: str = "", /, *, doing: str = "") -> None: ...


@contextmanager
def steps(title: str, names: Sequence[str], shown: bool = True) -> Iterator[Step]:
    """A bar over named steps that goes away when the work is done."""
    if not shown or not visible():
        yield _unseen
        return
    from tqdm.auto import tqdm

    bar = tqdm(total=len(names), desc=title, leave=False, bar_format="{desc} {bar:20} {elapsed}", delay=0.3)
    begun: list[str] = []

    def step(name: str = "", /, *, doing: str = "") -> None:
        if name:
            bar.update(1 if begun else 0)
            begun.append(name)
        if name or doing:
            now = f"{title}: {begun[-1]}" + (f" ({doing})" if doing else "")
            bar.set_description_str(now, refresh=False)
        bar.refresh()

    try:
        yield step
        bar.update(len(names) - bar.n)  # a bar that is closed short of its end turns red
    finally:
        bar.close()


def _unseen(_name: str = "", /, *, doing: str = "") -> None:
    """Stand in for a bar that nobody would see."""


def visible() -> bool:
    """Whether somebody would see a bar."""
    # A log file or a pipe gets no bar; a notebook's stderr is no terminal but shows one.
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel") or sys.stderr.isatty()
