"""The load's clients against a server whose token times and failures are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.client import ChatFailed, ChatRefused, read_answer, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence


def sse(event: dict[str, Any] | str) -> bytes:
    """Returns one server-sent event. Non-ASCII characters are not escaped, as in vLLM's streams."""
    return f"data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n".encode()


def delta(**fields: str) -> dict[str, Any]:
    """Returns a chat chunk with one choice."""
    return {"choices": [{"index": 0, "delta": fields}]}


def ticking(times_s: Sequence[float]) -> Any:
    """Returns a clock that gives these times, one for each call."""
    return iter(times_s).__next__


def lines(*events: bytes) -> list[bytes]:
    """Yields a stream's lines, each with its line end."""
    return b"".join(events).splitlines(keepends=True)


def test_latencies_are_counted_from_text_to_text() -> None:
    """Only events with text count. A gap with several tokens is not divided, and the time per token comes from the
    usage."""
    stream = lines(
        sse(delta(role="assistant", content="")),
        sse(delta(content="A")),
        sse(delta(content="")),
        b": a comment\r\nevent: message\r\ndata: " + json.dumps(delta(content="BCD")).encode() + b"\r\n\r\n",
        sse({"choices": [], "usage": {"completion_tokens": 5}}),
        sse("[DONE]"),
    )
    answer = read_answer(stream, started_s=10.0, clock=ticking([10.25, 10.5, 10.75, 11.5, 11.75, 12.0]))
    assert answer.ttft_s == 0.5
    assert answer.icl_s == (1.0,)
    assert answer.itl_s == 0.25
    assert answer.latency_s == 2.0
    assert (answer.text, answer.num_tokens) == ("ABCD", 5)


def test_an_unfinished_event_is_dropped() -> None:
    """``[DONE]`` without the blank line that ends an event does not end the stream."""
    with pytest.raises(ChatFailed, match=r"no \[DONE\]"):
        read_answer(lines(sse(delta(content="A")), b"data: [DONE]\n"), started_s=0.0)


@pytest.mark.parametrize(("status", "retry_after"), [(429, True), (429, False), (503, True)])
def test_only_429_with_a_time_to_retry_is_a_refusal(status: int, retry_after: bool) -> None:
    """A 429 without ``Retry-After``, and any other status, is a failure."""
    failure = refusal(status, b'{"error": {"code": "overloaded", "message": "Full."}}', retry_after=retry_after)
    assert isinstance(failure, ChatRefused) is (status == 429 and retry_after)
    assert (str(failure), failure.detail) == (f"{status} overloaded", "Full.")
