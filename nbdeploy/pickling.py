"""Pickles of live objects: what they take along from the notebook, which modules they name, why one fails."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO, Any

import cloudpickle

from nbdeploy import carried_code

MAX_DEPTH = 12
# A script that multiprocessing has started anew has the second name, which no other process can import.
_MAINS = ("__main__", "__mp_main__")
_MADE_ANEW = (types.GetSetDescriptorType, types.MemberDescriptorType)


@dataclass
class Needed:
    """What pickles refer to: modules by name, and what cells defined.

    Attributes
    ----------
    modules : set of str
        Of every class, function and module that a pickle names; ``__main__`` is not among them.
    definitions : list
        The classes and functions of ``__main__`` that a pickle carries by value.
    """

    modules: set[str] = field(default_factory=set)
    definitions: list[Any] = field(default_factory=list)

    def note(self, thing: Any) -> None:
        if isinstance(thing, types.ModuleType):
            self.modules.add(thing.__name__)
        elif isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)):
            module = getattr(thing, "__module__", None)
            if module in _MAINS:
                if "." not in thing.__qualname__ or "<locals>" in thing.__qualname__:  # methods are their class's
                    self.definitions.append(thing)
                if isinstance(thing, types.FunctionType):  # what it imports only when it runs
                    self.modules |= carried_code.imported_by(thing.__code__)
            elif isinstance(module, str):
                self.modules.add(module)


_needed: ContextVar[Needed | None] = ContextVar("needed", default=None)


@contextmanager
def recorded() -> Iterator[Needed]:
    """What every `dump` inside of the block refers to."""
    needed = Needed()
    token = _needed.set(needed)
    try:
        yield needed
    finally:
        _needed.reset(token)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's, which also records what it names."""

    def reducer_override(self, obj: Any) -> Any:
        needed = _needed.get()
        if needed is not None:
            needed.note(obj)
        return super().reducer_override(obj)


def dump(thing: Any, file: IO[bytes]) -> None:
    """Pickle `thing` into an open file: classes and functions of the notebook by value, all others by name."""
    with _by_value():
        Pickler(_Told(file), protocol=5).dump(thing)


@contextmanager
def _by_value() -> Iterator[None]:
    again = sys.modules.get(_MAINS[1])
    if again is None or again.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(again)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(again)


class _Told:
    """A file that says when it is written to: a large model takes a while."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: Any) -> int:
        tell()
        return self.file.write(data)


_listener: ContextVar[Callable[[], None]] = ContextVar("listener")


def tell() -> None:
    """Say that long work goes on, to whoever listens."""
    if (listener := _listener.get(None)) is not None:
        listener()


@contextmanager
def watched(listener: Callable[[], None]) -> Iterator[None]:
    """Throughout the block `listener` is called whenever a block of a file was written, read or hashed."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def load(file: IO[bytes]) -> Any:
    """What `dump` wrote."""
    return cloudpickle.load(file)


def culprit(thing: Any, name: str = "model") -> str:
    """Which part of `thing` cannot be pickled, as a path of attributes: ``model.steps[1][1].connection``."""
    return _culprit(thing, name, MAX_DEPTH, set())


# -- helpers ------------------------------------------------------------------------------------------------


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def _fails(thing: Any) -> bool:
    try:
        cloudpickle.Pickler(_Nowhere(), protocol=5).dump(thing)
    except Exception:  # noqa: BLE001  whatever it is: it cannot be pickled
        return True
    return False


def _culprit(thing: Any, name: str, depth: int, seen: set[int]) -> str:
    if depth and id(thing) not in seen:
        seen.add(id(thing))
        for where, part in _parts(thing):
            if _fails(part):
                return _culprit(part, name + where, depth - 1, seen)
    return f"{name} (a {type(thing).__name__})"


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, types.FunctionType):
        yield from _captured(thing)
    elif isinstance(thing, dict):
        yield from ((f"[{str(key)[:40]!r}]", value) for key, value in thing.items())
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif isinstance(thing, types.MethodType):
        yield ".__self__", thing.__self__
    elif isinstance(thing, functools.partial):
        yield from ((".func", thing.func), (".args", thing.args), (".keywords", thing.keywords))
    elif isinstance(thing, (staticmethod, classmethod)):
        yield "", thing.__func__
    elif isinstance(thing, type):
        # Descriptors such as its __dict__ are made anew with the class.
        held = ((name, part) for name, part in vars(thing).items() if not isinstance(part, _MADE_ANEW))
        yield from ((f".{name}", part) for name, part in held)
    elif not isinstance(thing, types.ModuleType):
        yield from _state(thing)
        yield " → its class", type(thing)


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for cell, variable in zip(function.__closure__ or (), code.co_freevars, strict=True):
        with suppress(ValueError):  # an empty cell
            yield f" → {variable}", cell.cell_contents
    yield from ((f" → {word}", function.__globals__[word]) for word in code.co_names if word in function.__globals__)


def _state(thing: Any) -> Iterator[tuple[str, Any]]:
    # As pickle itself sees it: a class may leave out of its state what cannot be stored.
    try:
        state = thing.__getstate__() if hasattr(thing, "__getstate__") else vars(thing)
    except Exception:  # noqa: BLE001  anybody's method
        state = getattr(thing, "__dict__", {})
    for held in state if isinstance(state, tuple) else (state,):
        if isinstance(held, dict):
            yield from ((f".{key}", value) for key, value in held.items())
