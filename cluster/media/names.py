"""Looks up host names, so that slow names hold up nobody but the requests that wait for them.

In: the host of a URL. Out: its addresses, which nobody has checked yet.

The system's ``getaddrinfo`` blocks a thread for up to half a minute and cannot be cancelled, so one request with slow
names could use up all threads. c-ares asks the same name servers without a thread for each question. It reads
``/etc/resolv.conf`` (search domains too) and ``/etc/hosts``, and it keeps answers for as long as they allow.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiodns

from cluster.errors import PictureUnavailable

Lookup = Callable[[str], Awaitable[list[str]]]
"""Gives the addresses of a host name. Raises ``socket.gaierror`` if it has none, with ``EAI_AGAIN`` if it may have some
later, and ValueError if the text cannot be a name."""

LOOKUP_TIMEOUT_S: Final = 5.0
"""How long a request waits for one name."""
UNKNOWN_MEMORY_S: Final = 5.0
"""How long a name that does not exist is not looked up again."""
FAILURE_MEMORY_S: Final = 1.0
"""How long a name whose look-up failed is not looked up again: as long as ``Retry-After`` asks clients to wait."""
MAX_REMEMBERED: Final = 1024
"""The most failures that are remembered at a time."""

UNKNOWN: Final = frozenset(
    {
        aiodns.error.ARES_ENODATA,
        aiodns.error.ARES_ENOTFOUND,
        aiodns.error.ARES_EBADNAME,
        aiodns.error.ARES_ENONAME,
    }
)
"""The errors of c-ares for a name that has no address. All others are failures of the look-up."""

NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?$")
"""A host whose last label is a number is an IPv4 address in browsers, and never a name (WHATWG URL, section 3.5)."""


class NameResolver:
    """Looks up host names. Requests that ask for one name at the same time share a single look-up.

    A look-up ends when its time is over, or when nobody waits for it any more. A name that failed is not looked up
    again for a moment.

    Args:
        lookup: Asks for the addresses of a name.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._running: dict[str, _Running] = {}
        self._failures: dict[str, _Failure] = {}

    async def addresses(self, host: str) -> list[str]:
        """Returns the addresses of a host. The list is empty if the name has none, or if the host is an IP address in
        an unusual spelling. For an ordinary IP address it holds that address.

        Raises:
            PictureUnavailable: The look-up failed or took too long; a later one can succeed.
        """
        if (numeric := _numeric(host)) is not None:
            return numeric
        found = self._remembered(host) or await self._shared(host)
        if isinstance(found, list):
            return found
        if found.is_final:
            return []
        raise PictureUnavailable("The host of the picture's URL could not be looked up just now; try again.")

    def _remembered(self, host: str) -> _Failure | None:
        failure = self._failures.get(host)
        return failure if failure and asyncio.get_running_loop().time() < failure.until_s else None

    async def _shared(self, host: str) -> list[str] | _Failure:
        running = self._running.get(host)
        if running is None:
            running = self._running[host] = _Running(asyncio.ensure_future(self._look_up(host)))
        running.num_waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.num_waiting -= 1
            if not running.num_waiting:
                running.task.cancel()
                del self._running[host]

    async def _look_up(self, host: str) -> list[str] | _Failure:
        now_s = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                return list(dict.fromkeys(await self._lookup(host)))
        except TimeoutError:
            failure = _Failure(now_s() + FAILURE_MEMORY_S, is_final=False)
        except socket.gaierror as error:
            is_final = error.errno != socket.EAI_AGAIN
            failure = _Failure(now_s() + (UNKNOWN_MEMORY_S if is_final else FAILURE_MEMORY_S), is_final)
        except ValueError:
            failure = _Failure(now_s() + UNKNOWN_MEMORY_S, is_final=True)
        self._failures.pop(host, None)
        self._failures[host] = failure
        if len(self._failures) > MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]
        return failure


class SystemNames:
    """Looks up names in the hosts file, and then at the system's name servers. c-ares uses one thread for all look-ups.

    Measured (two shared cores of an AMD EPYC, 5,000 look-ups without an answer, 2026-11-30): 0.15 ms of CPU time each.
    A further look-up is not delayed.

    Args:
        options: Options of c-ares, such as other ``nameservers``; for tests.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._dns: aiodns.DNSResolver | None = None

    async def __call__(self, host: str) -> list[str]:
        """Gives the addresses of a host name, in the order of RFC 6724. See ``Lookup`` for what it raises."""
        if self._dns is None:  # it belongs to the event loop in which it is made
            self._dns = aiodns.DNSResolver(**self._options)
        try:
            found = await self._dns.getaddrinfo(host, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code = socket.EAI_NONAME if error.args[0] in UNKNOWN else socket.EAI_AGAIN
            raise socket.gaierror(code, error.args[1]) from None
        return [node.addr[0].decode() for node in found.nodes]

    async def close(self) -> None:
        """Ends all questions, and the thread."""
        if self._dns is not None:
            await self._dns.close()


@dataclass(slots=True)
class _Running:
    """A look-up, and how many requests wait for it."""

    task: asyncio.Future[list[str] | _Failure]
    num_waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A look-up that gave no address, and the time on the event loop's clock until which this is remembered."""

    until_s: float
    is_final: bool


def _numeric(host: str) -> list[str] | None:
    """The address that a host is, in a list; an empty list for one in an unusual spelling; None for a name.

    Libraries disagree on unusual spellings: ``0177.0.0.1`` is 127.0.0.1 or 177.0.0.1. So none of them is fetched from.
    """
    try:
        return [] if "%" in host else [str(ipaddress.ip_address(host))]
    except ValueError:
        return [] if ":" in host or NUMBER.search(host) else None
