"""Zip archives with one valid form: members stored as they are, one behind the other, no byte unaccounted for.

Any zip tool opens them. The reader is told what must come next and compares each header byte for byte with the one
that the writer makes: no compression, link, flag, second directory or hidden byte can mean anything to it.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from nbdeploy.errors import SaveError

BLOCK = 1 << 20  # bytes: all that is ever held in memory
MAX_DEPTH, MAX_PATH, MAX_PART = 16, 1024, 255  # of names; folders, bytes, bytes
_FULL = 0xFFFFFFFF  # in a 32-bit field: the number is in the zip64 field
_NAMES_ARE_UTF8, _STORED, _UNIX = 0x800, 0, 3
_MIDNIGHT, _FIRST_OF_1980 = 0, 0x21  # the same bytes whenever it is written
_PRIVATE_FILE = 0o100600 << 16
_LOCAL, _HEAD = b"PK\3\4", struct.Struct("<4sHHHHHLLLHH")


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    crc: int
    offset: int

    def header(self) -> bytes:
        """What stands before its bytes."""
        raw, wide = self.name.encode(), self.size >= _FULL
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size) if wide else b""
        size = _FULL if wide else self.size
        head = _HEAD.pack(
            _LOCAL, 45 if wide else 20, _NAMES_ARE_UTF8, _STORED, _MIDNIGHT, _FIRST_OF_1980,
            self.crc, size, size, len(raw), len(extra),
        )  # fmt: skip
        return head + raw + extra

    def entry(self) -> bytes:
        """Its line in the directory at the end."""
        raw, wide = self.name.encode(), self.size >= _FULL
        numbers = [self.size, self.size] if wide else []
        numbers += [self.offset] if self.offset >= _FULL else []
        extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
        size = _FULL if wide else self.size
        head = struct.pack(
            "<4sBBHHHHHLLLHHHHHLL", b"PK\1\2", 45, _UNIX, 45 if numbers else 20, _NAMES_ARE_UTF8, _STORED, _MIDNIGHT,
            _FIRST_OF_1980, self.crc, size, size, len(raw), len(extra), 0, 0, 0, _PRIVATE_FILE,
            min(self.offset, _FULL),
        )  # fmt: skip
        return head + raw + extra


def check_names(names: Iterable[str], label: str) -> None:
    """Raise `SaveError` unless every name is a plain relative path, each another file on every file system."""
    known = set(names)
    spelt: dict[str, str] = {}
    for name in sorted(known):
        parts = name.split("/")
        plain = (
            name.isprintable()  # no NUL, newline, lone surrogate, or mark that turns the text around
            and not set(name) & set("\\:")
            and len(parts) <= MAX_DEPTH
            and len(name.encode()) <= MAX_PATH
            and all(part not in ("", ".", "..") and len(part.encode()) <= MAX_PART for part in parts)
        )
        if not plain:
            msg = f"{label} has a file named {name!r:.80}"
            raise SaveError(msg, "Only plain relative paths are allowed.")
        for i in range(1, len(parts) + 1):
            path = "/".join(parts[:i])
            twin = spelt.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if twin != path or (i < len(parts) and path in known):
                msg = f"{label} has two files in one place: {twin!r:.80} and {name!r:.80}"
                raise SaveError(msg, "On some file systems one would replace the other.")


def length(sizes: Iterable[tuple[str, int]]) -> int:
    """How many bytes an archive of these members has: names and sizes in bytes, in order."""
    members: list[_Member] = []
    offset = 0
    for name, size in sizes:
        members.append(_Member(name, size, 0, offset))
        offset += len(members[-1].header()) + size
    return offset + len(_directory(members, offset))


class Writer:
    """Writes an archive to `file`, which can seek. It is whole after `finish`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._members, self._offset = file, list[_Member](), 0

    def add(self, name: str, size: int, blocks: Iterable[bytes]) -> None:
        """Add a member of exactly `size` bytes.

        Raises
        ------
        SaveError
            The blocks have more or fewer bytes.
        """
        start = self._offset
        self._file.write(_Member(name, size, 0, start).header())
        crc = written = 0
        for block in blocks:
            crc, written = zlib.crc32(block, crc), written + len(block)
            self._file.write(block)
        if written != size:
            msg = f"{name} changed while it was read"
            raise SaveError(msg, "Try again when nothing writes to it.")
        member = _Member(name, size, crc, start)
        self._offset = start + len(member.header()) + size
        self._file.seek(start)
        self._file.write(member.header())  # the checksum is known only now
        self._file.seek(self._offset)
        self._members.append(member)

    def finish(self) -> None:
        """Write the directory at the end."""
        self._file.write(_directory(self._members, self._offset))


class Reader:
    """Reads what `Writer` writes from `file`, from its first byte to its last; `label` names it in errors."""

    def __init__(self, file: IO[bytes], label: str) -> None:
        self._file, self._label, self._members, self._offset = file, label, list[_Member](), 0

    def first(self, name: str, limit: int) -> bytes:
        """The first member, whose size (at most `limit` bytes) nobody knows yet.

        Raises
        ------
        SaveError
            There is none of that name, or it is longer.
        """
        head = self._file.read(_HEAD.size)
        self._file.seek(0)
        if not head.startswith(_LOCAL) or len(head) < _HEAD.size:
            msg = "it is no zip archive"
            raise self._malformed(msg)
        size = _HEAD.unpack(head)[8]
        if size > limit:
            msg = f"{self._label} starts with {name} of {size} bytes; {limit} are allowed"
            raise SaveError(msg, "It was not written by nbdeploy.")
        return b"".join(self.blocks(name, size))

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of the next member, which must have this name and size; read them all.

        Raises
        ------
        SaveError
            Something else comes next, or its bytes do not match their checksum.
        """
        head = self._file.read(_HEAD.size)
        stated = _HEAD.unpack(head)[6] if len(head) == _HEAD.size else 0
        member = _Member(name, size, stated, self._offset)
        expected = member.header()
        if head + self._file.read(len(expected) - _HEAD.size) != expected:
            msg = f"{name} ({size} bytes) does not start at byte {self._offset}"
            raise self._malformed(msg)
        crc, left = 0, size
        while left:
            block = self._file.read(min(BLOCK, left))
            if not block:
                msg = f"it ends within {name}"
                raise self._malformed(msg)
            crc, left = zlib.crc32(block, crc), left - len(block)
            yield block
        if crc != stated:
            msg = f"the checksum of {name} does not match"
            raise self._malformed(msg)
        self._offset += len(expected) + size
        self._members.append(member)

    def finish(self) -> None:
        """Check that the directory is the one of the members that were read, and that nothing follows.

        Raises
        ------
        SaveError
            It is not.
        """
        expected = _directory(self._members, self._offset)
        if self._file.read(len(expected) + 1) != expected:
            msg = "its directory lists something else than it holds"
            raise self._malformed(msg)

    def _malformed(self, what: str) -> SaveError:
        return SaveError(
            f"{self._label} is damaged, or was not written by nbdeploy: {what}",
            "Export the version again with nbdeploy.export_version.",
        )


def _directory(members: list[_Member], offset: int) -> bytes:
    entries = b"".join(member.entry() for member in members)
    count, size = len(members), len(entries)
    wide = b""
    if offset >= _FULL or size >= _FULL or count >= 0xFFFF:
        wide = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        wide += struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
    short = min(count, 0xFFFF)
    return entries + wide + struct.pack(
        "<4sHHHHLLH", b"PK\5\6", 0, 0, short, short, min(size, _FULL), min(offset, _FULL), 0
    )  # fmt: skip
