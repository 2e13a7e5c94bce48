"""Where modules are, what they import, and whether they are the user's own files or come with a distribution."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

from nbdeploy.errors import SaveError

NEVER_LOCAL = {"__main__", "__mp_main__", "nbdeploy"}


def spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is, or None: as `importlib.util.find_spec`, which would import its parents.

    A module that is loaded but has no file and no path has none.
    """
    module = sys.modules.get(name)
    if module is not None:
        spec = getattr(module, "__spec__", None)
        known = spec if isinstance(spec, importlib.machinery.ModuleSpec) else _from_file(name, module)
        no_place = known is None or (known.origin is None and known.submodule_search_locations is None)
        return None if no_place else known
    parent = name.rpartition(".")[0]
    path: Any = None
    if parent:
        above = spec_of(parent)
        path = above.submodule_search_locations if above is not None else None
        if path is None:
            return None
    for finder in sys.meta_path:
        with suppress(Exception):  # anybody's finder
            found = finder.find_spec(name, path)
            if found is not None:
                return found
    # For a folder without __init__.py Python asks the parent, which must have been imported.
    places = [str(place) for one in path or () if (place := Path(one) / name.rpartition(".")[2]).is_dir()]
    if not places:
        return None
    folder = importlib.machinery.ModuleSpec(name, None, is_package=True)
    folder.submodule_search_locations = places
    return folder


def imports_of(source: bytes, path: Path, package: str) -> set[str]:
    """The dotted names that a source imports; of ``from a import b`` also ``a.b``."""
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:
        msg = f"{path.name} is not valid Python: {error}"
        raise SaveError(msg, "Correct it, restart the kernel and make the model again.") from error
    names: set[str] = set()
    for node in _at_run_time(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node.module or "", node.level, package)
            if base:
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")}
                if any(alias.name == "*" for alias in node.names):
                    names |= {f"{base}.{one}" for one in _listed_in_all(base)}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            said = node.args[0].value
            if called in {"import_module", "__import__"} and isinstance(said, str):
                names.add(_absolute(said.lstrip("."), len(said) - len(said.lstrip(".")), package))
    return {name for name in names if name}


class Installed:
    """What Python and installed distributions own. Read once for one `collect`."""

    def is_local(self, name: str, spec: importlib.machinery.ModuleSpec) -> bool:
        """Whether neither Python nor an installed distribution brings the module `name`."""
        top = name.partition(".")[0]
        # By its place, not by its name: a calendar.py beside the notebook is the user's.
        if top in NEVER_LOCAL or spec.origin in {"built-in", "frozen"}:
            return False
        above = spec_of(top) if top != name else None
        if above is not None and above.has_location:
            return self.is_local(top, above)  # a package has one owner, whatever its modules say of themselves
        places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
        return bool(places) and not any(self._owns(name, Path(place)) for place in places)

    def only_in_memory(self, name: str) -> bool:
        """Whether somebody made the module `name` in this process, and no installed package did."""
        top = name.partition(".")[0]
        # Cython registers modules of its own for its types.
        if name not in sys.modules or top in {*sys.stdlib_module_names, *NEVER_LOCAL} or "cython_" in top:
            return False
        # six.moves and torch.ops have no file either, but whoever installs six or torch has them.
        while name := name.rpartition(".")[0]:
            spec = spec_of(name)
            if spec is not None and spec.has_location:
                return self.is_local(name, spec)
        return True

    def _owns(self, name: str, place: Path) -> bool:
        real = Path(os.path.realpath(place))
        if {"site-packages", "dist-packages"} & {*place.parts, *real.parts}:
            return True
        if any(real.is_relative_to(folder) for folder in self._folders):
            return True
        root = _import_root(name, real)
        return root is not None and (self._owned_beside(name, root) or self._owned_by_editable(name, real, root))

    @cached_property
    def _folders(self) -> list[Path]:
        names = ("stdlib", "platstdlib", "purelib", "platlib")
        return [Path(os.path.realpath(path)) for key in names if (path := sysconfig.get_path(key))]

    @staticmethod
    def _owned_beside(name: str, root: Path) -> bool:
        """Whether `pip install --target root` or the like put it there."""
        top = name.partition(".")[0]
        for distribution in metadata.distributions(path=[str(root)]):
            with suppress(Exception):  # whatever somebody's metadata holds
                if top in (distribution.read_text("top_level.txt") or "").split():
                    return True
                if any(file.parts[0] in {top, f"{top}.py"} for file in distribution.files or ()):
                    return True
        return False

    def _owned_by_editable(self, name: str, file: Path, root: Path) -> bool:
        top = name.partition(".")[0]
        for folder, names in self._editable.items():
            if not file.is_relative_to(folder):
                continue
            if top in names:
                return True
            # A script at the top of a project is found by the same path as its package, but is no part of it.
            is_script = root == folder and (root / f"{top}.py").is_file()
            if (root in self._path_files and not is_script) or self._has_finder(top, file):
                return True
        return False

    @cached_property
    def _editable(self) -> dict[Path, set[str]]:
        """Folders of editable installs (PEP 610), each with the top-level names that are known of it."""
        found: dict[Path, set[str]] = {}
        for distribution in metadata.distributions():
            with suppress(Exception):  # whatever somebody's metadata holds
                facts = json.loads(distribution.read_text("direct_url.json") or "{}")
                if facts.get("dir_info", {}).get("editable"):
                    folder = Path(os.path.realpath(unquote(urlparse(facts["url"]).path)))
                    names = set((distribution.read_text("top_level.txt") or "").split())
                    names.add(re.sub(r"[-_.]+", "_", distribution.metadata["Name"]).lower())
                    found.setdefault(folder, set()).update(names)
        return found

    @cached_property
    def _path_files(self) -> set[Path]:
        """The folders that ``.pth`` files put on ``sys.path``: they are there in every process."""
        found = set()
        for place in {entry for entry in sys.path if {"site-packages", "dist-packages"} & {*Path(entry).parts}}:
            for file in Path(place).glob("*.pth"):
                with suppress(OSError, UnicodeDecodeError):
                    lines = file.read_text().splitlines()
                    found |= {Path(os.path.realpath(line)) for line in lines if line and not line.startswith("import")}
        return found

    @staticmethod
    def _has_finder(top: str, file: Path) -> bool:
        for finder in sys.meta_path:
            if finder is importlib.machinery.PathFinder:
                continue
            with suppress(Exception):  # anybody's finder
                spec = finder.find_spec(top, None)
                places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
                if any(place and file.is_relative_to(Path(os.path.realpath(place))) for place in places):
                    return True
        return False


def _from_file(name: str, module: ModuleType) -> importlib.machinery.ModuleSpec | None:
    file = getattr(module, "__file__", None)
    return importlib.util.spec_from_file_location(name, file) if isinstance(file, str) else None


def _import_root(name: str, file: Path) -> Path | None:
    """The folder on ``sys.path`` below which `file` is the module `name`."""
    parts = name.split(".")
    steps = len(parts) if file.name == "__init__.py" or file.is_dir() else len(parts) - 1
    folder = file if file.is_dir() else file.parent
    for _ in range(steps):
        folder = folder.parent
    return folder


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    parts = package.split(".") if package else []
    if level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])


def _listed_in_all(name: str) -> list[str]:
    module = sys.modules.get(name)
    return [one for one in getattr(module, "__all__", ()) if isinstance(one, str)]
