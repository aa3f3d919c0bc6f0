"""Refuses files whose structure makes decoding needlessly expensive, without decoding them.

In: a ``Picture``. The checks read the structure once, so their cost grows with the bytes of the file only. A file that
is merely broken passes, because Pillow says better what is wrong with it.

GIF and WebP have no check. Only their first frame is decoded, in C, in time that grows with bytes and pixels; the media
stage bounds what comes before the first frame of a GIF.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from cluster.errors import PictureTooExpensive
from cluster.isolation.budget import ADVICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.messages import Picture

MAX_SCAN_PIXELS: Final = 2_500_000_000
"""The most scans times pixels of a JPEG. Each scan goes over the whole picture, even if it changes nothing. Ordinary
progressive files have about ten scans, so 50 million pixels may have five times as many."""
MAX_JPEG_SEGMENTS: Final = 8192
MAX_PNG_CHUNKS: Final = 65_536
"""Pillow reads chunks in Python, in about three microseconds each."""
MAX_PNG_TEXTS: Final = 256
"""The most compressed texts of a PNG. Pillow expands each of them to up to a mebibyte."""
MAX_RLE_WORK: Final = 16_000_000
"""The most pixels, and four times as many bytes, of a run-length encoded BMP. Pillow decodes these in Python."""
MAX_TIFF_TAGS: Final = 4096
MAX_TIFF_PIECES: Final = 32_768
"""The most strips or tiles of a TIFF."""
TILE_MARGIN_PIXELS: Final = 2**22
"""The tiles of a TIFF may have this many pixels more than four times the picture."""


def check_structure(picture: Picture) -> None:
    """Checks one file.

    Raises:
        PictureTooExpensive: Decoding the file would be needlessly expensive. The error names the request's field.
    """
    check = next((check for magic, check in CHECKS.items() if picture.data.startswith(magic)), None)
    try:
        if check is not None:
            check(picture.data, picture.num_pixels)
    except (struct.error, LookupError):
        return
    except PictureTooExpensive as error:
        error.param = picture.param
        raise


def _at_most(limit: int, count: int, what: str) -> None:
    if count > limit:
        message = f"The picture's file has {count} {what} where {limit} are allowed; {ADVICE}."
        raise PictureTooExpensive(message, asked=count, limit=limit)


def _jpeg(data: bytes, num_pixels: int) -> None:
    """Counts the scans and segments of the first picture; an MPO file has several."""
    at, num_segments, num_scans = 2, 0, 0
    while (found := JPEG_MARKER.search(data, at)) and (marker := data[found.end() - 1]) != END_OF_IMAGE:
        at = found.end()
        if marker not in BARE_MARKERS:
            at += struct.unpack_from(">H", data, at)[0]
        num_segments += 1
        num_scans += marker == START_OF_SCAN
        _at_most(MAX_JPEG_SEGMENTS, num_segments, "segments")
    _at_most(MAX_SCAN_PIXELS // num_pixels, num_scans, "scans")


JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker other than those inside of a scan."""
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
BARE_MARKERS: Final = frozenset({0x01, 0xD8})


def _png(data: bytes, num_pixels: int) -> None:  # noqa: ARG001 -- all checks take the same arguments
    at, num_chunks, num_profiles, num_texts = 8, 0, 0, 0
    while at < len(data):
        num_bytes, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        at += 12 + num_bytes
        num_chunks += 1
        num_profiles += kind == b"iCCP"
        num_texts += kind in (b"zTXt", b"iTXt")
        _at_most(MAX_PNG_CHUNKS, num_chunks, "chunks")
    _at_most(1, num_profiles, "colour profiles")
    _at_most(MAX_PNG_TEXTS, num_texts, "compressed texts")


def _bmp(data: bytes, num_pixels: int) -> None:
    (compression,) = struct.unpack_from("<I", data, 30)
    if data[14] >= BMP_INFO_BYTES and compression in (1, 2):
        _at_most(MAX_RLE_WORK, num_pixels + 4 * len(data), "run-length encoded pixels and bytes")


BMP_INFO_BYTES: Final = 40
"""The length of the oldest header that has a field for the compression."""


def _tiff(data: bytes, num_pixels: int) -> None:
    tags = _Tags(data)
    _at_most(len(data), tags.num_value_bytes, "bytes in tags")
    counts = tags.numbers(STRIP_BYTE_COUNTS) or tags.numbers(TILE_BYTE_COUNTS)
    num_pieces = max(len(counts), tags.count(STRIP_OFFSETS), tags.count(TILE_OFFSETS), 1)
    _at_most(MAX_TIFF_PIECES, num_pieces, "strips or tiles")
    tile_pixels = max(tags.numbers(TILE_WIDTH), default=0) * max(tags.numbers(TILE_LENGTH), default=0)
    _at_most(4 * num_pixels + TILE_MARGIN_PIXELS, tile_pixels * num_pieces, "pixels in tiles")
    if tags.numbers(COMPRESSION) not in ([], [UNCOMPRESSED]):
        # Strips that overlap would be read many times over. Some writers count a little too much.
        _at_most(2 * len(data), sum(counts), "bytes in strips or tiles")
    if set(tags.numbers(COMPRESSION)) & JPEG_COMPRESSIONS:
        _at_most(MAX_SCAN_PIXELS * num_pieces // num_pixels, data.count(b"\xff\xda"), "scans")


class _Tags:
    """The tags of the first page of a TIFF, as classic TIFF and BigTIFF have them, in either byte order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        is_big = data[2:4] in (b"\x2b\0", b"\0\x2b")
        offset, number, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
        self._offset = struct.Struct(self._order + offset)
        entries = struct.Struct(self._order + entry)
        (directory,) = self._offset.unpack_from(data, 8 if is_big else 4)
        (num_tags,) = struct.unpack_from(self._order + number, data, directory)
        _at_most(MAX_TIFF_TAGS, num_tags, "tags")
        first = directory + struct.calcsize(number)
        found = [entries.unpack_from(data, first + index * entries.size) for index in range(num_tags)]
        self._tags: dict[int, tuple[int, int, bytes]] = {tag: (kind, count, value) for tag, kind, count, value in found}
        self.num_value_bytes = sum(count * TIFF_KIND_BYTES.get(kind, 1) for _, kind, count, _ in found)

    def count(self, tag: int) -> int:
        """The number of values of a tag, 0 if it is missing."""
        return self._tags[tag][1] if tag in self._tags else 0

    def numbers(self, tag: int) -> list[int]:
        """The whole numbers of a tag, none if it is missing or of another type. It may have as many as there may be
        strips."""
        kind, count, value = self._tags.get(tag, (0, 0, b""))
        if kind not in TIFF_INTEGERS:
            return []
        _at_most(MAX_TIFF_PIECES, count, "strips or tiles")
        values = struct.Struct(f"{self._order}{count}{TIFF_INTEGERS[kind]}")
        is_inline = values.size <= len(value)
        return list(values.unpack_from(value) if is_inline else values.unpack_from(self._data, self._at(value)))

    def _at(self, value: bytes) -> int:
        (offset,) = self._offset.unpack(value)
        return int(offset)


TIFF_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""The types of whole numbers, as format characters of ``struct``."""
TIFF_KIND_BYTES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""The bytes of one value, for the types in which it has more than one."""
COMPRESSION: Final = 259
STRIP_OFFSETS: Final = 273
STRIP_BYTE_COUNTS: Final = 279
TILE_WIDTH: Final = 322
TILE_LENGTH: Final = 323
TILE_OFFSETS: Final = 324
TILE_BYTE_COUNTS: Final = 325
UNCOMPRESSED: Final = 1
JPEG_COMPRESSIONS: Final = frozenset({6, 7})

CHECKS: Final[dict[bytes, Callable[[bytes, int], None]]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"II+\0": _tiff,
    b"MM\0+": _tiff,
}
"""The check of a format, by the first bytes of the file."""
