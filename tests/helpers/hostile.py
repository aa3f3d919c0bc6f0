"""Hostile URLs and servers, each with the error that it must become."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Final

from cluster.errors import (
    FetchFailed,
    ForbiddenUrl,
    InvalidPicture,
    PictureTooLarge,
    PictureUnavailable,
    UnsupportedScheme,
)
from tests.helpers.pictures import SAMPLES
from tests.helpers.sites import ok, redirect, reply, stall, stall_in_body, trickle

if TYPE_CHECKING:
    from cluster.errors import PrismError
    from tests.helpers.sites import Reply

DATA: Final = SAMPLES["jpeg-RGB"].data
LIMIT_BYTES: Final = 200_000
"""The most bytes of a picture, in the tests with these servers."""

PRIVATE_HOSTS: Final = [
    *("127.0.0.1", "[::1]", "0x7f000001", "2130706433", "127.1", "127.0.1", "0177.0.0.1", "0x7f.1", "0.0.0.0", "0"),
    *("017700000001", "127.0.0.1.", "0x7F.0x0.0x0.0x1", "00000177.0.0.1", "3232235777", "0xA9FEA9FE", "169.254.43518"),
    *("localhost", "LOCALHOST.", "a.localhost", "%31%32%37.0.0.1", "127。0。0。1", "１２７.0.0.1", "①②⑦.⓪.⓪.①"),
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16", "[fd00:ec2::254]"),
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "224.0.0.1"),
    *(
        "[::]",
        "[::ffff:10.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:a9fe:a9fe]",
        "[::127.0.0.1]",
        "[::ffff:0:7f00:1]",
    ),
    *("[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]"),
    *("[64:ff9b::a00:1]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::808:808]", "[2002:a00:1::1]", "[2002:7f00:1::]"),
    *("[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[2606:4700::1111%25lo]", "192.88.99.1", "203.0.113.1"),
]
"""Hosts that are, or that some library takes for, an address inside a network."""

ANSWERS: Final[dict[str, list[str]]] = {
    "loopback.example": ["127.0.0.1"],
    "mixed.example": ["93.184.216.34", "10.0.0.1"],
    "mixed-six.example": ["93.184.216.34", "fd00::1"],
    "metadata.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "sixtofour.example": ["2002:7f00:1::"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "multicast.example": ["ff02::1"],
    "none.example": [],
}
"""The answers of a hostile name server. None of these names may be fetched from."""

URLS: Final[list[tuple[str, type[PrismError]]]] = [
    ("https://user:secret@pictures.example/", ForbiddenUrl),
    ("https://pictures.example@127.0.0.1/", ForbiddenUrl),
    ("https://127.0.0.1:443@pictures.example/", ForbiddenUrl),
    ("https://:@127.0.0.1/", ForbiddenUrl),
    ("https://pictures.example%40127.0.0.1/", ForbiddenUrl),
    ("https://pictures.example\\@127.0.0.1/", ForbiddenUrl),
    ("https://127.0.0.1\\.pictures.example/", ForbiddenUrl),
    ("https://pictures.example%00.127.0.0.1/", ForbiddenUrl),
    ("https://127.0.0.1%2f.pictures.example/", ForbiddenUrl),
    ("https://127.0.0.1\t/", ForbiddenUrl),
    ("https://127.0.0.1\r\nHost: pictures.example/", ForbiddenUrl),
    ("https://127.0.0.1 .pictures.example/", ForbiddenUrl),
    ("https://[::1/", ForbiddenUrl),
    ("https://[127.0.0.1]/", ForbiddenUrl),
    ("https://[v1.x]/", ForbiddenUrl),
    ("https://127.0.0.1:65536/", ForbiddenUrl),
    ("https://127.0.0.1:-1/", ForbiddenUrl),
    ("https://127.0.0.1:22/", ForbiddenUrl),
    ("https://xn--/", ForbiddenUrl),
    ("https://xn--a.example/", ForbiddenUrl),
    ("https://loc\u00adalhost/", ForbiddenUrl),
    ("https://ʟocalhost/", ForbiddenUrl),
    ("https://" + 64 * "a" + ".example/", ForbiddenUrl),
    ("https://" + 9000 * "a" + ".example/", ForbiddenUrl),
    ("https://" + 300 * "a." + "example/", ForbiddenUrl),
    ("https://..../", ForbiddenUrl),
    ("https:///", ForbiddenUrl),
    ("https:127.0.0.1/", ForbiddenUrl),
    ("http://pictures.example/", UnsupportedScheme),
    ("file:///etc/passwd", UnsupportedScheme),
    ("gopher://127.0.0.1:6379/_INFO", UnsupportedScheme),
    ("unix:///var/run/docker.sock", UnsupportedScheme),
]
"""URLs with tricks besides the host's spelling."""

LOCATIONS: Final[dict[str, type[PrismError]]] = {
    "https://10.0.0.1/": ForbiddenUrl,
    "https://[::1]/": ForbiddenUrl,
    "//169.254.169.254/latest/meta-data": ForbiddenUrl,
    "https://0x7f000001/": ForbiddenUrl,
    "https://loopback.example/": ForbiddenUrl,
    "https://user:secret@localhost/": ForbiddenUrl,
    "http://localhost/": UnsupportedScheme,
    "file:///etc/passwd": UnsupportedScheme,
    "data:image/png;base64,AAAA": UnsupportedScheme,
    "https://localhost:port/": FetchFailed,
    "https://[::1/": FetchFailed,
    "/" + 9000 * "a": ForbiddenUrl,
}
"""Places to which a trusted server redirects."""


async def pour_chunks(writer: asyncio.StreamWriter) -> None:
    """Sends large chunks without end."""
    await _repeat(writer, reply("200 OK", b"", "Transfer-Encoding: chunked"), b"10000\r\n" + bytes(0x10000) + b"\r\n")


async def pour_without_length(writer: asyncio.StreamWriter) -> None:
    """Sends a body without end to a connection that only its end would end."""
    await _repeat(writer, b"HTTP/1.0 200 OK\r\n\r\n", bytes(0x10000))


async def pour_tiny_chunks(writer: asyncio.StreamWriter) -> None:
    """Sends chunks of one byte without end, as fast as it can."""
    await _repeat(writer, reply("200 OK", b"", "Transfer-Encoding: chunked"), 1000 * b"1\r\nx\r\n")


async def pour_headers(writer: asyncio.StreamWriter) -> None:
    """Sends headers without end."""
    await _repeat(writer, b"HTTP/1.1 200 OK\r\n", b"X-More: " + bytes(1000).hex().encode() + b"\r\n")


async def pour_trailers(writer: asyncio.StreamWriter) -> None:
    """Sends trailers without end after an empty chunked body."""
    await _repeat(writer, reply("200 OK", b"0\r\n", "Transfer-Encoding: chunked"), 100 * b"X-More: more\r\n")


async def pour_continues(writer: asyncio.StreamWriter) -> None:
    """Sends ``100 Continue`` without end."""
    await _repeat(writer, b"", 100 * b"HTTP/1.1 100 Continue\r\n\r\n")


async def trickle_headers(writer: asyncio.StreamWriter) -> None:
    """Sends its head byte by byte."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _repeat(writer: asyncio.StreamWriter, head: bytes, more: bytes) -> None:
    writer.write(head)
    while not writer.is_closing():
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0)  # drain does not yield by itself while there is room


def _ends(answer: bytes) -> Reply:
    """Sends bytes and closes the connection."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    return send


async def promise_a_huge_chunk(writer: asyncio.StreamWriter) -> None:
    """Announces a chunk of 16 exabytes and sends two bytes of it."""
    writer.write(reply("200 OK", b"ffffffffffffffff\r\n\xff\xd8", "Transfer-Encoding: chunked"))
    await writer.drain()
    await asyncio.Event().wait()


BOMB: Final = gzip.compress(bytes(10_000_000))

SLOW: Final[dict[str, Reply]] = {
    "silent": stall,
    "silent in the body": stall_in_body,
    "slow body": trickle,
    "slow head": trickle_headers,
    "endless 100s": pour_continues,
    "huge chunk": promise_a_huge_chunk,
}
"""Servers that only the time limit ends."""


SERVERS: Final[dict[str, tuple[bytes | Reply, type[PrismError]]]] = {
    **{name: (behaviour, PictureUnavailable) for name, behaviour in SLOW.items()},
    "hangs up": (_ends(b""), PictureUnavailable),
    "no HTTP": (_ends(b"rubbish\r\n\r\n"), PictureUnavailable),
    "HTTP/0.9": (_ends(DATA), PictureUnavailable),
    "HTTP/2": (_ends(b"\0\0\x12\x04\0\0\0\0\0" + bytes(18)), PictureUnavailable),
    "cut short": (_ends(reply("200 OK", b"\xff\xd8", "Content-Length: 99")), PictureUnavailable),
    "cut in a chunk": (_ends(reply("200 OK", b"9\r\nab", "Transfer-Encoding: chunked")), PictureUnavailable),
    "length is no number": (_ends(reply("200 OK", b"", "Content-Length: x")), PictureUnavailable),
    "negative length": (_ends(reply("200 OK", b"", "Content-Length: -1")), PictureUnavailable),
    "two lengths": (_ends(reply("200 OK", b"", "Content-Length: 1", "Content-Length: 2")), PictureUnavailable),
    "length of 5,000 digits": (_ends(reply("200 OK", b"", "Content-Length: " + 5000 * "9")), PictureUnavailable),
    "bad chunk size": (_ends(reply("200 OK", b"x\r\n", "Transfer-Encoding: chunked")), PictureUnavailable),
    "long chunk extension": (
        _ends(reply("200 OK", b"1;" + 300_000 * b"x", "Transfer-Encoding: chunked")),
        PictureUnavailable,
    ),
    "gzip as transfer": (_ends(reply("200 OK", BOMB, "Transfer-Encoding: gzip")), PictureUnavailable),
    "zero byte in a header": (_ends(reply("200 OK", b"", "X: \0")), PictureUnavailable),
    "header of 300 kB": (_ends(reply("200 OK", b"", "X: " + 300_000 * "x")), PictureUnavailable),
    "endless headers": (pour_headers, PictureUnavailable),
    "endless trailers": (pour_trailers, PictureUnavailable),
    "bad status": (_ends(b"HTTP/1.1 2000 OK\r\n\r\n"), PictureUnavailable),
    "length beyond the limit": (ok(bytes(LIMIT_BYTES + 1)), PictureTooLarge),
    "length beyond 64 bits": (reply("200 OK", b"", f"Content-Length: {2**64}"), PictureTooLarge),
    "endless chunks": (pour_chunks, PictureTooLarge),
    "endless without length": (pour_without_length, PictureTooLarge),
    "too many pixels": (
        ok(b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452000f4240000f42400802000000")),
        PictureTooLarge,
    ),
    "tiny chunks": (pour_tiny_chunks, FetchFailed),
    "gzip bomb": (ok(BOMB, "Content-Encoding: gzip"), FetchFailed),
    "brotli": (ok(BOMB, "Content-Encoding: br"), FetchFailed),
    "two encodings": (ok(BOMB, "Content-Encoding: identity, gzip"), FetchFailed),
    "upgrade": (reply("101 Switching Protocols", b"", "Upgrade: websocket", "Connection: Upgrade"), PictureUnavailable),
    "redirects to itself": (redirect("/"), FetchFailed),
    "redirects nowhere": (reply("302 Found", b"", "Content-Length: 0"), FetchFailed),
    "not found": (reply("404 Not Found", b"", "Content-Length: 0"), FetchFailed),
    "busy": (reply("503 Later", b"", "Content-Length: 0"), PictureUnavailable),
    "gzip as a picture": (ok(BOMB), InvalidPicture),
    "a page": (ok(b"<title>Log in</title>", "Content-Type: image/png"), InvalidPicture),
    "SVG": (ok(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Content-Type: image/svg+xml"), InvalidPicture),
    "HTTP/1.0 without headers": (_ends(b"HTTP/1.0 200\r\n\r\n<html>"), InvalidPicture),
    "length below the body": (_ends(reply("200 OK", DATA, "Content-Length: 9")), InvalidPicture),
    "empty": (ok(b""), InvalidPicture),
}
"""Behaviours of a server that is reached over TLS with a valid certificate."""
