"""The waterfall of a request: the seconds that each stage took, up to the first token and to the end.

Each process measures its own stages on its own clock and sends the times along with its result. Clocks of different
processes are never compared. The Router knows how long it waited in all; the part that no stage explains is
``transfer``. So the stages from ``receive`` to ``first_token`` always add up to the time from the arrival of a request
at the Router to the first piece of its answer. ``ingress`` comes before that time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cluster.metrics import STAGE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.messages import Spent

STAGES: Final = {
    "ingress": "the time in proxies before the Router, if one of them sets X-Request-Start",
    "receive": "receiving the body",
    "parse": "parsing and checking the body",
    "fetch": "turning picture URLs into bounded bytes",
    "admission": "waiting in the Router because the encoders or the decoders are full; missing if it did not wait",
    "preprocess_queue": "the call to a preprocessor, and waiting for its earlier pictures",
    "preprocess": "decoding, resizing and cutting up the picture",
    "encode_queue": "waiting for the encoder's earlier pictures, and for a batch",
    "encode": "the vision tower",
    "cache_hit": "in place of the four stages before: the embedding was kept by an encoder, or by the decoder (then 0)",
    "join": "in place of the same four stages: waiting for an embedding that was being made for another request",
    "transfer": "calls between processes and the embedding's way to the decoder: the rest that no stage explains",
    "render": "applying the chat template, tokenizing, and preparing embeddings for the engine",
    "decode_queue": "waiting for the engine's earlier requests",
    "prefill": "the engine's pass over the prompt, up to the first token",
    "first_token": "from the engine's first token to text (from its last token if the answer is not streamed)",
    "stream": "from the first piece of the answer to the last (from first to last token if it is not streamed)",
}
"""The stages in a request's order. When a request has several pictures, the times are those of the picture that was
ready last."""

INGRESS: Final = "ingress"
LAST: Final = "stream"
MAX_INGRESS_S: Final = 60.0
MAX_DIGITS: Final = 20


def ingress_s(request_start: str | None, now_s: float) -> float | None:
    """Seconds since the header ``X-Request-Start: t=<microseconds since 1970>`` was set.

    The result is None if the header is missing, malformed, or gives an impossible time: a client may have sent it, or
    the proxy's clock may be wrong.
    """
    digits = (request_start or "").removeprefix("t=")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
        return None
    spent_s = now_s - int(digits) / 1e6
    return spent_s if 0 <= spent_s <= MAX_INGRESS_S else None


class Waterfall:
    """The stages of one request, filled in while it passes through the Router.

    Args:
        ingress_s: Seconds that the request spent on its way to the Router, if known.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, ingress_s: float | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock: Final = clock
        self._mark = clock()
        self.spent: Final[Spent] = {} if ingress_s is None else {INGRESS: ingress_s}

    def reach(self, stage: str) -> None:
        """Adds the time since the last call to a stage that has just ended."""
        now = self._clock()
        self.spent[stage] = self.spent.get(stage, 0.0) + now - self._mark
        self._mark = now

    def reach_first_piece(self, elsewhere: Spent) -> None:
        """Adds the time since the last call: first the seconds by stage that other processes measured
        (``elsewhere``), then the rest as ``transfer``."""
        self.spent.update(elsewhere)
        self.reach("transfer")
        self.spent["transfer"] -= sum(elsewhere.values())

    @property
    def ttft_s(self) -> float:
        """Seconds from the arrival of the request at the Router to the first piece of its answer; ``ingress`` is not
        included."""
        return sum(seconds for stage, seconds in self.spent.items() if stage not in (INGRESS, LAST))

    def observe(self) -> None:
        """Adds the stages to this process's metrics."""
        for stage, seconds in self.spent.items():
            STAGE_S.labels(stage).observe(seconds)

    def milliseconds(self) -> Spent:
        """The stages in order, in milliseconds, for a log line."""
        return {stage: round(self.spent[stage] * 1000, 3) for stage in STAGES if stage in self.spent}

    def server_timing(self) -> str:
        """The stages so far as the value of the header ``Server-Timing``, in milliseconds.

        Source: https://www.w3.org/TR/server-timing/
        """
        return ", ".join(f"{stage};dur={duration_ms:g}" for stage, duration_ms in self.milliseconds().items())
