"""Which version a request goes to: an exact split of keys that stays what it was wherever its weights did.

A key falls into one of 10,000 slots by a keyed hash, and each slot belongs to a version. A change of weights moves as few
slots as it has to, and only between versions whose weights change: nobody else's answer changes its author. Which slots a
version gets is decided by a hash of the version and the slot, so one that leaves and comes back meets its old keys, as in
rendezvous hashing (Thaler and Ravishankar, 1998).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

SLOTS = 10_000  # a hundredth of a percent


def slot_of(salt: str, key: bytes) -> int:
    """The slot of a key. `salt` is the deployment's name: its canary's keys are not those of every other canary."""
    digest = blake2b(key, digest_size=8, person=_person(salt)).digest()
    return int.from_bytes(digest, "big") * SLOTS >> 64


def assign(weights: Mapping[str, float], before: Sequence[str] = ()) -> tuple[str, ...]:
    """Who has each slot.

    Parameters
    ----------
    weights : mapping
        Percent by version, at most two decimals; together 100.
    before : sequence of str
        Who had each slot until now; empty at first.

    Returns
    -------
    tuple of str
        `SLOTS` of them.
    """
    wanted = {version: round(weight * SLOTS / 100) for version, weight in weights.items()}
    slots: list[str] = list(before)
    if len(slots) != SLOTS:
        slots = [next(iter(wanted))] * SLOTS
    held = Counter(slots)
    surplus = {version: count - wanted.get(version, 0) for version, count in held.items()}
    for taker in sorted(wanted, key=_number):
        missing = wanted[taker] - held[taker]
        if missing <= 0:
            continue
        for slot in _preferences(taker):
            giver = slots[slot]
            if surplus.get(giver, 0) > 0:
                surplus[giver] -= 1
                slots[slot] = taker
                missing -= 1
                if not missing:
                    break
    return tuple(slots)


def pack(slots: Sequence[str]) -> dict[str, Any]:
    """`slots` as short JSON: a letter for each."""
    versions = sorted(set(slots), key=_number)
    letter = {version: chr(_FIRST + i) for i, version in enumerate(versions)}
    return {"versions": versions, "slots": "".join(letter[version] for version in slots)}


def unpack(packed: Mapping[str, Any]) -> tuple[str, ...]:
    """What `pack` was given."""
    versions = packed["versions"]
    return tuple(versions[ord(letter) - _FIRST] for letter in packed["slots"])


def key_of(value: Any, kind: str) -> bytes:
    """One value of a column as a key: the same for all ways in which one value can be written.

    Parameters
    ----------
    value
        As JSON has it.
    kind : str
        The column's; see `nbdeploy.signature.Column`.
    """
    if value is None or value != value:  # NaN
        return b"\0"
    if isinstance(value, int):
        return str(int(value)).encode()
    if isinstance(value, float):
        return str(int(value) if value.is_integer() else value).encode()
    if kind == "datetime":
        import pandas as pd

        moment = pd.Timestamp(value)
        moment = moment.tz_convert("UTC").tz_localize(None) if moment.tzinfo else moment
        # pandas counts nanoseconds in 64 bits, which hold six centuries only.
        return str(
            int(moment.to_datetime64().astype("datetime64[us]").astype("int64")) * 1000 + moment.nanosecond
        ).encode()
    return str(value).encode("utf-8", "surrogatepass")


_FIRST = 0x21  # the first printable letter; more versions than there are letters are not split at once


@lru_cache(maxsize=64)
def _preferences(version: str) -> tuple[int, ...]:
    """All slots, those first that `version` takes first."""
    name = version.encode()
    return tuple(sorted(range(SLOTS), key=lambda slot: blake2b(b"%d" % slot, digest_size=8, key=name[:64]).digest()))


@lru_cache(maxsize=256)
def _person(salt: str) -> bytes:
    return blake2b(salt.encode(), digest_size=16).digest()


def _number(version: str) -> tuple[int, str]:
    digits = version.removeprefix("v")
    return (int(digits) if digits.isdecimal() else 0), version
