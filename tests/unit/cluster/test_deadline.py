"""The deadline of a request."""

from __future__ import annotations

import pytest

from cluster.deadline import Deadline


@pytest.mark.parametrize(("asked_s", "gets_s"), [(None, 60.0), (5.0, 5.0), (600.0, 60.0)])
def test_a_request_may_ask_for_less_time_only(asked_s: float | None, gets_s: float) -> None:
    """A request gets the time that it asks for, and the configured time at most, counted from its arrival."""
    deadline = Deadline(100.0, 60.0).within(asked_s)
    assert deadline.at_s == 100.0 + gets_s
    assert deadline.exceeded().figures == {"timeout_s": gets_s}


def test_the_cause_is_for_the_log() -> None:
    """The error says to the client how long the request had, and to the log what it waited for."""
    error = Deadline(0.0, 2.0).exceeded(cause="waiting for the decoder")
    assert error.cause == "waiting for the decoder"
    assert "within 2 s" in error.message
    assert "waiting" not in str(error.to_openai("7"))
