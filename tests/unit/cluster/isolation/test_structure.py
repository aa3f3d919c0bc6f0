"""Files are refused for their structure, in time that grows with their bytes only."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cluster.errors import PictureTooExpensive
from cluster.isolation.structure import MAX_JPEG_SEGMENTS, MAX_TIFF_TAGS, check_structure
from cluster.messages import Picture
from tests.helpers.bombs import BOMBS, LONG, PARAM, blank, exif_png, tiff
from tests.helpers.pictures import BROKEN, CUT_HEADERS, NO_PICTURES, SAMPLES, encoded, scene

if TYPE_CHECKING:
    from tests.helpers.bombs import Entry

FILE_BYTES = 20 * 2**20
LARGEST_PIXELS = 50_000_000
LIMIT_S = 2.0
"""CPU seconds for the longest file on a slow core."""

WHAT = {
    "jpeg scans": "1005 scans",
    "jpeg segments": "segments",
    "mpo scans": "1005 scans",
    "png profiles": "5000 colour profiles",
    "png texts": "5000 compressed texts",
    "png chunks": "chunks",
    "bmp rle, 49 megapixels": "run-length encoded",
    "tiff strips": "100000 strips or tiles",
    "tiff same strips": "3000000000 bytes in strips",
    "tiff tile": "pixels in tiles",
    "tiff tags": "bytes in tags",
    "tiff jpeg scans": "1005 scans",
}


def picture(data: bytes, num_pixels: int = 64 * 64) -> Picture:
    """Returns the message that the media stage would send for a file."""
    return Picture("0" * 64, data, num_pixels, 1, param=PARAM)


@pytest.mark.parametrize("name", WHAT)
def test_a_needlessly_expensive_file_is_refused_by_name(name: str) -> None:
    """The refusal names the field, counts what is too much, and says what would be right."""
    bomb = BOMBS[name].picture()
    started_s = time.process_time()
    with pytest.raises(PictureTooExpensive, match=WHAT[name]) as caught:
        check_structure(bomb)
    assert time.process_time() - started_s < LIMIT_S
    assert caught.value.param == PARAM
    assert caught.value.message.endswith("save it again as a baseline JPEG or as a PNG.")
    assert caught.value.figures["asked"] > caught.value.figures["limit"]


@pytest.mark.parametrize("name", SAMPLES)
def test_ordinary_files_pass_at_any_size(name: str) -> None:
    """Every format and mode passes, also as the largest picture."""
    check_structure(picture(SAMPLES[name].data, SAMPLES[name].size[0] * SAMPLES[name].size[1]))
    check_structure(picture(SAMPLES[name].data, 46 * 34 if name.startswith("bmp") else LARGEST_PIXELS))


def test_ordinary_structures_of_large_files_pass() -> None:
    """A progressive JPEG of 50 megapixels, and TIFFs with many strips, with tiles or with JPEG inside, pass."""
    check_structure(picture(encoded(scene(300, 200), "JPEG", progressive=True), LARGEST_PIXELS))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"):
        data = blank("TIFF", mode="1" if compression == "group4" else "L", compression=compression)
        check_structure(picture(data, 3000 * 3000))
    tiles: list[Entry] = [(322, LONG, 1, 256), (323, LONG, 1, 256), (324, LONG, 1, 8), (325, LONG, 1, 9)]
    check_structure(picture(tiff([(256, LONG, 1, 20), (257, LONG, 1, 20), *tiles])))


@pytest.mark.parametrize("data", [*BROKEN.values(), *CUT_HEADERS.values(), *NO_PICTURES.values()])
def test_broken_files_are_left_to_the_decoder(data: bytes) -> None:
    """A file that is broken, cut short or of another format raises nothing here, wherever it is cut."""
    check_structure(picture(data))
    for length in range(0, min(len(data), 600), 7):
        check_structure(picture(data[:length]))


JPEG = SAMPLES["jpeg-progressive-RGB"].data
LAST_SCAN = JPEG.rindex(b"\xff\xda")


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:LAST_SCAN] + JPEG[LAST_SCAN:-2] + b"\xff\0" * (FILE_BYTES // 2) + b"\xff\xd9",
        JPEG[:LAST_SCAN] + JPEG[LAST_SCAN:-2] + b"\xff" * FILE_BYTES + b"\xff\xd9",
        JPEG[:LAST_SCAN] + JPEG[LAST_SCAN:-2] + b"\xff\xd0" * (FILE_BYTES // 2) + b"\xff\xd9",
        exif_png(FILE_BYTES // 8),
    ],
    ids=["stuffed bytes", "fill bytes", "restarts", "one long chunk"],
)
def test_the_longest_files_are_checked_soon(data: bytes) -> None:
    """A file of 20 MiB that is made to be read byte by byte takes little CPU time."""
    started_s = time.process_time()
    check_structure(picture(data))
    assert time.process_time() - started_s < LIMIT_S


def test_what_comes_after_the_first_picture_does_not_count() -> None:
    """The scans of later pictures in one file, and those of a thumbnail, are not decoded and do not count."""
    single = SAMPLES["jpeg-RGB"].data
    thumbnail = b"\xff\xe1" + (2000).to_bytes(2, "big") + (b"\xff\xda" * 999)
    check_structure(picture(single[:2] + thumbnail + single[2:] + BOMBS["jpeg scans"].picture().data, LARGEST_PIXELS))


def test_limits_are_exact() -> None:
    """A file at a limit passes, and one more segment or tag is refused."""
    comments = b"\xff\xfe\0\2"
    num_own = next(
        count
        for count in range(100)
        if is_refused(JPEG[:2] + comments * (MAX_JPEG_SEGMENTS - count) + JPEG[2:]) is False
    )
    assert num_own > 0
    assert is_refused(JPEG[:2] + comments * (MAX_JPEG_SEGMENTS - num_own + 1) + JPEG[2:])
    tags: list[Entry] = [(number, LONG, 1, 5) for number in range(1000, 1000 + MAX_TIFF_TAGS)]
    assert not is_refused(tiff(tags))
    assert is_refused(tiff([*tags, (999, LONG, 1, 5)]))


def is_refused(data: bytes) -> bool:
    """Returns True if a file is refused."""
    try:
        check_structure(replace(picture(data), width=1))
    except PictureTooExpensive:
        return True
    return False
