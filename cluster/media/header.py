"""Reads a picture's width and height from its header, in bounded time for any input.

In: the bytes of a picture file. Out: its (width, height) in pixels.

This code runs in the Router's event loop, so it does not use Pillow. ``Image.open`` reads no pixels, but it reads all
metadata, and a malicious file can make that expensive. Measured (files of 20 MiB made for the purpose): compressed
profiles in a PNG → 13 s of a core; comments in a GIF → 900 MiB of memory, and nearly a second in which no other thread
runs. A child of the Preprocessor later opens the file with Pillow, within a budget, and refuses it if Pillow finds
another size.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from cluster.errors import InvalidPicture
from cluster.messages import PICTURE_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

Size = tuple[int, int]
"""(width, height) in pixels."""

MAX_STEPS: Final = 4096
"""The most segments, blocks or tags that are skipped on the way to the size. Ordinary files have a few dozen."""


def read_size(data: bytes) -> Size:
    """The (width, height) of a picture from the header of its file, in pixels as stored, before EXIF orientation.

    Args:
        data: The bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF.

    Raises:
        InvalidPicture: The bytes are in none of these formats, the header is broken, or the picture has no pixels.
    """
    reader = next((reader for magic, reader in READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise InvalidPicture(f"The bytes are not a picture; send a {PICTURE_FORMATS}.")
    try:
        width, height = reader(data)
    except (struct.error, LookupError, ValueError, OverflowError):
        raise InvalidPicture("The picture's header is broken or cut short; send the whole file.") from None
    if width < 1 or height < 1:
        raise InvalidPicture(f"The picture is {width} x {height} pixels; send one that has pixels.")
    return width, height


def _png(data: bytes) -> Size:
    if data[12:16] != b"IHDR":
        raise ValueError
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _jpeg(data: bytes) -> Size:
    at = 2
    for _ in range(MAX_STEPS):
        at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in BARE_MARKERS:
            at += 2
        elif marker in FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ValueError


def _webp(data: bytes) -> Size:
    kind = data[8:16]
    if kind == b"WEBPVP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError


def _gif(data: bytes) -> Size:
    """The size of a GIF's screen, enlarged if the first frame reaches beyond the screen."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_STEPS):
        byte = data[at]
        if in_extension:
            at += 1 + byte
            in_extension = byte > 0
        elif byte == ord("!"):
            at += 2
            in_extension = True
        elif byte == ord(","):
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        else:
            at += 1
    raise ValueError


def _bmp(data: bytes) -> Size:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # a negative height means that the top row is stored first


def _tiff(data: bytes) -> Size:
    """The size in the tags of the first page, for classic TIFF and BigTIFF in either byte order."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"\x2b\0", b"\0\x2b"):
        (directory,) = struct.unpack_from(order + "Q", data, 8)
        (num_tags,) = struct.unpack_from(order + "Q", data, directory)
        first, entry = directory + 8, struct.Struct(order + "HHQ8s")
    else:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        (num_tags,) = struct.unpack_from(order + "H", data, directory)
        first, entry = directory + 2, struct.Struct(order + "HHI4s")
    sizes: dict[int, int] = {}
    for index in range(min(num_tags, MAX_STEPS)):
        tag, kind, count, value = entry.unpack_from(data, first + index * entry.size)
        if tag in (WIDTH_TAG, HEIGHT_TAG) and tag not in sizes:
            if count != 1:
                raise ValueError
            (sizes[tag],) = struct.unpack_from(order + INTEGER_KINDS[kind], value)
    return sizes[WIDTH_TAG], sizes[HEIGHT_TAG]


READERS: Final[dict[bytes, Callable[[bytes], Size]]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"RIFF": _webp,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"II+\0": _tiff,
    b"MM\0+": _tiff,
}
"""The function that reads the size, by the first bytes of the file."""

FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of JPEG's start-of-frame segments, which hold the size."""

BARE_MARKERS: Final = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""The JPEG markers that are not followed by a length."""

WIDTH_TAG: Final = 256
HEIGHT_TAG: Final = 257
INTEGER_KINDS: Final = {3: "H", 4: "I", 16: "Q"}
"""The types that a TIFF may use for a size (SHORT, LONG and LONG8), as format characters of ``struct``."""
