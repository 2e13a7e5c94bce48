"""What a model needs to run: the distributions that its rehearsal really loaded, and the user's own lines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from nbdeploy import wheels
from nbdeploy.errors import SaveError
from nbdeploy.installed import Distribution, Installed, normal

ALWAYS = ("nbdeploy", "numpy", "pandas", "pyarrow")


@dataclass(frozen=True)
class Requirement:
    """One distribution that was loaded.

    Attributes
    ----------
    name, version : str
        As its metadata spells them.
    origin : str
        Where pip had it from (PEP 610): ``index``, ``local`` (a folder), ``editable``, ``git`` or ``archive``.
    url : str
        Of a git repository or an archive, without credentials; the path of a local folder or file.
    commit : str
        What of a git repository is installed.
    wheel : str
        File name below ``wheels/`` where it is carried.
    subdirectory : str
        Of the repository or archive, where the project is not at its top.
    hash : str
        ``sha256=...`` of an archive, where pip recorded one.
    """

    name: str
    version: str
    origin: str
    url: str = ""
    commit: str = ""
    wheel: str = ""
    subdirectory: str = ""
    hash: str = ""

    @property
    def line(self) -> str:
        """A line of a requirements file. A carried wheel is named relative to the folder that holds ``wheels/``."""
        if self.wheel:
            return f"./wheels/{self.wheel}"
        fragments = [f"subdirectory={self.subdirectory}"] if self.subdirectory else []
        if self.origin == "git":
            return f"{self.name} @ git+{self.url}@{self.commit}" + _fragment(fragments)
        if self.origin == "archive" and "://" in self.url:
            return f"{self.name} @ {self.url}" + _fragment([self.hash] * bool(self.hash) + fragments)
        return f"{self.name}=={self.version}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Requirement:
        return cls(**{name: str(facts[name]) for name in cls.__dataclass_fields__ if name in facts})


def loaded(before: Collection[str], needed: Collection[str]) -> list[Requirement]:
    """Which distributions this process has loaded for the model.

    Parameters
    ----------
    before : collection of str
        The names in ``sys.modules`` before the model was loaded.
    needed : collection of str
        Top-level or dotted names of modules that the model names. Those that were not imported do not count.

    Returns
    -------
    list of Requirement
        The distributions of what is new since `before` and of what is `needed`; what these require, where it is
        loaded too; and nbdeploy, numpy, pandas and pyarrow. Sorted by name. A module without a distribution (the
        standard library, code of a notebook) is left out. Two distributions that install the same file are told
        apart by the hash of the file.
    """
    import sys

    here = Installed()
    wanted = {name for name in sys.modules if name not in before} | {name for name in needed if name in sys.modules}
    found = {each.key: each for each in here.of_modules(wanted)}
    for name in ALWAYS:
        if (each := here.find(name)) is not None and name in sys.modules:
            found[each.key] = each
    waiting = list(found.values())
    while waiting:
        for name in waiting.pop().requires():
            each = here.find(name)
            if each is not None and each.key not in found and here.is_loaded(each):
                found[each.key] = each
                waiting.append(each)
    return sorted((_requirement(each) for each in found.values()), key=lambda each: each.name.lower())


def check_user(lines: Sequence[str]) -> list[str]:
    """The user's own requirements, each a line such as ``xgboost>=2`` or ``foo @ https://...``.

    Raises
    ------
    SaveError
        A line that is an option of pip, that cannot be parsed, or that names a distribution a second time.
    """
    given: object = lines
    if isinstance(given, str):
        msg = "requirements= is a string, not a list of strings"
        raise SaveError(msg, f"Write requirements=[{_short(given)}].")
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    kept: dict[str, str] = {}
    entries: list[Any] = list(lines)
    for each in entries:
        line = str(each).strip()
        if not isinstance(each, str):
            msg = f"requirements=: {_short(each)} is not a requirement"
            raise SaveError(msg, "Write a name and a version, for example 'xgboost>=2'.")
        if line.startswith("-"):
            msg = f"requirements=: {_short(line)} is an option of pip, not a requirement"
            raise SaveError(msg, "Options such as an index belong into pip's own configuration.")
        try:
            if len(line.splitlines()) != 1:
                raise InvalidRequirement(line)  # noqa: TRY301  the same fault, said the same way
            parsed = Parsed(line)
        except InvalidRequirement as error:
            msg = f"requirements=: {_short(each)} is not a requirement"
            raise SaveError(msg, "Write a name and a version, for example 'xgboost>=2'.", str(error)) from error
        place = urlsplit(parsed.url or "")
        if place.username or place.password or place.scheme == "file":
            what = "a file of this machine" if place.scheme == "file" else "a URL with a user or password in it"
            msg = f"requirements=: {parsed.name} is at {what}"
            raise SaveError(
                msg, "Name a version, or a URL that anybody may read; secrets belong into pip's configuration."
            )
        if normal(parsed.name) in kept:
            msg = f"requirements=: {parsed.name} is named twice, by {_short(kept[normal(parsed.name)])} and {_short(line)}"
            raise SaveError(msg, "Keep one of them.")
        kept[normal(parsed.name)] = line
    return list(kept.values())


def merge(found: Sequence[Requirement], user: Sequence[str]) -> list[str]:
    """The lines of ``requirements.txt``: each of `found` as it was loaded, or as the user says, then the user's others.

    Raises
    ------
    SaveError
        What was loaded does not satisfy the user's line for the same distribution.
    """
    from packaging.requirements import Requirement as Parsed

    own = {normal(Parsed(line).name): line for line in user}
    lines = []
    for each in found:
        line = own.pop(normal(each.name), None)
        parsed = Parsed(line) if line is not None else None
        if line is None or parsed is None or (parsed.marker and not parsed.marker.evaluate()):
            lines.append(each.line)
            continue
        if not parsed.specifier.contains(each.version, prereleases=True):
            msg = f"requirements= asks for {_short(line)}, but the model was loaded with {each.name} {each.version}"
            raise SaveError(msg, f"Install the version that you ask for and fit again, or leave {each.name} out.")
        # A carried wheel is what was rehearsed; a name alone would have another one installed.
        extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.extras else ""
        lines.append(each.line + extras if each.wheel and not parsed.url else line)
    return [*lines, *own.values()]


def pinned(lines: Sequence[str]) -> dict[str, str]:
    """The version, or ``3.*``, that each line of ``requirements.txt`` pins; other lines pin none."""
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    found = {}
    for line in lines:
        with suppress(InvalidRequirement):  # a carried wheel
            parsed = Parsed(line)
            exact = [each.version for each in parsed.specifier if each.operator == "=="]
            if exact and (parsed.marker is None or parsed.marker.evaluate()):
                found[parsed.name] = exact[0]
    return found


def carry(found: Sequence[Requirement], folder: Path, on_wait: Callable[[], None] = lambda: None) -> list[Requirement]:
    """Put a wheel into ``folder/wheels`` for each of `found` that no other machine could install.

    These are distributions from folders and files of this machine. One that was installed from a folder is packed
    from its installed files, so it is what was rehearsed whatever happened to the folder since. An editable one is
    built from a copy of its folder and kept until a file of it changes; nbdeploy itself is packed without a build, in
    milliseconds. One from an index or a remote repository stays a line. A repository of this machine is built.

    Raises
    ------
    SaveError
        One cannot be built, or its file is not what was installed.
    """
    carried = []
    for each in found:
        where = folder / "wheels"
        local = each.origin in {"local", "editable"} or not each.url.partition("://")[1] or each.url.startswith("file:")
        if each.origin == "index" or not local:
            carried.append(each)
            continue
        if each.origin == "editable" and normal(each.name) == "nbdeploy":
            name = wheels.pack_nbdeploy(each.version, where)
        elif each.origin == "editable":
            name = wheels.build(each.name, each.version, each.url, where, on_wait)
        elif each.origin == "git":
            source = f"git+{each.url}@{each.commit}{_fragment([f'subdirectory={each.subdirectory}'] * bool(each.subdirectory))}"
            name = wheels.build(each.name, each.version, source, where, on_wait)
        elif each.origin == "archive" and each.url.endswith(".whl") and Path(each.url).is_file():
            name = wheels.copy(each.name, Path(each.url), each.hash, where)
        else:  # a folder, or a file that is no wheel or is gone: what is installed of it is the truth
            name = wheels.pack_installed(each.name, each.version, each.url, where)
        carried.append(replace(each, wheel=name))
    return carried


def _requirement(each: Distribution) -> Requirement:
    facts = each.direct_url()
    url = str(facts.get("url") or "")
    below = str(facts.get("subdirectory") or "")
    known = Requirement(each.name, each.version, "index", subdirectory=below)
    if "vcs_info" in facts:
        return replace(
            known, origin="git", url=_without_credentials(url), commit=facts["vcs_info"].get("commit_id", "")
        )
    if "archive_info" in facts:
        hashes = facts["archive_info"].get("hashes") or {}
        recorded = f"sha256={hashes['sha256']}" if "sha256" in hashes else facts["archive_info"].get("hash") or ""
        place = _path(url) if url.startswith("file:") else _without_credentials(url)
        return replace(known, origin="archive", url=place, hash=recorded)
    if "dir_info" in facts:
        editable = bool(facts["dir_info"].get("editable"))
        place = str(Path(_path(url)) / below) if below else _path(url)
        return replace(known, origin="editable" if editable else "local", url=place, subdirectory="")
    if each.develop:
        return replace(known, origin="editable", url=each.develop)
    return known


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    # ssh needs the user, and that is no secret; over HTTP a user name alone may be a token. So may a query.
    kept = f"{user.partition(':')[0]}{at}{host}" if parts.scheme == "ssh" else host
    return urlunsplit((parts.scheme, kept, parts.path, "", ""))


def _path(url: str) -> str:
    return unquote(urlsplit(url).path)


def _fragment(parts: Sequence[str]) -> str:
    return "#" + "&".join(parts) if parts else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
