"""Lets requests in by their keys, and follows the file of keys while requests run."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from cluster.access.keys import KeyRing, KeysError
from cluster.access.keys_file import KeysFile
from cluster.access.meter import Meter
from cluster.errors import InvalidKey, ModelNotAllowed, OperatorsOnly, PoolUnavailable
from cluster.metrics import KEYS, KEYS_BROKEN, TENANT_PICTURE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cluster.access.keys import KeyEntry

log: Final = logging.getLogger("ray.serve")

READ_S: Final = 10.0
"""The longest time for reading the file, in seconds. A file system may hang."""

PERIOD_S: Final = 2.0
"""The time between two looks at the file of keys."""
MAX_HEADER_BYTES: Final = 512
SCHEME: Final = b"bearer"
SEND_KEY: Final = "send the header Authorization: Bearer, a space, and the key"

PUBLIC: Final = (
    "ANYBODY CAN USE THIS SERVER: Prism listens on %s, and no API keys are set. "
    "Set keys_file in the Router's user_config, or listen on loopback behind a gateway."
)


class Caller:
    """The holder of a key, for the time of one request.

    Args:
        entry: What the key may do.
        meter: What the key has used, over all its requests.
    """

    def __init__(self, entry: KeyEntry, meter: Meter) -> None:
        self._entry: Final = entry
        self._meter: Final = meter
        self._is_inside = False

    @property
    def tenant(self) -> str:
        return self._entry.tenant

    @property
    def priority(self) -> int:
        return self._entry.priority

    @property
    def is_operator(self) -> bool:
        return self._entry.operator

    def allows(self, model: str) -> bool:
        """Returns True if the key may use a model."""
        return self._entry.allows(model)

    def enter(self, model: str) -> None:
        """Begins a request for an answer of a model. ``leave`` must be called at its end.

        Raises:
            ModelNotAllowed: The key may not use the model.
            RateLimited: The key has no request left now.
        """
        if not self.allows(model):
            raise ModelNotAllowed("The API key may not use this model; GET /v1/models lists those that it may use.")
        self._meter.enter()
        self._is_inside = True

    def spend_picture_tokens(self, num_tokens: int) -> None:
        """Counts the tokens of the request's pictures.

        Raises:
            RateLimited: The key does not have that many tokens left now.
        """
        self._meter.spend_picture_tokens(num_tokens)
        TENANT_PICTURE_TOKENS.labels(self.tenant).inc(num_tokens)

    def leave(self) -> None:
        """Ends the request. Only the first call after ``enter`` has an effect."""
        if self._is_inside:
            self._is_inside = False
            self._meter.leave()

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """The headers that tell the caller what is left of its limits."""
        return self._meter.headers()


class AccessControl:
    """Decides who gets in. Nobody does until ``follow`` was called, because Ray opens the Router's port before that.

    Args:
        clock: Gives the time in seconds, for limits.
        now_s: Gives the seconds since 1970, for keys that expire.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, now_s: Callable[[], float] = time.time) -> None:
        self._clock: Final = clock
        self._now_s: Final = now_s
        self._thread: Final = ThreadPoolExecutor(1, "keys")  # a file system that hangs stops nothing else
        self._is_starting = True
        self._path: str | None = None
        self._file: KeysFile | None = None
        self._ring: KeyRing | None = None
        self._meters: dict[str, Meter] = {}
        self._num_routers = 1
        self._host = ""

    @classmethod
    def without_keys(cls) -> Self:
        """One that lets everybody in from the beginning."""
        access = cls()
        access._is_starting = False
        return access

    @property
    def is_open(self) -> bool:
        """Returns True if requests need no key."""
        return self._path is None and not self._is_starting

    def listens_on(self, host: str) -> None:
        """Tells the address on which Prism takes requests, before the first one. Until then it counts as public.

        If everybody can reach Prism and no key is needed, the log has a warning.
        """
        self._host = host
        self._warn_if_public()

    async def follow(self, path: str | None) -> None:
        """Uses the keys of a file or directory from now on; None lets everybody in.

        If the file cannot be read, nobody gets in until it can.

        Raises:
            KeysError: The file cannot be read.
        """
        if path == self._path and not self._is_starting and (path is None or self._ring is not None):
            return
        self._path, self._is_starting = path, False
        self._file, self._ring, self._meters = KeysFile(Path(path)) if path else None, None, {}
        KEYS.set(0)
        KEYS_BROKEN.set(path is not None)
        self._warn_if_public()
        await self._read()

    async def watch(self, num_routers: Callable[[], int], period_s: float = PERIOD_S) -> None:
        """Reads the file again whenever it changes, and divides the limits among the Routers. It runs until it is
        cancelled.

        A file that cannot be read is logged and shown as a metric, and the keys of before stay.

        Args:
            num_routers: Gives the number of running Routers.
            period_s: The time between two looks.
        """
        while True:
            try:
                await self.look(num_routers())
            except Exception:
                log.exception("the keys were not looked at; this is tried again")
            await asyncio.sleep(period_s)

    async def look(self, num_routers: int) -> None:
        """Reads the file if it has changed, and divides the limits by the number of running Routers. An error is logged
        and not raised."""
        if num_routers != self._num_routers:
            self._num_routers = max(1, num_routers)
            self._renew_meters()
        try:
            await self._read()
        except KeysError as error:
            log.error("the keys cannot be read, and those of before stay: %s: %s", self._path, error)

    def caller(self, authorizations: Sequence[bytes]) -> Caller | None:
        """Returns the holder of the key in a request's headers; None if no key is needed.

        Args:
            authorizations: The values of the headers ``Authorization``.

        Raises:
            InvalidKey: There is no key, or it is not valid.
            PoolUnavailable: ``follow`` was not called yet.
        """
        if self._is_starting:
            raise PoolUnavailable("The Router is starting; send the request again.")
        if self._path is None:
            return None
        key = _key_of(authorizations)
        entry = self._ring.find(key) if self._ring is not None else None
        if entry is None:
            raise InvalidKey("The API key is not valid.")
        if entry.expires is not None and entry.expires.timestamp() <= self._now_s():
            raise InvalidKey("The API key has expired.")
        return Caller(entry, self._meter(entry))

    def check_operator(self, caller: Caller | None) -> None:
        """Checks that a caller may read what is meant for operators. Without keys, everybody may if Prism
        listens on loopback, and nobody if it listens elsewhere. The caller's own address does not count.

        Raises:
            OperatorsOnly: It may not.
        """
        if caller is None and not self._is_private():
            message = (
                f"This path is for operators. Prism listens on {self._host or 'an unknown address'} and has no keys, "
                "so nobody may read it. Set keys_file in the Router's user_config."
            )
            raise OperatorsOnly(message)
        if caller is not None and not caller.is_operator:
            raise OperatorsOnly("This path is for operators; the API key's entry lacks operator: true.")

    def _is_private(self) -> bool:
        try:
            return self._host == "localhost" or ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return False

    def _warn_if_public(self) -> None:
        if self._host and self.is_open and not self._is_private():
            log.warning(PUBLIC, self._host)
            sys.stderr.write(PUBLIC % self._host + "\n")  # `serve run` shows it; Serve's own log goes to a file

    async def _read(self) -> None:
        if (file := self._file) is None:
            return
        try:
            async with asyncio.timeout(READ_S):
                ring = await asyncio.get_running_loop().run_in_executor(self._thread, file.read_if_changed)
        except TimeoutError:
            KEYS_BROKEN.set(1)
            if file is self._file:  # the thread goes on, and what it reads in the end is not taken up
                self._file = KeysFile(Path(self._path or ""))
            raise KeysError(f"it was not read within {READ_S:g} s") from None
        except Exception:
            KEYS_BROKEN.set(1)
            raise
        if ring is not None and file is self._file:
            KEYS_BROKEN.set(0)
            KEYS.set(len(ring))
            self._ring = ring
            self._renew_meters()
            log.info("%d API keys are valid now", len(ring))

    def _renew_meters(self) -> None:
        """Gives all meters the limits of now, and drops those of keys that are gone."""
        entries = {} if self._ring is None else self._ring.entries
        self._meters = {sha256: meter for sha256, meter in self._meters.items() if sha256 in entries}
        for sha256, meter in self._meters.items():
            meter.set_limits(entries[sha256], self._num_routers)

    def _meter(self, entry: KeyEntry) -> Meter:
        if (meter := self._meters.get(entry.sha256)) is None:
            meter = self._meters[entry.sha256] = Meter(entry, self._num_routers, self._clock)
        return meter


def _key_of(authorizations: Sequence[bytes]) -> bytes:
    if not authorizations:
        raise InvalidKey(f"The request has no API key; {SEND_KEY}.")
    scheme, _, key = authorizations[0].strip().partition(b" ")
    key = key.strip()
    is_right = scheme.lower() == SCHEME and key and len(key) <= MAX_HEADER_BYTES and len(authorizations) == 1
    if not is_right:
        raise InvalidKey(f"The header Authorization cannot be used; {SEND_KEY}, once.")
    return key
