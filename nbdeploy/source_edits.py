"""Whether a source file still says what the kernel imported from it."""

from __future__ import annotations

import ast
import dis
import functools
import importlib.machinery
import importlib.util
import marshal
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

SCALARS = (bool, int, float, complex, str, bytes, tuple, frozenset)


def edited_since_import(module: ModuleType | None, path: Path, source: bytes) -> str:
    """What the file says otherwise than the live `module` does, in words, or ``''``.

    Compared are the code of functions and methods, their defaults, and plain constants of the module and its classes.
    A comment, a docstring and a moved line are no difference. Other changes at the top of a file are seen only when
    the import left its ``.pyc`` behind.
    """
    loader = getattr(module, "__loader__", None)
    # Another loader may have compiled something else on purpose: a test runner's assertions, a type checker's hooks.
    if module is None or type(loader) is not importlib.machinery.SourceFileLoader:
        return ""
    try:
        now = compile(source, str(path), "exec", dont_inherit=True)
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:
        return f"it is not valid Python now ({error})"
    if what := _functions_differ(module, path, now):
        return what
    if path.stat().st_ctime < _started():
        return ""  # as it was before this process was; its constants may have been changed in the kernel
    return _scope_differs(tree.body, vars(module), "", _changed_later(tree)) or _compiled_differs(path, now)


def _functions_differ(module: ModuleType, path: Path, now: CodeType) -> str:
    files = {str(path), getattr(module, "__file__", ""), now.co_filename}
    said: dict[str, list[CodeType]] = {}
    for code in _codes(now):
        said.setdefault(_name(code), []).append(code)
    for function in _functions(vars(module).values(), module.__name__, set()):
        live = function.__code__
        # Generated code and what a decorator of another file put around a function are not of this file.
        if live.co_filename not in files or function.__globals__ is not vars(module):
            continue
        candidates = said.get(_name(live), [])
        if not candidates:
            return f"it no longer defines {function.__qualname__}"
        if not any(_same(live, one, _plain) for one in candidates) and not any(
            _same(live, one, _meaning) for one in candidates
        ):
            return f"{function.__qualname__} is another there"
    return ""


def _scope_differs(body: list[ast.stmt], live: Any, prefix: str, changing: set[str]) -> str:
    stored = Counter(
        node.id
        for stmt in body
        for node in _in_scope(stmt)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )
    stored.update(stmt.name for stmt in body if isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    for stmt in body:
        found = ""
        if isinstance(stmt, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            thing = live.get(stmt.name)
            if stored[stmt.name] > 1 or stmt.decorator_list:
                continue
            if isinstance(stmt, ast.ClassDef) and isinstance(thing, type):
                found = _scope_differs(stmt.body, vars(thing), f"{prefix}{stmt.name}.", changing)
            elif not isinstance(stmt, ast.ClassDef) and isinstance(thing, FunctionType):
                defaults = zip(reversed(stmt.args.defaults), reversed(thing.__defaults__ or ()), strict=False)
                if any(_differs(said, value) for said, value in defaults):
                    found = f"the defaults of {prefix}{stmt.name} are others there"
        else:
            name, said = _assigned(stmt)
            plain = said is not None and name in live and stored[name] == 1 and name not in changing
            if said is not None and plain and _differs(said, live[name]):
                found = f"{prefix}{name} is {ast.unparse(said)[:40]} there and {live[name]!r:.40} in the kernel"
        if found:
            return found
    return ""


def _compiled_differs(path: Path, now: CodeType) -> str:
    # A fresh .pyc may have been written by another process since; a stale one is what this file was before.
    try:
        compiled = Path(importlib.util.cache_from_source(str(path))).read_bytes()
        stat = path.stat()
    except (OSError, NotImplementedError):
        return ""
    magic, flags = compiled[:4], int.from_bytes(compiled[4:8], "little")
    written_for = (int.from_bytes(compiled[8:12], "little"), int.from_bytes(compiled[12:16], "little"))
    if magic != importlib.util.MAGIC_NUMBER or flags or _started() > written_for[0]:
        return ""  # checked by hash, or left there by an earlier kernel and no evidence for this one
    if written_for == (int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF):
        return ""
    try:
        before = marshal.loads(compiled[16:])  # noqa: S302  Python's own cache of the file that is imported anyway
    except (ValueError, EOFError, TypeError):
        return ""
    same = isinstance(before, CodeType) and (_same(before, now, _plain) or _same(before, now, _meaning))
    return "" if same else "what it does when it is imported is another"


@functools.cache
def _started() -> float:
    import psutil

    return float(psutil.Process(os.getpid()).create_time())


# -- live functions -----------------------------------------------------------------------------------------


def _functions(values: Iterable[Any], module: str, seen: set[int]) -> Iterator[FunctionType]:
    for value in list(values):
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield value
        yield from _functions(_within(value, module), module, seen)


def _within(value: Any, module: str) -> Iterable[Any]:
    if isinstance(value, type):
        return vars(value).values() if value.__module__ == module else ()
    if isinstance(value, FunctionType):
        return [getattr(value, "__wrapped__", None)]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, (functools.cached_property, functools.partial, functools.partialmethod)):
        return [value.func]
    return ()


# -- code ---------------------------------------------------------------------------------------------------


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _name(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name))  # Python 3.10 has no co_qualname


def _same(one: CodeType, other: CodeType, view: Any) -> bool:
    return bool(view(one) == view(other))


def _plain(code: CodeType) -> tuple[Any, ...]:
    """All of it but the lines: quick."""
    return (*_shape(code), code.co_code, code.co_names, tuple(_frozen(one, _plain) for one in code.co_consts))


def _meaning(code: CodeType) -> tuple[Any, ...]:
    """What its instructions do: without docstrings, which no instruction of a function uses."""
    steps = dis.get_instructions(code)
    return (*_shape(code), tuple((step.opname, _frozen(step.argval, _meaning)) for step in steps))


def _shape(code: CodeType) -> tuple[Any, ...]:
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    # Only the signature's names: the flag of a docstring (3.14) and names of locals come with the instructions.
    return (code.co_name, counts, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags & 0xFFF)


def _frozen(value: Any, view: Any) -> Any:
    if isinstance(value, CodeType):
        return view(value)
    if isinstance(value, tuple):
        return (tuple, *(_frozen(one, view) for one in value))
    if isinstance(value, frozenset):
        return (frozenset, frozenset(_frozen(one, view) for one in value))
    return (type(value), repr(value))  # 1, 1.0 and True are equal; nan is not


# -- constants ----------------------------------------------------------------------------------------------


def _in_scope(stmt: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement that run in its own scope."""
    waiting: list[ast.AST] = [stmt]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _changed_later(tree: ast.Module) -> set[str]:
    """Names that the file's own functions may give other values: counters, places for what comes later."""
    names = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return names | {node.attr for node in attributes if not isinstance(node.ctx, ast.Load)}


def _assigned(stmt: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(stmt, ast.Assign) and len(stmt.targets) == 1 and isinstance(stmt.targets[0], ast.Name):
        return stmt.targets[0].id, stmt.value
    if isinstance(stmt, ast.AnnAssign) and isinstance(stmt.target, ast.Name):
        return stmt.target.id, stmt.value
    return "", None


def _differs(said: ast.expr, live: Any) -> bool:
    """Whether a plain constant is another in the kernel. None is often a place for what comes later: never."""
    try:
        value = ast.literal_eval(said)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    if type(value) not in SCALARS or type(live) not in SCALARS:
        return False
    return bool(_frozen(value, _plain) != _frozen(live, _plain))
