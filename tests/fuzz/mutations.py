"""Broken picture files, made from good ones with a seed."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]

HEADER_BYTES: Final = 64
"""Most formats have their sizes and counts in so many first bytes."""
ODD_NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAX_MUTATIONS: Final = 3
MAX_BYTES: Final = 2**20


def mutated(number: int, seed: int, corpus: Sequence[bytes]) -> bytes:
    """Returns the broken file of a number. It depends on nothing but the arguments.

    Args:
        number: The number of the file in its run.
        seed: The seed of the run.
        corpus: Files that are not empty. One is broken, and others may give parts of themselves.
    """
    chance = random.Random(f"{seed}:{number}")
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, MAX_MUTATIONS)):
        chance.choice(MUTATIONS)(data, chance, corpus)
        if not data:
            data += b"\0"
    return bytes(data[:MAX_BYTES])


def _flip_bits(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    for __ in range(chance.choice((1, 1, 4, 32))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _truncate(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    del data[chance.randrange(len(data)) :]


def _splice(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Puts a part of another file over or into this one."""
    other = chance.choice(corpus)
    start = chance.randrange(len(other))
    part = other[start : start + chance.choice((4, 64, 1024, 65_536))]
    at = chance.randrange(len(data) + 1)
    data[at : at + (len(part) if chance.random() < 0.5 else 0)] = part


def _set_number(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    """Overwrites a size, a count or an offset in the header, or a number anywhere, with one that is odd."""
    pattern = chance.choice(("<H", ">H", "<I", ">I"))
    value = chance.choice((*ODD_NUMBERS, chance.getrandbits(16), chance.getrandbits(32)))
    packed = struct.pack(pattern, value & (0xFFFF if pattern[1] == "H" else 0xFFFFFFFF))
    at = chance.randrange(min(len(data), HEADER_BYTES) if chance.random() < 0.7 else len(data))
    data[at : at + len(packed)] = packed


def _shuffle_chunks(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    """Reorders, repeats or drops chunks of a PNG, segments of a JPEG, or blocks of any other file."""
    start, chunks = _chunks(bytes(data))
    if len(chunks) > 1:
        match chance.randrange(3):
            case 0:
                first, second = chance.sample(range(len(chunks)), 2)
                chunks[first], chunks[second] = chunks[second], chunks[first]
            case 1:
                chunks.insert(chance.randrange(len(chunks)), chance.choice(chunks))
            case _:
                del chunks[chance.randrange(len(chunks))]
        data[start:] = b"".join(chunks)


def _fill(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(data))
    num_bytes = min(chance.choice((1, 8, 256, 4096)), len(data) - at)
    data[at : at + num_bytes] = chance.choice((bytes(num_bytes), b"\xff" * num_bytes, chance.randbytes(num_bytes)))


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip_bits,
    _truncate,
    _splice,
    _set_number,
    _set_number,
    _shuffle_chunks,
    _fill,
)


def _chunks(data: bytes) -> tuple[int, list[bytes]]:
    """The index of the first chunk, and all chunks."""
    if data.startswith(b"\x89PNG"):
        return 8, _cut(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    if data.startswith(b"\xff\xd8"):
        return 2, _cut(data, 2, lambda at: 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
    if data.startswith(b"RIFF"):
        return 12, _cut(data, 12, lambda at: 8 + int.from_bytes(data[at + 4 : at + 8], "little"))
    return 0, _cut(data, 0, lambda _: max(1, len(data) // 16))


def _cut(data: bytes, at: int, num_bytes: Callable[[int], int]) -> list[bytes]:
    found = []
    while at < len(data):
        end = at + max(1, num_bytes(at))
        found.append(data[at:end])
        at = end
    return found
