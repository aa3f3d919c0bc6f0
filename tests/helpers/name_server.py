"""A name server on loopback for tests, which answers, refuses, or stays silent."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVFAIL, NXDOMAIN = 2, 3
TYPES = {4: 1, 6: 28}
"""The types of the records A and AAAA, by the version of the address."""


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers questions for A and AAAA records over UDP, as RFC 1035 lays them out. It records the names."""

    names: dict[str, list[str] | int | None] = field(default_factory=dict)
    """The addresses of a name, the code of its failure, or None if the server never answers. Other names do not
    exist."""
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def connection_made(self, transport: Any) -> None:
        """Remembers the transport and its port."""
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answers one question."""
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, (kind,) = ".".join(labels).lower(), struct.unpack_from(">H", data, at + 1)
        self.asked.append(name)
        known = self.names.get(name, NXDOMAIN)
        if known is None:
            return
        code = known if isinstance(known, int) else 0
        found = [] if isinstance(known, int) else list(map(ipaddress.ip_address, known))
        records = [
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(one.packed)) + one.packed
            for one in found
            if TYPES[one.version] == kind
        ]
        head = struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        self._transport.sendto(data[:2] + head + data[12 : at + 5] + b"".join(records), addr)


@asynccontextmanager
async def name_server(**names: list[str] | int | None) -> AsyncIterator[NameServer]:
    """A running name server. In the names, two underscores stand for a dot."""
    server = NameServer({name.replace("__", "."): known for name, known in names.items()})
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0), family=socket.AF_INET
    )
    try:
        yield server
    finally:
        transport.close()
