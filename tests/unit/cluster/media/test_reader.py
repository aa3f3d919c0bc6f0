"""The media stage: data: URLs, headers and digests. Fetching has a file of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from cluster.admission.slots import Admission
from cluster.config import MediaConfig
from cluster.errors import BodyTooLarge, ForbiddenUrl, InvalidPicture, PictureTooLarge, PrismError, UnsupportedScheme
from cluster.media.reader import MediaReader
from cluster.messages import cache_salt
from tests.helpers.pictures import CUT_HEADERS, NO_PICTURES, SAMPLES, bare_png, data_url, encoded, png

if TYPE_CHECKING:
    from cluster.messages import Picture
PARAM = "messages[0].content[1].image_url.url"
REVISION = "0123456789abcdef"
DATA = SAMPLES["png-RGB"].data
URL = data_url(DATA)


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the system's certificate store by an empty one, because reading it takes longer than most of these
    tests."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)


async def no_lookup(host: str) -> list[str]:
    """A resolver that fails the test when it is called."""
    pytest.fail(f"looked up {host}")


async def read(url: str, *, revision: str = REVISION, salt: bytes = b"", **config: Any) -> Picture:
    """Reads the picture behind ``url`` with the given settings."""
    reader = MediaReader(MediaConfig(**config), revision=revision, lookup=no_lookup)
    try:
        return await reader.read(url, PARAM, salt=salt)
    finally:
        await reader.close()


async def test_inline_bytes_are_announced_too() -> None:
    """The bytes of a data: URL are announced to the callback before they are decoded."""
    reader = MediaReader(MediaConfig(), revision=REVISION, lookup=no_lookup)
    admission = Admission(1, len(DATA))
    place = admission.enter()
    await reader.read(URL, PARAM, place.hold)
    assert admission.num_bytes == len(DATA)
    with pytest.raises(BodyTooLarge):
        await reader.read(URL, PARAM, place.hold)
    assert admission.num_bytes == 0
    place.leave()
    await reader.read(URL, PARAM, admission.enter().hold)
    await reader.close()


async def refusal(kind: type[PrismError], url: str, **config: Any) -> PrismError:
    """Reads ``url``, checks that the error is well formed, and returns the error."""
    with pytest.raises(PrismError) as caught:
        await read(url, **config)
    error = caught.value
    assert type(error) is kind
    assert error.param == PARAM
    assert error.message.endswith(".")
    assert len(error.message) < 200
    return error


@pytest.mark.parametrize("name", SAMPLES)
async def test_every_format_is_read_to_its_bytes_and_size(name: str) -> None:
    """A data: URL of every format and mode gives its bytes, its width and height, and the path of its request
    field."""
    sample = SAMPLES[name]
    picture = await read(data_url(sample.data))
    assert picture.data == sample.data
    assert (picture.width, picture.height) == sample.size
    assert picture.param == PARAM


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:Image/PNG;Base64,",
        "data:image/jpeg;base64,",
        "data:image/png;name=cat.png;base64,",
    ],
)
async def test_the_declared_type_is_not_held_against_the_picture(head: str) -> None:
    """A data: URL may declare any image type, in any case and with parameters. The bytes decide the format."""
    assert (await read(head + base64.b64encode(DATA).decode())).data == DATA


@pytest.mark.parametrize("seed", range(300))
async def test_base64_is_read_as_by_python_itself(seed: int) -> None:
    """Base64 with a few changed, added or missing characters gives the bytes of Python's strict decoder, or a refusal
    if that decoder refuses or if padding is left over."""
    draw = random.Random(seed)
    chars = list(base64.b64encode(bare_png(20, 20) + draw.randbytes(draw.randrange(9))).decode())
    for _ in range(draw.randrange(3)):
        at = draw.randrange(60, len(chars) + 1)
        chars[at : at + draw.randrange(2)] = draw.choice(["", "A", "=", "-", "\n", "é", "/"])
    text = "".join(chars)
    try:
        expected = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        expected = b""
    if expected and len(base64.b64encode(expected)) == len(text):
        assert (await read("data:image/png;base64," + text)).data == expected
    else:
        await refusal(InvalidPicture, "data:image/png;base64," + text)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:", "base64"),
        ("data:,", "base64"),
        ("data:image/png", "base64"),
        ("data:image/png,%89PNG", "base64"),
        ("data:base64,AAAA", "base64"),
        ("data:image/png;base64;x,AAAA", "base64"),
        ("data:image/png;" + "x" * 2000 + ";base64,AAAA", "base64"),
        ("data:;base64,AAAA", "declare a picture"),
        ("data:text/plain;base64,aGVsbG8=", "declare a picture"),
        ("data:video/mp4;base64,AAAA", "declare a picture"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,=", "not valid base64"),
        ("data:image/png;base64,====", "not valid base64"),
        ("data:image/png;base64,AAA", "not valid base64"),
        ("data:image/png;base64,AAAAA", "not valid base64"),
        ("data:image/png;base64,AA==AAAA", "not valid base64"),
        ("data:image/png;base64,AAAA====", "not valid base64"),
        ("data:image/png;base64,AA\nAA", "not valid base64"),
        ("data:image/png;base64, AAAA", "not valid base64"),
        ("data:image/png;base64,AA-_", "not valid base64"),
        ("data:image/png;base64,AA%3D%3D", "not valid base64"),
        ("data:image/png;base64,AAAé", "not valid base64"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "not a picture"),
    ],
)
async def test_a_malformed_data_url_is_refused_with_what_would_be_right(url: str, words: str) -> None:
    """Each kind of malformed data: URL gives an error about its own mistake."""
    assert words in (await refusal(InvalidPicture, url)).message


@pytest.mark.parametrize("flaw", ["=", "-", "\n", "é"])
async def test_a_flaw_deep_inside_long_base64_is_found(flaw: str) -> None:
    """Invalid base64 in a later piece of a long URL is found."""
    chars = base64.b64encode(DATA + bytes(900_000)).decode()
    for at in (256 * 1024 - 1, 256 * 1024, 700_001):
        await refusal(InvalidPicture, "data:image/bmp;base64," + chars[:at] + flaw + chars[at + 1 :])


async def test_long_base64_is_decoded_whole_while_the_loop_goes_on() -> None:
    """A picture of several megabytes is decoded correctly, and the event loop keeps running during that time."""
    data = encoded(Image.frombytes("RGB", (1200, 1000), random.Random(1).randbytes(3_600_000)), "BMP")
    url = data_url(data, "image/bmp")
    reading = asyncio.ensure_future(read(url, max_picture_bytes=len(data)))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await reading).data == data
    assert turns > 10


@pytest.mark.parametrize("extra", [0, 1, 2])
async def test_base64_is_measured_before_it_is_decoded(extra: int) -> None:
    """The exact number of bytes is computed from the length of the base64, so that a URL that is too large is
    refused before it is decoded."""
    data = DATA + bytes(extra)
    assert (await read(data_url(data), max_picture_bytes=len(data))).data == data
    rubbish = "data:image/png;base64," + "*" * len(base64.b64encode(data))
    for url in (data_url(data), rubbish):
        error = await refusal(PictureTooLarge, url, max_picture_bytes=len(data) - 1)
        assert error.figures["limit_bytes"] == len(data) - 1
        assert len(data) <= error.figures["asked_bytes"] <= len(data) + 2


@pytest.mark.parametrize(
    "url",
    [
        *("", ":", "cat.png", "a" * 9000, "//example.com/cat.png", "http://example.com/cat.png", "HTTP://example.com"),
        *("file:///etc/passwd", "ftp://example.com/cat.png", "gopher://x/", "javascript:alert(1)", "blob:https://x/"),
        " https://example.com/",
    ],
)
async def test_other_schemes_are_refused(url: str) -> None:
    """A URL that is neither data: nor https: is refused without any lookup."""
    assert "data:" in (await refusal(UnsupportedScheme, url)).message


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://",
            "https:///cat.png",
            "https:cat.png",
            "https://user:secret@example.com/",
            "https://user@example.com/",
        ),
        *(
            "https://[::1/",
            "https://[1.2.3.4]/",
            "https://h\x00/",
            "https://h\n/",
            "https://h:port/",
            "https://①②⑦.⓪.⓪.①/",
        ),
        *("https://example.com/" + "a" * 9000, "https://example.com\\@localhost/"),
    ],
)
async def test_an_https_url_that_is_wrong_by_itself_is_refused(url: str) -> None:
    """A malformed URL, one without a host and one with credentials are refused before any lookup. The error does not
    repeat the URL."""
    error = await refusal(ForbiddenUrl, url)
    assert "secret" not in error.message


@pytest.mark.parametrize("data", [*NO_PICTURES.values(), *CUT_HEADERS.values()], ids=[*NO_PICTURES, *CUT_HEADERS])
async def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    """Text, formats that Prism does not read and headers that are cut off are refused."""
    await refusal(InvalidPicture, data_url(data))


async def test_more_pixels_than_allowed_are_refused_with_the_figures() -> None:
    """The limit on pixels is exact and independent of Pillow's. The error keeps its figures when it is pickled."""
    assert (await read(data_url(png(50, 40)), max_picture_pixels=2000)).width == 50
    error = await refusal(PictureTooLarge, data_url(png(50, 40)), max_picture_pixels=1999)
    assert error.figures == {"asked_pixels": 2000, "limit_pixels": 1999}
    assert pickle.loads(pickle.dumps(error)).to_openai() == error.to_openai()
    bomb = await refusal(PictureTooLarge, data_url(bare_png(65535, 65535)))
    assert bomb.figures["asked_pixels"] == 65535**2


async def test_a_picture_may_be_elongated_up_to_the_models_bound() -> None:
    """An aspect ratio of 200:1 is accepted in both directions, and 201:1 is refused. A picture without pixels is
    refused too."""
    for size in ((200, 1), (1, 200)):
        assert (await read(data_url(png(*size)))).width == size[0]
    for size in ((201, 1), (1, 201)):
        assert "200" in (await refusal(InvalidPicture, data_url(png(*size)))).message
    for size in ((0, 5), (5, 0)):
        assert "has pixels" in (await refusal(InvalidPicture, data_url(bare_png(*size)))).message


def digest_of(data: bytes, salt: bytes = b"") -> str:
    """Computes the expected digest of a picture."""
    return hashlib.sha256(REVISION.encode() + b"\0" + hashlib.sha256(salt).digest() + data).hexdigest()


async def test_the_digest_covers_the_bytes_the_revision_and_the_salt() -> None:
    """The digest is a sha256 in 64 hex digits. It changes with the bytes, the encoder's revision and the salt."""
    digest = (await read(URL)).digest
    assert digest == digest_of(DATA)
    assert (await read(URL, salt=b"tenant")).digest == digest_of(DATA, b"tenant")
    assert (await read(URL, salt=cache_salt({"cache_salt": "\ud800"}))).digest == digest_of(DATA, b"\xed\xa0\x80")
    assert digest == (await read(data_url(DATA, "image/other"))).digest
    assert digest != (await read(URL, revision="fedcba9876543210")).digest
    assert digest != (await read(data_url(DATA + b"\0"))).digest


async def test_a_large_picture_is_digested_like_a_small_one() -> None:
    """The digest is the same whether it is computed in the loop or in a thread."""
    data = DATA + bytes(600_000)
    assert (await read(data_url(data))).digest == digest_of(data)
