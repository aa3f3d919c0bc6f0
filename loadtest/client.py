"""Reads one streamed chat answer and times it, for Locust.

In: the lines of a ``text/event-stream`` as they arrive. Out: a ``ChatAnswer``, or the exception ``ChatFailed``.

It measures these times with ``time.perf_counter``. The names are AIPerf's:

- TTFT: from just before the request is sent to the first event with text in it. The event that only names the role is
  not text.
- ICL: the gap between two successive events with text, one figure per gap, as a reader sees it. Events that arrive in
  one read have that read's time, so their gaps are 0 (give or take the microseconds that parsing takes). A gap is not
  divided when an event carries several tokens: nothing in it says how many they are.
- ITL: the time from the first text to the last, divided by the answer's tokens less one, as the usage counts them. It
  does not depend on how tokens are packed into events; where it differs from the mean ICL, they are packed.
- Latency: from just before the request is sent to ``[DONE]``.

Two more figures come from the schedule, and ``chats`` adds them: the lag, which is the time from the scheduled arrival
to sending, and "TTFT scheduled", which is the lag and the TTFT.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

DONE: Final = b"[DONE]"


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole answer and its times, in seconds; the module's docstring defines them.

    Args:
        ttft_s: The TTFT.
        icl_s: The ICL of each gap.
        itl_s: The ITL; None unless the usage counts two tokens or more.
        latency_s: The latency.
        num_tokens: The tokens of the answer as the usage counts them; 0 if it does not.
        text: The answer.
    """

    ttft_s: float
    icl_s: tuple[float, ...]
    itl_s: float | None
    latency_s: float
    num_tokens: int
    text: str

    def latencies(self) -> Iterator[tuple[str, float]]:
        """Yields the name and the value of each latency: TTFT once, ICL per gap, ITL if it is known."""
        yield "TTFT", self.ttft_s
        yield from (("ICL", gap_s) for gap_s in self.icl_s)
        if self.itl_s is not None:
            yield "ITL", self.itl_s


class ChatFailed(Exception):
    """An answer failed.

    Args:
        cause: What failed, with the server's error code if it gave one. The text is short and the same for the same
            cause, because Locust groups failures by it.
        detail: The server's own words.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause)
        self.detail: Final = detail


class ChatRefused(ChatFailed):
    """The server had no room and said when to try again: 429 with ``Retry-After``."""


def read_answer(lines: Iterable[bytes], started_s: float, clock: Callable[[], float] = time.perf_counter) -> ChatAnswer:
    """Reads a stream to its end.

    Args:
        lines: The lines of the stream with their line ends, each as soon as it arrives.
        started_s: The value of ``clock`` just before the request was sent.
        clock: Returns the time in seconds.

    Raises:
        ChatFailed: There is an error event or an event that is not a JSON object, or ``[DONE]`` or all text is missing.
    """
    texts_s: list[float] = []
    texts: list[str] = []
    num_tokens = 0
    done_s = None
    for data in event_data(lines):
        now_s = clock()
        if data == DONE:
            done_s = now_s
            continue
        event = _parse(data)
        if event.get("error"):
            raise ChatFailed(f"error event: {_code(event)}", _message(event))
        if text := _text(event):
            texts_s.append(now_s)
            texts.append(text)
        if usage := event.get("usage"):
            num_tokens = usage["completion_tokens"]
    if done_s is None:
        raise ChatFailed("no [DONE]")
    if not texts_s:
        raise ChatFailed("empty answer")
    return ChatAnswer(
        ttft_s=texts_s[0] - started_s,
        icl_s=tuple(later - earlier for earlier, later in itertools.pairwise(texts_s)),
        itl_s=(texts_s[-1] - texts_s[0]) / (num_tokens - 1) if num_tokens > 1 else None,
        latency_s=done_s - started_s,
        num_tokens=num_tokens,
        text="".join(texts),
    )


def refusal(status: int, body: bytes, *, retry_after: bool = False) -> ChatFailed:
    """The failure for an HTTP status other than 200. It names the status and the code of the OpenAI error in the body.

    Args:
        status: The HTTP status.
        body: The body of the response.
        retry_after: True if the response has the header ``Retry-After``. With 429 the result is a ``ChatRefused``.
    """
    kind = ChatRefused if status == 429 and retry_after else ChatFailed
    try:
        error = _parse(body)
    except ChatFailed:
        return kind(f"{status} without a typed error", body[:200].decode(errors="replace"))
    return kind(f"{status} {_code(error)}", _message(error))


def event_data(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the data of each server-sent event when the blank line that ends it arrives; an unfinished event is
    dropped.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation (less lone CR
        line ends).
    """
    data: list[bytes] = []
    for line in lines:
        text = line.rstrip(b"\r\n")
        if not text and data:
            yield b"\n".join(data)
            data = []
        elif text.startswith(b"data:"):
            data.append(text.removeprefix(b"data:").removeprefix(b" "))


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ChatFailed("malformed event", data[:200].decode(errors="replace"))
    return event


def _text(event: dict[str, Any]) -> str:
    return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))


def _code(event: dict[str, Any]) -> str:
    error = event.get("error")
    return str((error.get("code") or error.get("type")) if isinstance(error, dict) else error)


def _message(event: dict[str, Any]) -> str:
    error = event.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else ""
