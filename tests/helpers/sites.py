"""A TLS server on loopback for tests that fetch, and stand-ins for the network and the resolver that lead to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpcore2

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A server on loopback that answers each path with raw bytes or by a coroutine. It records its requests."""

    port: int = 0
    replies: dict[str, bytes | Reply] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    num_connections: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no connection is open."""
    num_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, one after the other."""
        self.num_connections += 1
        self.num_open += 1
        self.idle.clear()
        try:
            while request := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.requests.append(request)
                reply = self.replies[request.split()[1]]
                if callable(reply):
                    await reply(writer)
                else:
                    writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self.num_open -= 1
            if not self.num_open:
                self.idle.set()
            writer.close()


@dataclass
class Network(httpcore2.AsyncNetworkBackend):
    """Connects every address to the site on loopback, or refuses. It records the addresses that were dialled."""

    site: Site
    dead: frozenset[str] = frozenset()
    dialled: list[str] = field(default_factory=list)

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        """Connects to the site instead of ``host``."""
        self.dialled.append(host)
        if host in self.dead:
            raise httpcore2.ConnectError
        return await httpcore2.AnyIOBackend().connect_tcp("127.0.0.1", self.site.port)


@dataclass
class Names:
    """A resolver that gives its answers one after the other and repeats the last one. It records the questions."""

    answers: list[list[str] | Exception]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ok(data: bytes, *headers: str) -> bytes:
    """Returns a 200 response with ``data`` as its body."""
    return reply("200 OK", data, f"Content-Length: {len(data)}", *headers)


def reply(status: str, body: bytes = b"", *headers: str) -> bytes:
    """Returns the bytes of an HTTP response."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    """Returns a redirect to another URL."""
    return reply(status, b"", f"Location: {location}", "Content-Length: 0")


async def stall(_writer: asyncio.StreamWriter) -> None:
    """Waits for ever without answering."""
    await asyncio.Event().wait()


async def stall_in_body(writer: asyncio.StreamWriter) -> None:
    """Sends the head and a part of the body, then nothing more."""
    writer.write(reply("200 OK", b"\xff\xd8", "Content-Length: 999"))
    await writer.drain()
    await asyncio.Event().wait()


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Sends the body byte by byte without end."""
    writer.write(reply("200 OK", b"", "Content-Length: 99999"))
    while True:
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.01)
