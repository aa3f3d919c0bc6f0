"""Fetches pictures over https from the public internet, and from nowhere else.

The address is checked where the connection is opened, so that the address checked is the one dialled: a name is
resolved once for each connection, and a second answer (DNS rebinding) is never asked for. TLS names the host of the
URL, not the address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import httpcore2
import httpx2

from cluster.errors import FetchFailed, ForbiddenUrl, PictureTooLarge, UnsupportedScheme

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.config import MediaConfig

Resolver = Callable[[str], Awaitable[list[str]]]
"""From a host name to the addresses it has; raises OSError where it has none."""

MAX_URL_CHARS: Final = 8192
MAX_ADDRESSES: Final = 4
"""Addresses of one host that are tried in turn."""
CONNECT_TIMEOUT_S: Final = 3.0
"""For each address, so that a dead one leaves time for the next."""
KEEPALIVE_S: Final = 3.0
"""Shorter than object stores keep an idle connection, so that none is used while its server closes it."""
MAX_IDLE_CONNECTIONS: Final = 32
MAX_RESOLVER_THREADS: Final = 16

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
HEADERS: Final = ((b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"Prism"))


class Fetcher:
    """Gets bounded bytes from https URLs, each in bounded time, with no cookies, credentials or proxies.

    Args:
        config: The limits, the hosts that may be private, and a CA to trust besides the system's.
        resolver: Stands in for the system's resolver.
        network: What opens the connections, once their address has been checked.
    """

    def __init__(
        self,
        config: MediaConfig,
        *,
        resolver: Resolver | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._config = config
        self._resolver_threads = ThreadPoolExecutor(MAX_RESOLVER_THREADS, thread_name_prefix="prism-resolver")
        context = ssl.create_default_context()
        if config.ca_file is not None:
            context.load_verify_locations(config.ca_file)
        guard = AddressGuard(resolver or self._resolve, network or httpcore2.AnyIOBackend(), config.trusted_hosts)
        self._connections = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=guard,
        )

    async def fetch(self, url: str, hold: Callable[[int], None]) -> bytes:
        """The body behind an https URL, redirects followed; ``hold`` is called before more bytes are kept, and may
        refuse.

        Raises:
            UnsupportedScheme: The URL, or one that it redirects to, is not https.
            ForbiddenUrl: It is malformed, carries credentials, or its host has an address that is not public.
            FetchFailed: The server cannot be reached, answers with anything but 200, or takes too long.
            PictureTooLarge: The body has more than ``max_picture_bytes``.
        """
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                return await self._follow(url, hold)
        except (TimeoutError, httpcore2.TimeoutException):
            message = (
                f"The picture did not arrive within {self._config.fetch_timeout_s:g} s; send it as a data: URL instead."
            )
            raise FetchFailed(message, limit_s=self._config.fetch_timeout_s) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            message = "The picture's server could not be reached over TLS, or broke off; check the URL in a browser."
            raise FetchFailed(message) from None

    async def close(self) -> None:
        """Closes the connections that are kept open."""
        await self._connections.aclose()
        self._resolver_threads.shutdown(wait=False, cancel_futures=True)

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
            raise FetchFailed(f"The picture's server answered with status {response.status} where 200 was expected.")
        if _header(response, b"content-encoding").lower() not in (b"", b"identity"):
            raise FetchFailed("The picture's server compressed the answer unasked; serve it without Content-Encoding.")
        limit_bytes = self._config.max_picture_bytes
        announced_bytes = int(_header(response, b"content-length") or 0)
        if announced_bytes > limit_bytes:
            message = f"The picture has {announced_bytes} bytes; {limit_bytes} are allowed."
            raise PictureTooLarge(message, asked_bytes=announced_bytes, limit_bytes=limit_bytes)
        chunks, num_bytes = [], 0
        async for chunk in response.aiter_stream():
            num_bytes += len(chunk)
            if num_bytes > limit_bytes:
                message = f"The picture has more than the {limit_bytes} bytes that are allowed."
                raise PictureTooLarge(message, limit_bytes=limit_bytes)
            hold(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    async def _resolve(self, host: str) -> list[str]:
        """The system's answer, by threads of its own: a slow name server then holds up nobody but other fetches."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resolver_threads, _resolve, host)


class AddressGuard(httpcore2.AsyncNetworkBackend):
    """Opens connections to public addresses only, but for hosts that are trusted.

    One answer that is not public condemns the host: with a choice left to the network, a mixed answer would be a
    lottery that an attacker may enter as often as they like.
    """

    def __init__(
        self, resolver: Resolver, network: httpcore2.AsyncNetworkBackend, trusted_hosts: Iterable[str]
    ) -> None:
        self._resolver = resolver
        self._network = network
        self._trusted_hosts = frozenset(_plain(host) for host in trusted_hosts)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolves ``host`` once, checks every address, and connects to the first of them that answers."""
        addresses = await self._checked(host)
        timeout = CONNECT_TIMEOUT_S if timeout is None else min(timeout, CONNECT_TIMEOUT_S)
        failure: Exception = httpcore2.ConnectError()
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return FreshStream(
                    await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - httpcore's signature
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.AsyncNetworkStream:
        """Refuses: no picture lives behind a Unix socket."""
        raise httpcore2.ConnectError(f"no connection is opened to {path}")

    async def _checked(self, host: str) -> list[str]:
        """A name that has no address is refused in the same words as a private one, so that names cannot be probed."""
        try:
            addresses = await self._resolver(host)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise FetchFailed("The host of the picture's URL could not be looked up just now; try again.") from None
            addresses = []
        except ValueError:  # a name that cannot be one
            addresses = []
        trusted = _plain(host) in self._trusted_hosts
        if not addresses or not (trusted or all(map(is_public, addresses))):
            raise ForbiddenUrl(
                "The host of the picture's URL does not resolve to a public address; check its name, or use a data: URL."
            )
        return addresses


class FreshStream(httpcore2.AsyncNetworkStream):
    """A connection before TLS, which is all that https ever does with it. It closes where TLS does not come about.

    httpcore does so for errors but not for cancellation: a server that never answers the greeting would keep its
    socket.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> httpcore2.AsyncNetworkStream:
        """The connection under TLS."""
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._stream.aclose()


def is_public(address: str) -> bool:
    """Whether a numeric address is one of the public internet's: global, unicast, and no gate to an address that is
    not."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if carried is None:
            return ip in GLOBAL_UNICAST and ip.is_global and not any(ip in network for network in NEVER_V6)
        ip = carried
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NEVER_V4)


NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""How a network without IPv4 writes IPv4 addresses (RFC 6052); the address within is checked."""

GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")

NEVER_V6: Final = (
    ipaddress.IPv6Network("2001::/32"),  # Teredo and 6to4 carry IPv4 addresses and are retired
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)

NEVER_V4: Final = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's host agent, on a public address
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; one cloud's metadata service
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays, retired
)
"""Addresses that Python's ``is_global`` lets pass in some of its versions."""


def _https_url(url: str) -> httpx2.URL:
    """Parses a URL once, for all that follows, and checks what its text alone can show."""
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


def _resolve(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


def _plain(host: str) -> str:
    return host.lower().rstrip(".")
