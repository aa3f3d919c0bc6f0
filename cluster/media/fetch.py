"""Fetches pictures over https from the public internet, and from nowhere else.

In: an ``https:`` URL. Out: the bytes of the body.

``guard.py`` opens the connections and checks their addresses, and ``names.py`` looks up the names. Each fetch has a
connection of its own or waits for its own one, so slow servers take nothing from the fetches of other requests.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

import httpcore2
import httpx2

from cluster.errors import (
    FetchFailed,
    ForbiddenUrl,
    PictureTooLarge,
    PictureUnavailable,
    PrismError,
    UnsupportedScheme,
)
from cluster.media.guard import AddressGuard
from cluster.media.names import NameResolver, SystemNames
from cluster.metrics import FETCHES

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.config import MediaConfig
    from cluster.media.names import Lookup

MAX_URL_CHARS: Final = 8192
KEEPALIVE_S: Final = 3.0
"""How long an idle connection stays open. Object stores keep idle connections longer, so that a request never uses a
connection that its server is about to close."""
MAX_IDLE_CONNECTIONS: Final = 32
FREE_PIECES: Final = 1024
MIN_PIECE_BYTES: Final = 64
"""A body may come in ``FREE_PIECES`` pieces, and one more for each ``MIN_PIECE_BYTES``. Each piece costs the event loop
the same, however small it is."""

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
BUSY: Final = frozenset({408, 425, 429})
"""Statuses below 500 with which a server asks for another try later."""
HEADERS: Final = ((b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"Prism"))


class Fetcher:
    """Fetches the bodies of https URLs with a limit on bytes and time, and without cookies, credentials or proxies.

    Args:
        config: The limits, the hosts that may have private addresses, and a CA to trust in addition to the system's.
        lookup: Replaces the system's look-up of host names; for tests.
        network: Opens the connections after their address has been checked; for tests.
    """

    def __init__(
        self,
        config: MediaConfig,
        *,
        lookup: Lookup | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._config = config
        self._system_names = SystemNames()
        context = ssl.create_default_context()
        if config.ca_file is not None:
            context.load_verify_locations(config.ca_file)
        names = NameResolver(lookup or self._system_names)
        guard = AddressGuard(names, network or httpcore2.AnyIOBackend(), config.trusted_hosts)
        self._connections = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=guard,
        )

    async def fetch(self, url: str, hold: Callable[[int], None]) -> bytes:
        """Fetches the body of an https URL and follows redirects.

        Args:
            url: The URL.
            hold: Called with a number of bytes before that many more are kept; it may refuse by raising.

        Raises:
            UnsupportedScheme: The URL, or a URL that it redirects to, is not https.
            ForbiddenUrl: The URL is malformed, carries credentials, or its host has an address that is not public.
            FetchFailed: The server has no picture there: its status is neither 200 nor one that says to try again, its
                TLS is not valid, it redirects too often, or the body is compressed or in too many small pieces.
            PictureUnavailable: The server or its name cannot be reached now, is busy, breaks off, or takes too long.
            PictureTooLarge: The body has more than ``max_picture_bytes``.
        """
        outcome = "internal_error"
        try:
            data = await self._mapped(url, hold)
            outcome = "ok"
            return data
        except PrismError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            FETCHES.labels(outcome).inc()

    async def close(self) -> None:
        """Closes the idle connections, and ends all look-ups of names."""
        await self._connections.aclose()
        await self._system_names.close()

    async def _mapped(self, url: str, hold: Callable[[int], None]) -> bytes:
        """Fetches a body within the time limit; each failure of the network becomes an error of Prism's."""
        limit_s = self._config.fetch_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(url, hold)
        except (TimeoutError, httpcore2.TimeoutException):
            message = f"The picture did not arrive within {limit_s:g} s; try again, or send it as a data: URL."
            raise PictureUnavailable(message, limit_s=limit_s) from None
        except httpcore2.LocalProtocolError:
            raise FetchFailed("The picture's URL cannot be asked for over HTTP; check it in a browser.") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            message = "The picture's server could not be reached, or broke off; try again, or send a data: URL."
            raise PictureUnavailable(message) from None

    async def _follow(self, url: str, hold: Callable[[int], None]) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            target = _https_url(url)
            origin = httpcore2.URL(scheme=b"https", host=target.raw_host, port=target.port, target=target.raw_path)
            headers = [(b"Host", target.netloc), *HEADERS]
            async with self._connections.stream("GET", origin, headers=headers) as response:
                if response.status not in REDIRECTS:
                    return await self._read(response, hold)
                location = _header(response, b"location").decode("utf-8", "replace")
            url = _join(target, location)
        message = (
            f"The picture's URL redirects more than {self._config.max_redirects} times; send the URL that it ends at."
        )
        raise FetchFailed(message)

    async def _read(self, response: httpcore2.Response, hold: Callable[[int], None]) -> bytes:
        if response.status != 200:
            kind = PictureUnavailable if response.status in BUSY or response.status >= 500 else FetchFailed
            raise kind(f"The picture's server answered with status {response.status} where 200 was expected.")
        if _header(response, b"content-encoding").lower() not in (b"", b"identity"):
            raise FetchFailed("The picture's server compressed the answer unasked; serve it without Content-Encoding.")
        limit_bytes = self._config.max_picture_bytes
        announced_bytes = int(_header(response, b"content-length") or 0)
        if announced_bytes > limit_bytes:
            message = f"The picture has {announced_bytes} bytes; {limit_bytes} are allowed."
            raise PictureTooLarge(message, asked_bytes=announced_bytes, limit_bytes=limit_bytes)
        chunks: list[bytes] = []
        num_bytes = 0
        async for chunk in response.aiter_stream():
            num_bytes += len(chunk)
            if len(chunks) > FREE_PIECES + num_bytes // MIN_PIECE_BYTES:
                raise FetchFailed("The picture's server sends pieces of a few bytes; serve it in larger ones.")
            if num_bytes > limit_bytes:
                message = f"The picture has more than the {limit_bytes} bytes that are allowed."
                raise PictureTooLarge(message, limit_bytes=limit_bytes)
            hold(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)


def _https_url(url: str) -> httpx2.URL:
    """Parses a URL and checks its length, scheme, credentials and host. No name is resolved here."""
    if len(url) > MAX_URL_CHARS:
        raise ForbiddenUrl(f"The picture's URL has {len(url)} characters; {MAX_URL_CHARS} are allowed.")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise ForbiddenUrl("The picture's URL is malformed; send an https: URL as a browser shows it.") from None
    if parsed.scheme != "https":
        raise UnsupportedScheme(
            "The picture's URL, or one that it redirects to, is not https:; send a data: or https: URL."
        )
    if parsed.userinfo:
        raise ForbiddenUrl("The picture's URL carries a user name or password; leave them out.")
    if not parsed.raw_host:
        raise ForbiddenUrl("The picture's URL names no host; send one such as https://example.com/cat.png.")
    return parsed


def _join(base: httpx2.URL, location: str) -> str:
    try:
        return str(base.join(location))
    except (httpx2.InvalidURL, ValueError):
        raise FetchFailed("The picture's server redirects to a malformed URL; send the URL that it ends at.") from None


def _header(response: httpcore2.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"")
