"""Fetches pictures over https from the public internet, and from nowhere else.

In: an ``https:`` URL. Out: the bytes of the body.

The address of a host is checked in the same place where the connection is opened. Each host name is resolved once per
connection, and the connection goes to an address that was checked. So a second, different DNS answer (DNS rebinding)
has no effect. TLS still verifies the host name of the URL, not the address.
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
"""Gives the addresses of a host name, and raises OSError if it has none."""

MAX_URL_CHARS: Final = 8192
MAX_ADDRESSES: Final = 4
"""The most addresses of one host that are tried, one after the other."""
CONNECT_TIMEOUT_S: Final = 3.0
"""The time for each address. It is short, so that a dead address leaves time for the next one."""
KEEPALIVE_S: Final = 3.0
"""How long an idle connection stays open. Object stores keep idle connections longer, so that a request never uses a
connection that its server is about to close."""
MAX_IDLE_CONNECTIONS: Final = 32
MAX_RESOLVER_THREADS: Final = 16

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
HEADERS: Final = ((b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"User-Agent", b"Prism"))


class Fetcher:
    """Fetches the bodies of https URLs with a limit on bytes and time, and without cookies, credentials or proxies.

    Args:
        config: The limits, the hosts that may have private addresses, and a CA to trust in addition to the system's.
        resolver: Replaces the system's resolver of host names; for tests.
        network: Opens the connections after their address has been checked; for tests.
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
        """Fetches the body of an https URL and follows redirects.

        Args:
            url: The URL.
            hold: Called with a number of bytes before that many more are kept; it may refuse by raising.

        Raises:
            UnsupportedScheme: The URL, or a URL that it redirects to, is not https.
            ForbiddenUrl: The URL is malformed, carries credentials, or its host has an address that is not public.
            FetchFailed: The server cannot be reached, answers with a status other than 200, or takes too long.
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
        """Resolves a host with the system's resolver, in separate threads: a slow name server delays only fetches."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resolver_threads, _resolve, host)


class AddressGuard(httpcore2.AsyncNetworkBackend):
    """Opens connections to public addresses only. Trusted hosts may have any address.

    A host is refused if only one of its addresses is not public. If Prism chose the public ones instead, an attacker
    could repeat the request until a connection goes to a private address.

    Args:
        resolver: Gives the addresses of a host.
        network: Opens the connections.
        trusted_hosts: The names of the trusted hosts.
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
        """Resolves ``host`` once, checks all its addresses, and connects to the first address that answers."""
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
        """Refuses every path, because a picture never comes from a Unix socket."""
        raise httpcore2.ConnectError(f"no connection is opened to {path}")

    async def _checked(self, host: str) -> list[str]:
        """The addresses of a host, if all of them are allowed.

        A host without an address is refused in the same words as a host with a private one. So a client cannot find out
        which private names exist.
        """
        try:
            addresses = await self._resolver(host)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise FetchFailed("The host of the picture's URL could not be looked up just now; try again.") from None
            addresses = []
        except ValueError:  # the text cannot be a host name
            addresses = []
        trusted = _plain(host) in self._trusted_hosts
        if not addresses or not (trusted or all(map(is_public, addresses))):
            raise ForbiddenUrl(
                "The host of the picture's URL does not resolve to a public address; "
                "check its name, or use a data: URL."
            )
        return addresses


class FreshStream(httpcore2.AsyncNetworkStream):
    """A new connection on which TLS has not started yet. It closes itself if TLS cannot start.

    httpcore closes it after an error, but not after a cancellation. Without this class, the socket to a server that
    never answers the TLS greeting would stay open.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> httpcore2.AsyncNetworkStream:
        """Starts TLS and returns the encrypted connection."""
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._stream.aclose()


def is_public(address: str) -> bool:
    """Returns True if a numeric address belongs to the public internet: it is global and unicast.

    An IPv6 address that stands for an IPv4 address is public if the IPv4 address is.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if carried is None:
            return ip in GLOBAL_UNICAST and ip.is_global and not any(ip in network for network in NEVER_V6)
        ip = carried
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in NEVER_V4)


NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv6 addresses that stand for IPv4 addresses in networks without IPv4 (RFC 6052); the IPv4 address is checked."""

GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All IPv6 addresses that are assigned to the public internet."""

NEVER_V6: Final = (
    ipaddress.IPv6Network("2001::/32"),  # Teredo and 6to4 carry IPv4 addresses and are retired
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
"""IPv6 addresses that are refused, although some versions of Python's ``is_global`` accept them."""

NEVER_V4: Final = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's host agent, on a public address
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; one cloud's metadata service
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays, retired
)
"""IPv4 addresses that are refused, although some versions of Python's ``is_global`` accept them."""


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


def _resolve(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


def _plain(host: str) -> str:
    return host.lower().rstrip(".")
