"""Local ``.py`` files that a model needs: found when it is saved, imported from verified bytes when it is loaded."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nbdeploy.errors import SaveError
from nbdeploy.local_modules import Installed, imports_of, spec_of
from nbdeploy.source_edits import edited_since_import

MAX_BYTES = 50_000_000
WAYS_OUT = "Install it as a package, put its source as a .py file beside the notebook, or define what the model needs in a cell."
SUFFIXES = tuple(importlib.machinery.EXTENSION_SUFFIXES)


def collect(modules: Iterable[str]) -> dict[str, Path]:
    """The local source files behind modules, and behind all that these import.

    Local is a ``.py`` that neither Python nor an installed distribution owns, an editable one included. Imports are
    read from the source, those within functions too; nothing is imported and nothing is run. An import of a
    computed name cannot be seen.

    Parameters
    ----------
    modules : iterable of str
        Dotted names that a pickle refers to. Those that are not local are passed over.

    Returns
    -------
    dict
        ``{"helpers.py": path, "features/__init__.py": path, ...}``, sorted.

    Raises
    ------
    SaveError
        A local module has no source or is a compiled extension; a file was edited after the kernel imported it;
        the files are more than 50 MB.
    """
    installed = Installed()
    found: dict[str, Path] = {}
    seen: set[str] = set()
    total = 0
    waiting = [(name, True) for name in sorted(set(modules))]
    while waiting:
        name, named_by_model = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append((parent, False))
        spec = spec_of(name)
        if spec is not None and isinstance(spec.loader, Carried):
            continue  # of a version that was loaded here: its classes are pickled by value
        if spec is None and named_by_model and installed.only_in_memory(name):
            msg = f"the model needs the module {name}, which has no file"
            raise SaveError(msg, WAYS_OUT)
        if spec is None or not installed.is_local(name, spec):
            continue
        path = _source_file(name, spec)
        if path is None:
            continue  # a folder without __init__.py
        source = path.read_bytes()
        total += len(source)
        if total > MAX_BYTES:
            msg = f"the local code that the model imports is more than {MAX_BYTES // 1_000_000} MB, with {path.name}"
            raise SaveError(msg, "Keep data out of .py files, or install the code as a package.")
        is_package = path.name == "__init__.py"
        if what := edited_since_import(sys.modules.get(name), path, source):
            msg = f"{path.name} was edited after it was imported: {what}"
            raise SaveError(msg, f"Restart the kernel, or importlib.reload({name}) and make the model again.")
        found[name.replace(".", "/") + ("/__init__.py" if is_package else ".py")] = path
        waiting += [(one, False) for one in imports_of(source, path, name if is_package else parent)]
    return dict(sorted(found.items()))


def imported_by(code: CodeType) -> set[str]:
    """The modules that a function imports when it is called: its pickle does not name them.

    Both ``a`` and ``a.b`` for ``from a import b``, which may or may not be a module: `collect` knows.
    """
    import dis

    names: set[str] = set()
    module = ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            module = str(step.argval)
            names.add(module)
        elif step.opname == "IMPORT_FROM":
            names.add(f"{module}.{step.argval}")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= imported_by(constant)
    return names


class Carried(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """The carried modules of one version in this process: finder and loader, from bytes, never from the disk.

    Each version has its modules below a package of its own, ``nbdeploy_flight_delay_v1_3f9a….helpers``, which stays
    in ``sys.modules``. So two versions with different files of one name live side by side, and whatever looks a class
    up by its ``__module__`` (pickle, dataclasses, type hints, `inspect`) finds the right one.

    A carried file still says ``import helpers``. Python takes the function behind an import statement from the
    ``__builtins__`` of the module that runs it, at any time later too; those of a carried module have one that looks
    among the version's own modules first. ``importlib.import_module("helpers")`` passes it by: it finds the carried
    module while the model is being loaded, but not when it predicts.
    """

    def __init__(self, sources: Mapping[str, bytes], key: str) -> None:
        self.sources = {_checked(path): bytes(source) for path, source in sources.items()}
        self.key = self.label = key
        self.root = _root(self.sources, key)
        self.tops = {path.partition("/")[0].removesuffix(".py") for path in self.sources}
        # A copy: what is added to builtins later is not seen.
        self.builtins: dict[str, Any] = {**builtins.__dict__, "__import__": self._import}

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self.sources, self.key)

    def install(self) -> None:
        """Make `root` importable from now on."""
        spec = importlib.machinery.ModuleSpec(self.root, self, is_package=True)
        sys.modules[self.root] = importlib.util.module_from_spec(spec)
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if not fullname.startswith(f"{self.root}."):
            return None
        file = self._file(fullname)
        if file is None:
            if not self._is_folder(fullname):
                return None
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec = importlib.machinery.ModuleSpec(
            fullname, self, origin=self._shown(file), is_package=file.endswith("/__init__.py")
        )
        spec.has_location = True  # so that the module gets a __file__
        return spec

    def get_code(self, fullname: str) -> CodeType | None:
        file = self._file(fullname)
        if file is None:
            return None
        return compile(self.sources[file], self._shown(file), "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str | None:
        file = self._file(fullname)
        return None if file is None else importlib.util.decode_source(self.sources[file])

    def get_filename(self, fullname: str) -> str:
        file = self._file(fullname)
        if file is None:
            raise ImportError(name=fullname)
        return self._shown(file)

    def get_data(self, path: str) -> bytes:
        for file, source in self.sources.items():
            if path == self._shown(file):
                return source
        msg = f"a version carries .py files only, not {path}"
        raise FileNotFoundError(msg)

    def is_package(self, fullname: str) -> bool:
        return (self._file(fullname) or "/__init__.py").endswith("/__init__.py")

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        if code is None:
            return
        text = self.get_source(module.__name__) or ""
        linecache.cache[code.co_filename] = (len(text), None, text.splitlines(keepends=True), code.co_filename)
        module.__dict__["__builtins__"] = self.builtins
        exec(code, module.__dict__)  # noqa: S102  verified bytes: that is what an import is

    def carries(self, name: str) -> bool:
        """Whether the dotted `name`, as the carried code says it, is one of the carried modules."""
        fullname = f"{self.root}.{name}"
        return self._file(fullname) is not None or self._is_folder(fullname)

    def _import(
        self,
        name: str,
        globals: Any = None,  # noqa: A002  the names that __import__ has
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or top not in self.tops:
            return builtins.__import__(name, globals, locals, fromlist, level)
        if not self.carries(name):
            if self._file(f"{self.root}.{top}") is None:  # a folder that others share
                return builtins.__import__(name, globals, locals, fromlist, level)
            msg = f"No module named {name!r}: {self.key} carries {top!r} without it"
            raise ModuleNotFoundError(msg, name=name)
        importlib.import_module(f"{self.root}.{name}")
        if not fromlist:
            return sys.modules[f"{self.root}.{top}"]
        return builtins.__import__(f"{self.root}.{name}", globals, locals, fromlist, 0)

    def _file(self, fullname: str) -> str | None:
        stem = fullname[len(self.root) + 1 :].replace(".", "/")
        return next((file for file in (f"{stem}/__init__.py", f"{stem}.py") if file in self.sources), None)

    def _is_folder(self, fullname: str) -> bool:
        folder = fullname[len(self.root) + 1 :].replace(".", "/") + "/"
        return any(file.startswith(folder) for file in self.sources)

    def _shown(self, file: str) -> str:
        return f"<{self.label}>/{file}"


class _ByPlainName(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """While a model is unpickled, ``helpers`` is the carried module itself, under its plain name."""

    def __init__(self, carried: Carried) -> None:
        self.carried = carried

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.machinery.ModuleSpec(fullname, self) if self.carried.carries(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        # The import machinery returns what is in sys.modules after this.
        plain = module.__name__
        sys.modules[plain] = importlib.import_module(f"{self.carried.root}.{plain}")


_lock = threading.RLock()
_installed: dict[str, Carried] = {}


@contextmanager
def imported_from(sources: Mapping[str, bytes], key: str) -> Iterator[None]:
    """While the block runs, carried modules win over all others of their names; afterwards all is as it was.

    Classes of the notebook, which a pickle carries by value, are made anew for each block, so that what one version
    brings changes no other, nor the notebook's own. What was loaded keeps its own modules, also for imports within its functions at any time later. The same files
    under the same `key` are one set of modules however often they are loaded. One block runs at a time; other threads
    that import a module of the same plain name meanwhile may get the carried one.

    An object of a carried class can be pickled and unpickled in this process. cloudpickle stores it by value, so that
    a fresh process can load it too; there, imports within its functions no longer find carried modules.

    Parameters
    ----------
    sources : mapping
        ``{"helpers.py": b"...", "features/dates.py": b"..."}``: verified bytes.
    key : str
        Which version, for tracebacks: ``__file__`` is ``<flight-delay:v1>/helpers.py``, which no file is. A data file
        beside it is not there: opening it is a FileNotFoundError.

    Raises
    ------
    SaveError
        A path that is not that of a Python module.
    """
    import cloudpickle.cloudpickle as pickling

    with _lock, _classes_of_their_own(pickling):
        if not sources:
            yield
            return
        carried = _carried(sources, key)
        former = _taken_out(carried.tops)
        finder = _ByPlainName(carried)
        sys.meta_path.insert(0, finder)
        # Functions of the notebook get this module's own __builtins__ when they are unpickled: they too import here.
        former_builtins = vars(pickling)["__builtins__"]
        vars(pickling)["__builtins__"] = carried.builtins
        try:
            yield
        finally:
            vars(pickling)["__builtins__"] = former_builtins
            sys.meta_path.remove(finder)
            _taken_out(carried.tops)
            sys.modules.update(former)
            _pickle_by_value(carried)


@contextmanager
def _classes_of_their_own(pickling: Any) -> Iterator[None]:
    # cloudpickle gives two pickles of one class of a notebook one class in this process, with the methods of whichever
    # was loaded last. A class that was changed in between would change the version that was loaded before.
    former = pickling._DYNAMIC_CLASS_TRACKER_BY_ID  # noqa: SLF001  there is no public way
    pickling._DYNAMIC_CLASS_TRACKER_BY_ID = weakref.WeakValueDictionary()  # noqa: SLF001
    try:
        yield
    finally:
        pickling._DYNAMIC_CLASS_TRACKER_BY_ID = former  # noqa: SLF001


# -- finding ------------------------------------------------------------------------------------------------


def _source_file(name: str, spec: importlib.machinery.ModuleSpec) -> Path | None:
    if not spec.has_location or spec.origin is None:
        return None
    path = Path(spec.origin)
    if path.name.endswith(SUFFIXES):
        msg = f"the model needs the module {name}, a compiled extension ({path.name}) that no package owns"
        raise SaveError(msg, WAYS_OUT)
    if path.suffix != ".py" or not path.is_file():
        msg = f"the model needs the module {name}, which has no .py file ({path.name})"
        raise SaveError(msg, WAYS_OUT)
    return path.absolute()


# -- importing ----------------------------------------------------------------------------------------------


def _carried(sources: Mapping[str, bytes], key: str) -> Carried:
    wanted = Carried(sources, key)
    if wanted.root not in _installed:
        if any(one.key == key for one in _installed.values()):  # a version that was deleted and made anew
            wanted.label = f"{key} {wanted.root.rpartition('_')[2]}"  # so that each shows its own source
        wanted.install()
        _installed[wanted.root] = wanted
    return _installed[wanted.root]


def _checked(path: str) -> str:
    stems = path.removesuffix(".py").split("/")
    if not path.endswith(".py") or not all(stem.isidentifier() for stem in stems):
        msg = f"{path[:80]!r} is not the path of a Python module"
        raise SaveError(msg, "The version's code folder holds .py files only.")
    return path


def _root(sources: Mapping[str, bytes], key: str) -> str:
    hashed = hashlib.blake2b(key.encode(), digest_size=6)
    for path, source in sorted(sources.items()):
        hashed.update(f"\0{path}\0{len(source)}\0".encode() + source)
    return f"nbdeploy_{re.sub(r'[^0-9A-Za-z]+', '_', key)[:40]}_{hashed.hexdigest()}"


def _taken_out(tops: set[str]) -> dict[str, ModuleType]:
    names = [name for name in list(sys.modules) if name.partition(".")[0] in tops]
    return {name: sys.modules.pop(name) for name in names}


def _pickle_by_value(carried: Carried) -> None:
    # joblib sends work to other processes with a cloudpickle of its own.
    for name in ("cloudpickle", "joblib.externals.cloudpickle"):
        module: Any = sys.modules.get(name)
        if module is not None:
            module.register_pickle_by_value(sys.modules[carried.root])
