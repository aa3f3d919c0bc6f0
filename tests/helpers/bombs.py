"""Pictures whose files make decoding expensive: what a small file can do to each decoder."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

from PIL import Image

from cluster.messages import Picture
from tests.helpers.pictures import bmp_rle, encoded, png_chunk, png_file, scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Entry = tuple[int, int, int, int | bytes]
"""The tag, the type and the count of a TIFF entry, and its value or the bytes that it points to."""

PARAM: Final = "messages[0].content[1].image_url.url"
SIDE: Final = 3000
SHORT: Final = 3
LONG: Final = 4
RATIONAL: Final = 5


@dataclass(frozen=True)
class Bomb:
    """A file and its size. ``is_refused`` says whether it must be refused as too expensive; otherwise it is decoded, or
    refused as broken, within its budget."""

    make: Callable[[], bytes] = field(repr=False)
    size: tuple[int, int] = (SIDE, SIDE)
    is_refused: bool = False

    def picture(self) -> Picture:
        """Returns the message that the media stage would send for it."""
        return Picture("0" * 64, made(self.make), *self.size, param=PARAM)


@cache
def made(make: Callable[[], bytes]) -> bytes:
    """Returns the file, which is made once."""
    return make()


def blank(file_format: str, side: int = SIDE, mode: str = "L", **options: object) -> bytes:
    """Returns a large picture of one colour in a small file."""
    return encoded(Image.new(mode, (side, side), 99), file_format, **options)


def scans(side: int, num_scans: int, file_format: str = "JPEG") -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    data = blank(file_format, side, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num_scans + data[-2:]


def png_with(*chunks: bytes, side: int = 64) -> bytes:
    """Returns a PNG with chunks before its pixels."""
    rows = b"".join(b"\0" + bytes(3 * side) for _ in range(side))
    return png_file(side, side, 8, 2, rows, before=b"".join(chunks))


def many_profiles() -> bytes:
    """Returns a PNG with colour profiles that each expand to a mebibyte."""
    return png_with(*[png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20), 9))] * 5000)


def many_texts() -> bytes:
    """Returns a PNG with texts that each expand to nearly a mebibyte and then turn out to be broken. Pillow does not
    count them."""
    broken = zlib.compress(bytes(2**20 - 100), 9)[:-4] + b"\xff\xff\xff\xff"
    return png_with(*[png_chunk(b"zTXt", b"a\0\0" + broken)] * 5000)


def endless_pixels() -> bytes:
    """Returns a PNG whose pixels expand to 128 MiB, of which it shows a little."""
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(2**20)) for _ in range(128)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def interlaced() -> bytes:
    """Returns a large interlaced PNG."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = b""
    for top, down, left, right in passes:
        width, height = len(range(left, SIDE, right)), len(range(top, SIDE, down))
        rows += (b"\0" + bytes(width)) * height
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def tags(num_tags: int, value_bytes: int, before: Iterable[Entry] = ()) -> bytes:
    """Returns a TIFF whose many tags all point to the same bytes, as two-byte numbers."""
    entries = list(before)
    start = 8 + 2 + 12 * (len(entries) + num_tags) + 4
    entries += [(1000 + number, SHORT, value_bytes // 2, start) for number in range(num_tags)]
    return tiff(entries) + bytes(value_bytes)


def tiff(entries: Iterable[Entry]) -> bytes:
    """Returns a TIFF of one page. Values that are bytes follow the directory."""
    entries = sorted(entries, key=lambda entry: entry[0])
    at, blobs = 8 + 2 + 12 * len(entries) + 4, b""
    packed = b""
    for tag, kind, count, value in entries:
        packed += struct.pack("<HHII", tag, kind, count, at + len(blobs) if isinstance(value, bytes) else value)
        blobs += value if isinstance(value, bytes) else b""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + blobs


def exif(num_fractions: int) -> bytes:
    """Returns EXIF tags that turn a picture, and one with many fractions. Pillow turns each into a Python object."""
    fractions = struct.pack("<II", 7, 9) * num_fractions
    return tiff([(274, SHORT, 1, 6), (1000, RATIONAL, num_fractions, fractions)])


def exif_png(num_fractions: int) -> bytes:
    """Returns a small PNG with many fractions in its EXIF tags."""
    return png_with(png_chunk(b"eXIf", exif(num_fractions)))


def grey_tiff(side: int, *more: Entry, compression: int = 1) -> bytes:
    """Returns a TIFF of bytes of grey with more tags, which say where the pixels are."""
    plain: list[Entry] = [(256, LONG, 1, side), (257, LONG, 1, side), (258, SHORT, 1, 8), (262, SHORT, 1, 1)]
    return tiff([*plain, (259, SHORT, 1, compression), (277, SHORT, 1, 1), *more])


def many_strips() -> bytes:
    """Returns a TIFF with a hundred thousand strips at one place."""
    num_strips = 100_000
    offsets, counts = struct.pack("<I", 8) * num_strips, struct.pack("<I", 1) * num_strips
    return grey_tiff(400, (278, LONG, 1, 1), (273, LONG, num_strips, offsets), (279, LONG, num_strips, counts))


def same_strips() -> bytes:
    """Returns a TIFF whose strips are all the whole file."""
    pixels, num_strips = zlib.compress(bytes(SIDE)), SIDE
    offsets, counts = struct.pack("<I", 8) * num_strips, struct.pack("<I", 10**6) * num_strips
    more: list[Entry] = [(278, LONG, 1, 1), (273, LONG, num_strips, offsets), (279, LONG, num_strips, counts)]
    return grey_tiff(SIDE, *more, compression=8) + pixels + bytes(10**6)


def huge_tile() -> bytes:
    """Returns a small TIFF with a tile of four gigapixels."""
    pixels = zlib.compress(bytes(2**20))
    more: list[Entry] = [(322, LONG, 1, 65_520), (323, LONG, 1, 65_520), (325, LONG, 1, len(pixels))]
    return grey_tiff(64, *more, (324, LONG, 1, 8 + 2 + 12 * 10 + 4), compression=8) + pixels


def jpeg_tiff() -> bytes:
    """Returns a TIFF whose only strip is a JPEG with repeated scans."""
    data = scans(SIDE, 1000)
    start = 8 + 2 + 12 * 9 + 4
    more: list[Entry] = [(278, LONG, 1, SIDE), (273, LONG, 1, start), (279, LONG, 1, len(data))]
    return grey_tiff(SIDE, *more, compression=7) + data


def gif_frames() -> bytes:
    """Returns a GIF of two thousand frames."""
    frame = Image.new("L", (64, 64), 5)
    more = [Image.new("L", (64, 64), level) for level in itertools.islice(itertools.cycle((6, 7)), 2000)]
    return encoded(frame, "GIF", save_all=True, append_images=more)


def gif_small_blocks() -> bytes:
    """Returns a large GIF whose pixels come in blocks of one byte."""
    data = blank("GIF", mode="P")
    at = data.index(b",\0\0\0\0") + 11
    head, file, pixels = data[:at], io.BytesIO(data[at:]), b""
    while count := file.read(1)[0]:
        pixels += file.read(count)
    return head + b"".join(b"\x01" + bytes([byte]) for byte in pixels) + b"\0;"


def webp_chunks() -> bytes:
    """Returns a WebP with hundreds of thousands of empty chunks, which the format allows."""
    data = encoded(scene(64, 64), "WEBP", lossless=True, exif=b"Exif\0\0" + tiff([(274, SHORT, 1, 1)]))
    body = data[12:] + (b"abcd" + bytes(4)) * 500_000
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_frames() -> bytes:
    """Returns a large animated WebP."""
    more = [Image.new("RGB", (1000, 1000), (level, 0, 0)) for level in range(20)]
    return encoded(more[0], "WEBP", save_all=True, append_images=more[1:], lossless=True)


BOMBS: Final = {
    "jpeg scans": Bomb(lambda: scans(SIDE, 1000), is_refused=True),
    "jpeg few scans": Bomb(lambda: scans(SIDE, 100)),
    "jpeg segments": Bomb(
        lambda: scans(64, 1).replace(b"\xff\xda", b"\xff\xfe\0\2" * 200_000 + b"\xff\xda", 1), (64, 64), is_refused=True
    ),
    "mpo scans": Bomb(lambda: scans(SIDE, 1000, "MPO"), is_refused=True),
    "png ratio": Bomb(lambda: blank("PNG")),
    "png ratio, 49 megapixels": Bomb(lambda: blank("PNG", 7000, "1"), (7000, 7000)),
    "png endless pixels": Bomb(endless_pixels, (64, 64)),
    "png interlaced": Bomb(interlaced),
    "png profiles": Bomb(many_profiles, (64, 64), is_refused=True),
    "png texts": Bomb(many_texts, (64, 64), is_refused=True),
    "png chunks": Bomb(lambda: png_with(png_chunk(b"abCd", b"") * 100_000), (64, 64), is_refused=True),
    "png exif": Bomb(lambda: exif_png(500_000), (64, 64), is_refused=True),
    "webp exif": Bomb(
        lambda: encoded(scene(64, 64), "WEBP", exif=b"Exif\0\0" + exif(500_000)), (64, 64), is_refused=True
    ),
    "webp frames": Bomb(webp_frames, (1000, 1000)),
    "webp chunks": Bomb(webp_chunks, (64, 64)),
    "webp ratio": Bomb(lambda: blank("WEBP", mode="RGB", lossless=True)),
    "gif frames": Bomb(gif_frames, (64, 64)),
    "gif ratio": Bomb(lambda: blank("GIF", mode="P")),
    "gif small blocks": Bomb(gif_small_blocks),
    "bmp rle": Bomb(lambda: bmp_rle(SIDE, SIDE, b"\0\2\xff\xff" * 100)),
    "bmp rle lines": Bomb(lambda: bmp_rle(1500, 1500, b"\1\7\0\0" * 1500), (1500, 1500)),
    "bmp rle, 49 megapixels": Bomb(lambda: bmp_rle(7000, 7000, b"\1\7\0\0" * 7000), (7000, 7000), is_refused=True),
    "tiff strips": Bomb(many_strips, (400, 400), is_refused=True),
    "tiff same strips": Bomb(same_strips, is_refused=True),
    "tiff tile": Bomb(huge_tile, (64, 64), is_refused=True),
    "tiff tags": Bomb(lambda: tags(4000, 10**6, [(256, LONG, 1, 64), (257, LONG, 1, 64)]), (64, 64), is_refused=True),
    "tiff jpeg scans": Bomb(jpeg_tiff, is_refused=True),
    "tiff lzma ratio": Bomb(lambda: blank("TIFF", compression="lzma")),
    "tiff fax ratio": Bomb(lambda: blank("TIFF", mode="1", compression="group4")),
}
"""Bombs of all formats that are read, by name."""

SLOW: Final = Bomb(lambda: exif_png(600_000), (64, 64))
"""A small picture that takes seven seconds of a core, if nothing bounds it."""
