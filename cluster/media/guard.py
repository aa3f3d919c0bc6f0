"""Opens connections to public addresses only.

In: a host name and a port. Out: a connection whose address was checked.

The address of a host is checked in the same place where the connection is opened. Each host name is looked up once per
connection, and the connection goes to an address that was checked. So a second, different DNS answer (DNS rebinding)
has no effect. TLS still verifies the host name of the URL, not the address.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Final

import httpcore2

from cluster.errors import FetchFailed, ForbiddenUrl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.media.names import NameResolver

MAX_ADDRESSES: Final = 4
"""The most addresses of one host that are tried, one after the other."""
CONNECT_TIMEOUT_S: Final = 3.0
"""The time for each address. It is short, so that a dead address leaves time for the next one."""


class AddressGuard(httpcore2.AsyncNetworkBackend):
    """Opens connections to public addresses only. Trusted hosts may have any address.

    A host is refused if only one of its addresses is not public. If Prism chose the public ones instead, an attacker
    could repeat the request until a connection goes to a private address.

    Args:
        names: Looks up the addresses of a host.
        network: Opens the connections.
        trusted_hosts: The names of the trusted hosts.
    """

    def __init__(
        self, names: NameResolver, network: httpcore2.AsyncNetworkBackend, trusted_hosts: Iterable[str]
    ) -> None:
        self._names = names
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
        """Looks up ``host`` once, checks all its addresses, and connects to the first address that answers."""
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
        addresses = await self._names.addresses(host)
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
        """Starts TLS and returns the encrypted connection.

        Raises:
            FetchFailed: The server speaks no TLS, or its certificate is not valid for its name.
        """
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException as error:
            await self.aclose()
            if isinstance(error.__cause__, ssl.SSLError):
                raise FetchFailed(
                    "The picture's server has no valid TLS certificate for its name; check the URL in a browser."
                ) from None
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


def _plain(host: str) -> str:
    return host.lower().rstrip(".")
