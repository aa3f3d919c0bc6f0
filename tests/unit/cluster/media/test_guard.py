"""The addresses and sockets that connections may be opened to; ``test_fetch.py`` tries the guard at work."""

from __future__ import annotations

import httpcore2
import pytest

from cluster.media.guard import AddressGuard, is_public
from cluster.media.names import NameResolver
from tests.helpers.sites import Names, Network, Site

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    """Public addresses are accepted, also in the form that IPv6-only networks give them."""
    assert is_public(address)


async def test_unix_sockets_stay_closed() -> None:
    """Prism never connects to a Unix socket."""
    guard = AddressGuard(NameResolver(Names([[PUBLIC]])), Network(Site()), ())
    with pytest.raises(httpcore2.ConnectError):
        await guard.connect_unix_socket("/var/run/docker.sock")
