"""Waits for conditions, so that no test guesses how long something takes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_S: Final = 0.1
NUM_ROUNDS: Final = 50


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Returns once a condition holds.

    Raises:
        AssertionError: It did not hold in time; the message is ``what``.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(POLL_S)


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float, what: str) -> None:
    """Returns once an awaited condition holds.

    Raises:
        AssertionError: It did not hold in time; the message is ``what``.
    """
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(POLL_S)


async def settled() -> None:
    """Lets every task of the event loop run until it waits for something other than the loop."""
    for _ in range(NUM_ROUNDS):
        await asyncio.sleep(0)
