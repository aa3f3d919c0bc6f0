"""The size of a picture, read from its header."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from cluster.errors import InvalidPicture
from cluster.media.header import MAX_STEPS, read_size
from cluster.preprocess import PILLOW_FORMATS
from tests.helpers.pictures import SAMPLES, encoded, png, scene


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the system's certificate store by an empty one, because reading it takes longer than most of these
    tests."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_headers_are_read_as_pillow_reads_them_or_refused(name: str) -> None:
    """A damaged header gives InvalidPicture or the size that Pillow reads, never another size."""
    draw = random.Random(name)
    for _ in range(60):
        data = bytearray(SAMPLES[name].data)
        for _ in range(draw.choice((1, 1, 3))):
            data[draw.randrange(min(len(data), draw.choice((32, 200))))] = draw.choice((0, 1, 255, draw.randrange(256)))
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        try:
            size = read_size(bytes(data))
        except InvalidPicture:
            continue
        assert size[0] > 0
        assert size[1] > 0
        if (theirs := _pillow_size(bytes(data))) is not None:
            assert sorted(theirs) == sorted(size)


def _pillow_size(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            return image.size
    except Exception:  # noqa: BLE001 - Pillow's decoders raise nearly anything on broken bytes
        return None


def _tiff(num_tags: int) -> bytes:
    tags = b"".join(struct.pack("<HHII", 1000 + index, 4, 1, 0) for index in range(num_tags))
    size = struct.pack("<HHIIHHII", 256, 4, 1, 9, 257, 4, 1, 9)
    return b"II*\0" + struct.pack("<IH", 8, num_tags + 2) + tags + size


@pytest.mark.parametrize(
    "make",
    [
        lambda count: b"\xff\xd8" + b"\xff\xfe\0\x02" * count + b"\xff\xc0\0\x0b\x08\0\x09\0\x09\x01\x01\x11\0",
        lambda count: b"\xff\xd8" + b"\xff" * count + b"\xff\xc0\0\x0b\x08\0\x09\0\x09\x01\x01\x11\0",
        lambda count: b"GIF89a\x09\0\x09\0\0\0\0!\xfe" + b"\x01a" * count + b"\0,\0\0\0\0\x09\0\x09\0\0",
        lambda count: b"GIF89a\x09\0\x09\0\0\0\0" + b"\0" * count + b",\0\0\0\0\x09\0\x09\0\0",
        _tiff,
    ],
    ids=["jpeg segments", "jpeg fill bytes", "gif comments", "gif padding", "tiff tags"],
)
def test_metadata_is_walked_past_for_a_bounded_time_only(make: Any) -> None:
    """The size behind a few hundred segments, blocks or tags is found. A file with more than the limit is refused."""
    assert read_size(make(500)) == (9, 9)
    for count in (MAX_STEPS, 3_000_000 if make is not _tiff else 60_000):
        with pytest.raises(InvalidPicture):
            read_size(make(count))


def test_compressed_metadata_is_not_unpacked() -> None:
    """The compressed profiles of a PNG are skipped, so gigabytes of them cost nothing."""
    profile = b"x\0\0" + zlib.compress(bytes(1 << 20), 9)
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    data = png(9, 9)
    assert read_size(data[:33] + chunk * 4000 + data[33:]) == (9, 9)


def test_a_bmp_may_be_stored_from_the_top_or_with_the_oldest_header() -> None:
    """A BMP with a negative height, or with the 16-bit header of OS/2, is read."""
    bmp = encoded(scene(), "BMP")
    assert read_size(bmp[:22] + struct.pack("<i", -34) + bmp[26:]) == (46, 34)
    assert read_size(bmp[:14] + struct.pack("<IHH", 12, 46, 34) + bmp[22:]) == (46, 34)


def test_a_jpegs_tables_are_not_taken_for_its_frame() -> None:
    """Huffman and arithmetic tables before the frame of a JPEG are skipped, although their markers lie in the same
    range."""
    jpeg = encoded(scene(), "JPEG")
    for marker in (b"\xff\xc4", b"\xff\xcc"):
        assert read_size(jpeg[:2] + marker + b"\0\x09" + bytes(7) + jpeg[2:]) == (46, 34)


def test_a_tiff_may_point_beyond_anything() -> None:
    """A TIFF directory behind the end of the file, or at an impossible offset, is an invalid header and causes no
    crash."""
    for offset in (10**6, 2**63, 2**64 - 1):
        with pytest.raises(InvalidPicture, match="cut short"):
            read_size(b"II+\0\x08\0\0\0" + struct.pack("<Q", offset) + bytes(64))
