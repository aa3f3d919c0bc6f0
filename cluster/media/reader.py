"""Media stage: turns the URL of a picture into bounded bytes with a size and a digest.

In: the ``data:`` or ``https:`` URL of one picture, and the path of the request's field that holds it. Out: a
    ``Picture``. This stage runs in the Router's event loop and never blocks it: work that grows with the picture runs
    in threads, in short steps.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import pybase64

from cluster.errors import InvalidPicture, InvalidRequest, PictureTooLarge, PictureUnavailable, UnsupportedScheme
from cluster.media.fetch import Fetcher
from cluster.media.header import read_size
from cluster.messages import MAX_ASPECT_RATIO, PICTURE_FORMATS, Picture

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpcore2

    from cluster.config import MediaConfig
    from cluster.media.header import Size
    from cluster.media.names import Lookup
    from cluster.messages import Digest

INLINE_BYTES: Final = 256 * 1024
"""Work on at most this many bytes runs in the event loop, because a thread switch would cost more."""
BASE64_CHUNK_CHARS: Final = 256 * 1024
"""The characters that are decoded at a time, a multiple of 4. The decoder holds the GIL while it works on them."""
MAX_DATA_HEADER_CHARS: Final = 1024

Args = ParamSpec("Args")
Result = TypeVar("Result")


def _unbounded(_: int) -> None:
    """Accepts any number of bytes."""


class MediaReader:
    """Reads the pictures of requests.

    Args:
        config: Limits on pictures, and the hosts that they may come from.
        revision: The fingerprint of the encoder and of its processor's settings; it is part of every digest.
        lookup: Replaces the system's look-up of host names; for tests.
        network: Opens the connections for https: URLs, after their address has been checked; for tests.
    """

    def __init__(
        self,
        config: MediaConfig,
        *,
        revision: str,
        lookup: Lookup | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._config = config
        self._revision = revision
        self._fetcher = Fetcher(config, lookup=lookup, network=network)

    async def read(
        self, url: str, param: str, hold: Callable[[int], None] = _unbounded, *, salt: bytes = b""
    ) -> Picture:
        """Fetches or decodes one picture, reads its header, and computes its digest.

        Args:
            url: ``data:image/…;base64,…`` or ``https://…``.
            param: The path of the request's field that holds the URL; every error names it.
            hold: Called with a number of bytes before that many more are held; it may refuse by raising.
            salt: Part of the digest, so that requests with another salt never find what is cached of this picture.

        Raises:
            UnsupportedScheme: The URL is neither data: nor https:.
            ForbiddenUrl: The URL leads to an address that Prism does not fetch from.
            FetchFailed: The picture could not be fetched.
            PictureUnavailable: The picture could not be fetched now; a later try can succeed.
            InvalidPicture: The bytes are not a picture, or the picture is too elongated.
            PictureTooLarge: The picture has too many bytes or pixels.
        """
        try:
            data = await self._bytes(url, hold)
            width, height = self._bounded(read_size(data))
        except (InvalidRequest, PictureUnavailable) as error:
            error.param = param
            raise
        digest = await _off_loop(len(data), _digest, data, self._revision, salt)
        return Picture(digest, data, width, height, param)

    async def close(self) -> None:
        """Closes the idle connections, and ends all look-ups of names."""
        await self._fetcher.close()

    async def _bytes(self, url: str, hold: Callable[[int], None]) -> bytes:
        scheme = url[: url.find(":", 0, 16) + 1].lower()
        if scheme == "data:":
            start = _payload_start(url)
            self._check_base64_size(url, start)
            hold(_num_bytes(url, start))
            return await _off_loop(len(url), _from_base64, url, start)
        if scheme == "https:":
            return await self._fetcher.fetch(url, hold)
        raise UnsupportedScheme("A picture's URL begins with data:image/ or https://; send it as one of these.")

    def _check_base64_size(self, url: str, start: int) -> None:
        asked_bytes = _num_bytes(url, start)
        if asked_bytes > self._config.max_picture_bytes:
            message = f"The picture has {asked_bytes} bytes; {self._config.max_picture_bytes} are allowed."
            raise PictureTooLarge(message, asked_bytes=asked_bytes, limit_bytes=self._config.max_picture_bytes)

    def _bounded(self, size: Size) -> Size:
        width, height = size
        limit_pixels = self._config.max_picture_pixels
        if width * height > limit_pixels:
            message = f"The picture is {width} x {height} = {width * height} pixels; {limit_pixels} are allowed."
            raise PictureTooLarge(message, asked_pixels=width * height, limit_pixels=limit_pixels)
        if max(size) > MAX_ASPECT_RATIO * min(size):
            message = (
                f"The picture is {width} x {height} pixels; "
                f"its sides may differ by a factor of at most {MAX_ASPECT_RATIO}."
            )
            raise InvalidPicture(message)
        return size


def _payload_start(url: str) -> int:
    """Checks the header of a data: URL (RFC 2397) and gives the index at which its base64 begins."""
    comma = url.find(",", 0, MAX_DATA_HEADER_CHARS)
    media_type, *parameters = url[len("data:") : max(comma, 0)].lower().split(";")
    if comma < 0 or parameters[-1:] != ["base64"]:
        raise InvalidPicture("A data: URL holds its picture in base64; send data:image/png;base64, and the base64.")
    if not media_type.startswith("image/"):
        message = (
            f"The data: URL does not declare a picture; begin it with data:image/png;base64, for a {PICTURE_FORMATS}."
        )
        raise InvalidPicture(message)
    if comma + 1 == len(url):
        raise InvalidPicture("The data: URL is empty; send the picture's base64 after the comma.")
    return comma + 1


def _num_bytes(url: str, start: int) -> int:
    """The number of bytes that the base64 of a URL decodes to, computed from its length."""
    return (len(url) - start) * 3 // 4 - url.endswith("=") - url.endswith("==")


def _from_base64(url: str, start: int) -> bytes:
    starts = range(start, len(url), BASE64_CHUNK_CHARS)
    try:
        # Python's own decoder is slow. Measured (two shared cores of an AMD EPYC, 8 MiB, 2026-11-30): CPU time per
        # megabyte with binascii → with pybase64: 2.9 ms → 0.08 ms.
        data = b"".join(pybase64.b64decode(url[at : at + BASE64_CHUNK_CHARS], validate=True) for at in starts)
        if len(data) != _num_bytes(url, start):
            raise ValueError  # padding at the end of a chunk that is not the last one
    except ValueError:
        message = (
            "The data: URL is not valid base64; send the standard alphabet (A-Z a-z 0-9 + /) padded with =, "
            "without line breaks, spaces or %-escapes."
        )
        raise InvalidPicture(message) from None
    return data


def _digest(data: bytes, revision: str, salt: bytes) -> Digest:
    # hashed, so that its length is fixed and no salt can be mistaken for the first bytes of a picture
    salted = hashlib.sha256(salt).digest()
    digest = hashlib.sha256(revision.encode() + b"\0" + salted)
    digest.update(data)
    return digest.hexdigest()


async def _off_loop(num_bytes: int, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    if num_bytes <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
