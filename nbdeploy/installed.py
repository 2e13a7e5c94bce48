"""Which distribution a loaded module belongs to, found by the files that each one has recorded as its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any


def normal(name: str) -> str:
    """The one spelling of a distribution's name that all others are compared by (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Distribution:
    """One ``.dist-info`` or ``.egg-info`` folder, read as far as it is asked for.

    Parameters
    ----------
    root : str
        The entry of ``sys.path`` that it is in.
    info : str
        Its folder.
    """

    root: str
    info: str

    @cached_property
    def key(self) -> str:
        return normal(self.info.rpartition(os.sep)[2].partition("-")[0].removesuffix(".egg"))

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        text = _text(self.info, "METADATA") or _text(self.info, "PKG-INFO")
        lines = text.partition("\n\n")[0].splitlines()
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    @property
    def name(self) -> str:
        return dict(reversed(self.headers)).get("name", self.key)

    @property
    def version(self) -> str:
        return dict(reversed(self.headers)).get("version", "")

    @cached_property
    def record(self) -> bytes:
        try:
            with open(f"{self.info}/RECORD", "rb") as file:  # noqa: PTH123  hundreds of them
                return b"\n" + file.read().replace(b"\r\n", b"\n")
        except OSError:
            return b""

    @cached_property
    def top_level(self) -> frozenset[str]:
        return frozenset(_text(self.info, "top_level.txt").split())

    @property
    def develop(self) -> str:
        """The folder of a project that is on ``sys.path`` itself, as by an old ``setup.py develop``; else empty."""
        return "" if self.info.endswith(".dist-info") or "-packages" in self.root else self.root

    def direct_url(self) -> dict[str, Any]:
        """Where pip had it from when that was no index (PEP 610)."""
        try:
            facts = json.loads(_text(self.info, "direct_url.json") or "{}")
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    def requires(self) -> list[str]:
        """The names that it requires without its extras, on whatever platform: a marker is not evaluated.

        Parsing them in full would take longer than all else here, and who asks looks only for what is loaded.
        """
        required = (value for header, value in self.headers if header == "requires-dist")
        plain = (value for value in required if not re.search(r"\bextra\s*==", value))
        return [found[0] for value in plain if (found := re.match(r"[A-Za-z0-9][\w.-]*", value))]

    def owns(self, path: str) -> bool:
        """Whether the file at `path`, relative to `root`, is recorded as its own."""
        if not self.record:  # an .egg-info has no record
            return path.partition("/")[0].partition(".")[0] in self.top_level
        word = path.encode()
        return b"\n" + word + b"," in self.record or b'\n"' + word + b'",' in self.record

    def owns_any(self, paths: frozenset[str]) -> bool:
        """Whether one of the files at `paths`, relative to `root`, is recorded as its own."""
        if not self.record:
            return any(map(self.owns, paths))
        recorded = re.findall(rb'\n"?([^",\n]+)', self.record)
        return not paths.isdisjoint(path.decode("utf-8", "replace") for path in recorded)

    def wrote(self, path: str) -> bool:
        """Whether the file is still the one that it installed."""
        found = re.search(rb"\n" + re.escape(path.encode()) + rb",sha256=([\w-]+)", self.record)
        try:
            with open(f"{self.root}/{path}", "rb") as file:  # noqa: PTH123
                digest = hashlib.sha256(file.read()).digest()
        except OSError:
            return False
        return bool(found) and found is not None and base64.urlsafe_b64encode(digest).rstrip(b"=") == found[1]


class Installed:
    """The distributions that this process can import, found at most once each."""

    def __init__(self) -> None:
        self._roots: dict[str, list[Distribution]] = {}
        self._names: dict[str, Distribution] = {}
        self._loaded: dict[str, frozenset[str]] = {}
        for entry in sys.path:
            root = os.path.abspath(entry or ".")  # noqa: PTH100
            if root not in self._roots and (found := list(_distributions(root))):
                self._roots[root] = found
                for each in found:
                    self._names.setdefault(each.key, each)
        # An editable one's modules are elsewhere: below its folder.
        self._folders = sorted(
            ((folder, each) for each in self._names.values() if (folder := _editable_folder(each))),
            key=lambda pair: -len(pair[0]),
        )

    def find(self, name: str) -> Distribution | None:
        return self._names.get(normal(name))

    def of_modules(self, names: Collection[str]) -> list[Distribution]:
        """The distributions that the loaded modules `names` come from."""
        found: dict[str, Distribution] = {}
        for path in _files(names):
            for each in self._owners(path):
                found[each.key] = each
        return list(found.values())

    def is_loaded(self, each: Distribution) -> bool:
        """Whether a module of `each` is loaded in this process."""
        tops = each.top_level or {
            match.decode().partition("/")[0].partition(".")[0]
            for match in re.findall(rb"\n([^/,\n]+(?:/__init__)?\.(?:py|[^/,\n]*so)),", each.record)
        }
        if not tops or any(not getattr(sys.modules.get(top), "__file__", None) for top in tops & sys.modules.keys()):
            # A namespace, or a layout without a top of its own: look at each loaded file.
            return each.owns_any(self._loaded_below(each.root))
        if tops & sys.modules.keys():
            return True
        return bool(_editable_folder(each)) and each.key.replace("-", "_") in sys.modules

    def _loaded_below(self, root: str) -> frozenset[str]:
        if root not in self._loaded:
            paths = (path for path in map(_file, list(sys.modules)) if path.startswith(root + os.sep))
            self._loaded[root] = frozenset(path[len(root) + 1 :].replace(os.sep, "/") for path in paths)
        return self._loaded[root]

    def _owners(self, path: str) -> list[Distribution]:
        for root in self._roots:
            if path.startswith(root + os.sep):
                inside = path[len(root) + 1 :].replace(os.sep, "/")
                if owners := self._recorded(root, inside):
                    return owners
        for folder, each in self._folders:
            if path.startswith(folder + os.sep):
                return [each]
        return []

    def _recorded(self, root: str, path: str) -> list[Distribution]:
        parts = [part.partition(".")[0] for part in path.split("/")]
        likely = {normal("-".join(parts[:length])) for length in (1, 2, 3)}
        named = [each for each in self._roots[root] if each.key in likely or parts[0] in each.top_level]
        owners = [each for each in named if each.owns(path)]
        if not owners:  # under a name of its own; a record is read once and kept while this lives
            owners = [each for each in self._roots[root] if not each.top_level and each.owns(path)]
        return [each for each in owners if each.wrote(path)][:1] or owners[:1] if len(owners) > 1 else owners


def _distributions(root: str) -> Iterator[Distribution]:
    try:
        names = os.listdir(root)  # noqa: PTH208
    except OSError:  # a zip file, or nothing at all
        return
    for name in sorted(names):
        if name.endswith((".dist-info", ".egg-info")):
            yield Distribution(root, f"{root}/{name}")


def _editable_folder(each: Distribution) -> str:
    facts = each.direct_url()
    if facts.get("dir_info", {}).get("editable"):
        from urllib.parse import unquote, urlsplit

        inside = facts.get("subdirectory")
        path = unquote(urlsplit(str(facts.get("url"))).path).rstrip("/")
        return f"{path}/{inside}" if inside else path
    return each.develop


def _files(names: Collection[str]) -> set[str]:
    """The files that tell where modules come from: of a package its own; of a namespace those of what is in it."""
    found, seen = set(), set()
    for name in names:
        if name.partition(".")[0] in sys.stdlib_module_names:
            continue
        # The outermost part that has a file.
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            if prefix in seen:
                break
            if path := _file(prefix):
                seen.add(prefix)
                found.add(path)
                break
    return found


def _file(name: str) -> str:
    path = getattr(sys.modules.get(name), "__file__", None)
    return os.path.abspath(path) if isinstance(path, str) else ""  # noqa: PTH100


def _text(folder: str, name: str) -> str:
    try:  # without pathlib: hundreds of them, most of which are not there
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode("utf-8", "replace")
