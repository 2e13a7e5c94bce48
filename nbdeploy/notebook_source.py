"""The cells behind a model: which they are, and whether the notebook still says what was saved."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import linecache
import os
import secrets
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from nbdeploy.redaction import without_secrets

MAX_SOURCE, MAX_ALL = 200_000, 1_000_000  # characters, of one cell and of all cells of a version
MAX_NOTEBOOK = 64 << 20  # bytes: a larger file is not read each time it was saved
MAX_KEPT = 10_000
IDENTITY = ("sha256", "name", "execution", "cell", "session", "notebook")

_SESSION = secrets.token_hex(8)  # execution numbers mean something in one kernel only
_cell_ids: dict[int, str] = {}  # execution number -> cell id
_recorded: dict[tuple[int, str], weakref.ref[Any]] = {}  # (execution, name) -> what was saved
_answers: dict[tuple[Any, ...], list[str]] = {}


def watch_cells(shell: Any) -> None:
    """Note from now on which cell each execution number belongs to. Calling it again changes nothing.

    Without it, cell ids are known only for cells that the saved notebook holds with the very same source.

    Parameters
    ----------
    shell : IPython.core.interactiveshell.InteractiveShell
    """
    _keep(_cell_ids, len(_history(shell)[0]) - 1, _parents_cell(shell))
    if _note_cell not in shell.events.callbacks["pre_run_cell"]:
        shell.events.register("pre_run_cell", _note_cell)


def cells(objects: Iterable[Any]) -> list[dict[str, Any]]:
    """The cells that defined classes and functions of ``__main__``, in the order of their execution, each once.

    Where one source was run several times, its last run counts, or the one before if the object is no longer the
    notebook's. What looks like a password or a token is not in the source. Together the sources are at most 1 MB; of
    what is longer the beginning is kept.

    Parameters
    ----------
    objects : iterable of type or function
        What a pickle took from the notebook.

    Returns
    -------
    list of dict
        JSON: ``name`` (several are joined by commas), ``execution``, ``cell`` (its id, or ``''`` where nobody tells,
        as nbclient and Papermill), ``source``, ``sha256`` (of the original source), ``notebook`` (its path) and
        ``session`` (which kernel). Empty outside IPython.
    """
    shell = _shell()
    if shell is None:
        return []
    found: dict[int, dict[str, Any]] = {}
    for thing in objects:
        name = str(getattr(thing, "__qualname__", ""))
        for execution in _executions(shell, thing, name):
            found.setdefault(execution, {})[name] = thing
    left = MAX_ALL
    records = []
    raw, notebook = _history(shell)[0], notebook_path()
    for execution, things in sorted(found.items()):
        for name, thing in things.items():
            with contextlib.suppress(TypeError):
                _keep(_recorded, (execution, name), weakref.ref(thing))
        source = without_secrets(raw[execution])[: min(MAX_SOURCE, left)]
        left -= len(source)
        records.append(
            {
                "name": ", ".join(things),
                "execution": execution,
                "cell": _cell_of(shell, execution),
                "source": source,
                "sha256": _sha256(raw[execution]),
                "notebook": notebook,
                "session": _SESSION,
            }
        )
    return records


def stale(recorded: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why what `cells` recorded is not what the notebook says now, one reason for each cell, in words.

    In the kernel that recorded them, a cell that was run again counts, even with the same source: its classes are
    other objects now. In another kernel of the same notebook only another source does. A cell that was edited but not run is seen when
    the notebook was saved. Empty when nothing changed, or when nobody can know.
    """
    shell = _shell()
    path = notebook_path()
    stat = _stat(path)
    names = [name for one in recorded for name in _names(one)]
    space = shell.user_ns if shell is not None else {}
    key = (
        tuple(tuple(str(one.get(word)) for word in IDENTITY) for one in recorded),
        len(_history(shell)[0]) if shell is not None else 0,
        (path, stat),
        tuple(id(space.get(name)) for name in names),
    )
    if key not in _answers:
        while len(_answers) >= 16:
            _answers.pop(next(iter(_answers)))
        saved = _saved_cells(stat) if stat else []
        ours = [one for one in recorded if one.get("session") == _SESSION or (path and one.get("notebook") == path)]
        reasons = [_reason(one, shell, saved) for one in ours]
        _answers[key] = [reason for reason in reasons if reason]
    return list(_answers[key])


def packages_changed(recorded: Mapping[str, str]) -> list[str]:
    """Which distributions are here in another version than recorded: ``pandas is 3.0.6 here and 2.3.3 in the version``.

    Those that are not installed here are passed over.
    """
    here = _installed(tuple(sorted(recorded)), tuple(_changed_at(entry) for entry in sys.path))
    return [
        f"{name} is {here[name]} here and {version} in the version"
        for name, version in sorted(recorded.items())
        if name in here and here[name] != version and not _fits(here[name], version)
    ]


def notebook_path() -> str:
    """The notebook that this kernel belongs to, a script's name, or ``''`` where nobody tells (Papermill, IPython)."""
    shell = _shell()
    if shell is not None and (path := shell.user_ns.get("__vsc_ipynb_file__")):  # VS Code
        return str(path)
    if path := os.environ.get("JPY_SESSION_NAME"):  # JupyterLab's server
        folder, name = os.path.split(path)
        return os.path.join(folder, name.removeprefix("RTC:"))  # noqa: PTH118  as the server wrote it
    if shell is not None or "ipykernel" in sys.modules:
        return ""
    return Path(sys.argv[0]).name if sys.argv else ""


# -- the shell ----------------------------------------------------------------------------------------------


def _shell() -> Any:
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get() if callable(get) else None


def _history(shell: Any) -> tuple[list[str], list[str]]:
    """By execution number: the cells as they were typed, and as Python."""
    manager = getattr(shell, "history_manager", None)
    if manager is None:
        return [""], [""]
    return manager.input_hist_raw, manager.input_hist_parsed


def _note_cell(info: Any) -> None:
    shell = _shell()
    if shell is not None and getattr(info, "store_history", True):
        # The number that the cell gets in the history, which `%reset in` puts apart from the execution count.
        _keep(_cell_ids, len(_history(shell)[0]), getattr(info, "cell_id", None) or _parents_cell(shell))


def _parents_cell(shell: Any) -> str:
    """The id of the cell that is being run, as JupyterLab and VS Code send it."""
    try:
        parent = shell.get_parent()
        return str(parent["metadata"].get("cellId") or "")
    except (AttributeError, KeyError, LookupError, TypeError):
        return ""


def _keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    if value:
        kept[key] = value
    else:
        kept.pop(key, None)
    while len(kept) > MAX_KEPT:
        kept.pop(next(iter(kept)))


def _cell_of(shell: Any, execution: int) -> str:
    if execution in _cell_ids:
        return _cell_ids[execution]
    if execution == len(_history(shell)[0]) - 1 and (cell := _parents_cell(shell)):
        return cell
    sha = _sha256(_history(shell)[0][execution])
    stat = _stat(notebook_path())
    same = [cell for cell, _, saved in (_saved_cells(stat) if stat else ()) if cell and saved == sha]
    return same[0] if len(same) == 1 else ""


# -- what a cell defined ------------------------------------------------------------------------------------


def _executions(shell: Any, thing: Any, name: str) -> set[int]:
    """The runs that made `thing`: of a class also those that gave it a method later."""
    parsed = _history(shell)[1]
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", {})
    is_live = shell.user_ns.get(name, thing) is thing
    found = set()
    own = False
    for code in _codes(thing):
        text = "".join(linecache.getlines(code.co_filename)).strip()
        runs = [n for n, one in enumerate(parsed) if n and text and one.strip() == text]
        if code.co_filename.startswith("<ipython-input-") and numbers.get(code.co_filename) in runs:
            runs = [numbers[code.co_filename]]  # the terminal gives every run a file name of its own
        if runs:
            run = runs[-1] if is_live or len(runs) < 2 else runs[-2]
            found.add(run)
            own = own or name in _defined_by(parsed[run]) or not isinstance(thing, type)
    if not own and (runs := [n for n, one in enumerate(parsed) if n and name in _defined_by(one)]):
        found.add(runs[-1] if is_live or len(runs) < 2 else runs[-2])
    return found


def _codes(thing: Any) -> Iterator[CodeType]:
    waiting = [*vars(thing).values()] if isinstance(thing, type) else [thing]
    for one in waiting:  # it grows
        if isinstance(one, FunctionType):
            yield one.__code__
            waiting.append(getattr(one, "__wrapped__", None))
        elif isinstance(one, (staticmethod, classmethod)):
            waiting.append(one.__func__)
        elif isinstance(one, property):
            waiting += [one.fget, one.fset, one.fdel]
        elif isinstance(one, (functools.cached_property, functools.partial, functools.partialmethod)):
            waiting.append(one.func)


@functools.lru_cache(maxsize=2048)
def _defined_by(source: str) -> frozenset[str]:
    """The classes and functions that a cell, as Python, defines at its top; also within ``%%time`` and the like."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    names: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run_cell_magic":
            body = node.args[-1] if node.args else None
            if isinstance(body, ast.Constant) and isinstance(body.value, str) and body.value != source:
                names |= _defined_by(body.value)
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return frozenset(names)


# -- what changed since -------------------------------------------------------------------------------------


def _reason(one: Mapping[str, Any], shell: Any, saved: list[tuple[str, str, str]]) -> str:
    about = f"cell {one.get('execution')}, which defines {one.get('name')},"
    same_session = one.get("session") == _SESSION
    if shell is not None:
        run = _last_run(one, shell, int(one.get("execution") or 0) if same_session else 0)
        if run:
            source, cell = _history(shell)[0][run], _cell_ids.get(run, "")
            if _sha256(source) != one.get("sha256"):
                if cell and one.get("cell") and cell != one.get("cell"):
                    return (
                        f"{one.get('name')}, which cell {one.get('execution')} defined, was defined again by cell {run}"
                    )
                return f"{about} was edited and run again"
            if same_session:
                return f"{about} was run again"
    if _edited_on_disk(one, saved):
        return f"{about} was edited and not run since"
    if shell is not None and same_session:
        for name in _names(one):
            made = _recorded.get((int(one.get("execution") or 0), name))
            now = shell.user_ns.get(name)
            if made is not None and now is not None and now is not made():
                return f"{name}, which cell {one.get('execution')} defined, is another object now"
    return ""


def _last_run(one: Mapping[str, Any], shell: Any, after: int) -> int:
    """The last run after the execution `after` that is of the recorded cell or defines the same, or 0."""
    raw, parsed = _history(shell)
    names = set(_names(one))
    for n in range(len(parsed) - 1, after, -1):
        if _cell_ids.get(n) and _cell_ids[n] == one.get("cell"):
            return n
        if _sha256(raw[n]) == one.get("sha256") or names & _defined_by(parsed[n]):
            return n
    return 0


def _edited_on_disk(one: Mapping[str, Any], saved: list[tuple[str, str, str]]) -> bool:
    known = one.get("sha256")
    if one.get("cell"):
        return any(cell == one["cell"] and sha != known for cell, _, sha in saved)
    if any(sha == known for _, _, sha in saved):
        return False
    names = set(_names(one))
    return sum(not names.isdisjoint(_defined_by(source)) for _, source, _ in saved) == 1


def _names(one: Mapping[str, Any]) -> list[str]:
    return [name for name in str(one.get("name") or "").split(", ") if name]


def _stat(path: str) -> tuple[str, int, int] | None:
    if not path.endswith(".ipynb"):
        return None
    try:
        found = os.stat(path)  # noqa: PTH116  a hot path
    except (OSError, ValueError):
        return None
    return (path, found.st_mtime_ns, found.st_size) if found.st_size <= MAX_NOTEBOOK else None


@functools.lru_cache(maxsize=1)
def _saved_cells(stat: tuple[str, int, int]) -> list[tuple[str, str, str]]:
    """The code cells of the notebook as it was saved: ids, sources and their SHA-256."""
    try:
        notebook = json.loads(Path(stat[0]).read_bytes())
        code = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
        sources = ["".join(cell.get("source") or "") for cell in code]
        ids = [str(cell.get("id") or "") for cell in code]
        return [(one, source, _sha256(source)) for one, source in zip(ids, sources, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # somebody's notebook, perhaps half-written


def _sha256(source: str) -> str:
    # A kernel's history has no newlines at the end.
    return hashlib.sha256(source.rstrip("\n").encode("utf-8", "surrogatepass")).hexdigest()


# -- packages -----------------------------------------------------------------------------------------------


def _fits(here: str, pinned: str) -> bool:
    # 3.0.6 fits 3.*, and 2.0 is 2.0.0.
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(f"=={pinned}").contains(here, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False


def _changed_at(entry: str) -> tuple[str, int]:
    try:
        return entry, os.stat(entry or ".").st_mtime_ns  # noqa: PTH116  a hot path
    except OSError:
        return entry, 0


@functools.lru_cache(maxsize=8)
def _installed(names: tuple[str, ...], changed_at: tuple[tuple[str, int], ...]) -> dict[str, str]:
    del changed_at  # what was installed since is looked up anew
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError, ValueError):
            found[name] = metadata.version(name)
    return found
