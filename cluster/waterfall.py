"""The waterfall of a request: where the time to its first token went, stage by stage.

Each process measures its own stretches on its own clock and hands them on with what it made; no two clocks are
compared. What lies between the processes is what is left: ``transfer``. So the stages up to ``first_token`` add up to
the Router's time from the first byte of a request to the first piece of its answer, whatever happens in between.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cluster.metrics import STAGE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.messages import Spent

STAGES: Final = {
    "ingress": "the proxies in front of the Router, where one sets X-Request-Start",
    "receive": "the body's bytes on their way in",
    "parse": "reading the body",
    "fetch": "pictures from their URLs to bounded bytes",
    "preprocess_queue": "the way to a preprocessor, and its earlier pictures",
    "preprocess": "decoding, resizing and cutting up the picture",
    "encode_queue": "the encoder's earlier pictures, and the wait for a batch",
    "encode": "the vision tower",
    "cache_hit": "instead of these four: the decoder, which takes no time for it, or an encoder still had the embedding",
    "join": "instead of these four: it was being encoded for another request",
    "transfer": "calls between processes and the embedding's way to the decoder: what no other stage explains",
    "render": "chat template, tokens and embeddings for the engine",
    "decode_queue": "the engine's earlier requests",
    "prefill": "the engine's pass over the prompt, up to the first token",
    "first_token": "from the engine to text",
    "stream": "from the first piece of the answer to the last",
}
"""In a request's order. Of several pictures, the one counts that was ready last."""

INGRESS: Final = "ingress"
LAST: Final = "stream"
MAX_INGRESS_S: Final = 60.0
MAX_DIGITS: Final = 20


def ingress_s(request_start: str | None, now_s: float) -> float | None:
    """How long a request has been on its way, by the header ``X-Request-Start: t=<microseconds since 1970>``.

    None where it is missing, is not like this, or cannot be true: it may be the client's, or of a clock that is wrong.
    """
    digits = (request_start or "").removeprefix("t=")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
        return None
    spent_s = now_s - int(digits) / 1e6
    return spent_s if 0 <= spent_s <= MAX_INGRESS_S else None


class Waterfall:
    """One request's stages, filled as it passes through the Router.

    Args:
        ingress_s: How long the request was on its way here, if that is known.
        clock: Gives seconds.
    """

    def __init__(self, ingress_s: float | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock: Final = clock
        self._mark = clock()
        self.spent: Final[Spent] = {} if ingress_s is None else {INGRESS: ingress_s}

    def reach(self, stage: str) -> None:
        """Books the time since the last mark under a stage that has just ended."""
        now = self._clock()
        self.spent[stage] = self.spent.get(stage, 0.0) + now - self._mark
        self._mark = now

    def reach_first_piece(self, elsewhere: Spent) -> None:
        """Books the time since the last mark: what other processes measured of it, and the rest as ``transfer``."""
        self.spent.update(elsewhere)
        self.reach("transfer")
        self.spent["transfer"] -= sum(elsewhere.values())

    @property
    def ttft_s(self) -> float:
        """Seconds from when the Router had the request to the first piece of its answer. What proxies say is not in it."""
        return sum(seconds for stage, seconds in self.spent.items() if stage not in (INGRESS, LAST))

    def observe(self) -> None:
        """Adds the stages to this process's metrics."""
        for stage, seconds in self.spent.items():
            STAGE_S.labels(stage).observe(seconds)

    def milliseconds(self) -> Spent:
        """The stages in order, for a log line."""
        return {stage: round(self.spent[stage] * 1000, 3) for stage in STAGES if stage in self.spent}

    def server_timing(self) -> str:
        """The stages so far as the value of the header ``Server-Timing``, in milliseconds.

        Source: https://www.w3.org/TR/server-timing/
        """
        return ", ".join(f"{stage};dur={duration_ms:g}" for stage, duration_ms in self.milliseconds().items())
