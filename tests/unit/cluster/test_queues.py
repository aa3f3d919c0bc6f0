"""Calls that wait for their turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cluster.metrics import QUEUE_LENGTH, QUEUE_OLDEST_S
from cluster.queues import WaitingCalls, report_queue

if TYPE_CHECKING:
    import pytest


def test_the_oldest_call_that_still_waits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls count until they are done, in whatever order that is."""
    now_s = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    calls = WaitingCalls()
    assert (len(calls), calls.oldest_s) == (0, 0.0)
    first, second = calls.one(), calls.one()
    first.__enter__()
    now_s[0] = 12.0
    second.__enter__()
    now_s[0] = 15.0
    assert (len(calls), calls.oldest_s) == (2, 5.0)
    first.__exit__(None, None, None)
    assert (len(calls), calls.oldest_s) == (1, 3.0)
    second.__exit__(None, None, None)
    assert (len(calls), calls.oldest_s) == (0, 0.0)


def test_a_report_sets_the_gauges() -> None:
    """The gauges have what was reported last."""
    report_queue(3, 1.5)
    assert (QUEUE_LENGTH._value.get(), QUEUE_OLDEST_S._value.get()) == (3, 1.5)
    report_queue(0, 0.0)
    assert (QUEUE_LENGTH._value.get(), QUEUE_OLDEST_S._value.get()) == (0, 0)
