"""An engine that sleeps, with the continuous batching and the chunked prefill of vLLM.

It runs steps while it has requests. A step computes the next tokens of the prompts that are not done, up to
``step_tokens``, and the next piece of every answer. It takes ``step_s`` and the time of its prompt tokens. A prompt
that arrives during a step begins with the next one. ``cluster/scaling/simulation/engine.py`` simulates the same engine.

Like the simulated engine, it reserves room in the KV cache for a whole request when the request starts. It has no
prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from cluster.decode.prefills import PrefillLog
from cluster.messages import FirstPiece, Piece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cluster.messages import Call, Embedding, Spent
    from tests.helpers.pace import Pace

CHARS_PER_TOKEN: Final = 4
PATCHES_PER_TOKEN: Final = 4
DONE: Final = "data: [DONE]\n\n"
MAX_UNTAKEN: Final = 2
"""An answer with so many pieces that its reader has not taken gets no further one. vLLM would join them, and a
measurement of pieces needs them apart. Without a limit, an engine that catches up leaves its readers no time."""


@dataclass(eq=False, slots=True)
class _Sequence:
    """A request inside the engine.

    Args:
        pace: The pace of the engine, with the changes of the request.
        num_prompt_tokens: The tokens of its prompt.
        num_answer_tokens: The tokens of its answer.
        arrived_s: The time of its arrival.
        num_left: The tokens of its prompt that are not computed yet.
        num_sent: The tokens of its answer that are there.
        scheduled_s: The time at which its first step began.
        first_token_s: The time at which its prompt was done.
        pieces: The pieces of its answer that nobody has taken yet.
    """

    pace: Pace
    num_prompt_tokens: int
    num_answer_tokens: int
    arrived_s: float
    num_left: int
    num_sent: int = 0
    scheduled_s: float = 0.0
    first_token_s: float = 0.0
    pieces: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @property
    def kv_tokens(self) -> int:
        """The tokens of prompt and answer."""
        return self.num_prompt_tokens + self.num_answer_tokens

    @property
    def is_done(self) -> bool:
        """Whether its last token is there."""
        return self.num_sent >= self.num_answer_tokens

    def advance(self) -> None:
        """Makes the next piece: the first one has one token."""
        begin = self.num_sent
        num_tokens = self.pace.piece_tokens if begin else 1
        self.num_sent = min(begin + num_tokens, self.num_answer_tokens)
        events = (event(f"{number} ", self.pace.event_chars) for number in range(begin, self.num_sent))
        self.pieces.put_nowait("".join(events))
        if self.is_done:
            self.pieces.put_nowait(DONE)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step: when it ends, the answers that get their next piece, and the prompts that are done with it."""

    ends_s: float
    decoding: list[_Sequence]
    prefilled: list[_Sequence]


class PacedEngine:
    """Stands for vLLM's engine.

    A step takes the longest ``step_s`` of its requests, so that no request is faster than its pace.

    Args:
        pace: How long prompts and steps take, and the limits of the engine.
        row_bytes: The bytes of a token of an embedding.
    """

    def __init__(self, pace: Pace, row_bytes: int) -> None:
        self.embedding_shape: Final = SimpleNamespace(
            num_bytes=lambda grid: row_bytes * prod(grid) // PATCHES_PER_TOKEN
        )
        self.kv_tokens: Final = pace.kv_tokens
        self._pace: Final = pace
        self._prefills: Final = PrefillLog()
        # Dictionaries are used as sets that keep the order of arrival.
        self._waiting: Final[dict[_Sequence, None]] = {}
        self._running: Final[dict[_Sequence, None]] = {}
        self._num_kv_tokens = 0
        self._steps: asyncio.Task[None] | None = None
        self.is_dead: Final = False
        self.patience_s: Final = math.inf

    def stats(self) -> dict[str, float]:
        """The load that a real engine reports to the request routers."""
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "queued_tokens": self._num_queued_tokens,
            "kv_use": round(self._num_kv_tokens / self.kv_tokens, 2),
        }

    def work(self) -> dict[str, float]:
        """The work that a real engine reports to the scaling policy, counted in the same way."""
        now, prefills = self.stats(), self._prefills
        fullness = max(now["kv_use"], now["running"] / self._pace.max_running)
        return prefills.offered.stats(
            prefills.num_tokens, prefills.busy_s, waiting=now["queued_tokens"], fullness=fullness
        )

    @property
    def _num_queued_tokens(self) -> int:
        """The prompt tokens of all requests without a first token. vLLM counts whole prompts until they are done."""
        return sum(one.num_prompt_tokens for one in (*self._waiting, *self._running) if not one.num_sent)

    @property
    def stepped_s(self) -> float:
        """Always now, so it is never asked."""
        return time.monotonic()

    async def probe(self) -> None:
        """Always answers."""

    def stop(self) -> None:
        """Has nothing to stop."""

    async def generate(
        self, call: Call, embeddings: Mapping[str, Embedding], spent: Spent
    ) -> AsyncIterator[FirstPiece | Piece]:
        """Streams ``max_tokens`` words, the first one when the prompt has been prefilled."""
        pace = self._pace.model_copy(update=call.body.get("pace", {}))
        num_tokens = len(json.dumps(call.body)) // CHARS_PER_TOKEN + sum(len(one.rows) for one in embeddings.values())
        one = _Sequence(pace, num_tokens, int(call.body["max_tokens"]), time.perf_counter(), num_left=num_tokens)
        self._prefills.arrived(num_tokens)
        self._waiting[one] = None
        if self._steps is None or self._steps.done():
            self._steps = asyncio.create_task(self._run())
        try:
            first = await one.pieces.get()
            times = {
                "decode_queue": one.scheduled_s - one.arrived_s,
                "prefill": one.first_token_s - one.scheduled_s,
                "first_token": time.perf_counter() - one.first_token_s,
            }
            num_sent = call.replay.num_events if call.replay else 0
            yield FirstPiece("" if num_sent else first, {**spent, **times}, 0 if num_sent else 1)
            num_made = 1
            while (piece := await one.pieces.get()) is not DONE:
                if (num_made := num_made + 1) > num_sent:
                    yield Piece(piece, 1)
            yield Piece(DONE, 1)
        finally:
            self._remove(one)

    def _remove(self, sequence: _Sequence) -> None:
        """Forgets a request whose answer is whole or whose client is gone."""
        self._waiting.pop(sequence, None)
        if sequence in self._running:
            del self._running[sequence]
            self._num_kv_tokens -= sequence.kv_tokens

    async def _run(self) -> None:
        """Runs steps until there are no requests.

        Each step ends at a time that follows from the end of the step before, so a late wake-up delays only one step.
        """
        last_s = 0.0
        while self._waiting or self._running:
            step = self._begin(last_s)
            await asyncio.sleep(max(0.0, step.ends_s - time.perf_counter()))
            self._end(step)
            last_s = step.ends_s

    def _begin(self, last_s: float) -> _Step:
        """Fills the next step.

        Args:
            last_s: The end of the last step. The new one begins then, or when its newest request arrived if that was
                later.
        """
        decoding = [one for one in self._running if not one.num_left]
        started = self._admitted()
        begins_s = max([last_s, *(one.arrived_s for one in started)])
        for one in started:
            one.scheduled_s = begins_s
        step_s = max((one.pace.step_s for one in self._running), default=0.0)
        room, prefill_s, prefilled = max(1, self._pace.step_tokens - len(decoding)), 0.0, []
        for one in self._running:
            if one.num_left and room:
                num_taken = min(room, one.num_left)
                one.num_left -= num_taken
                room -= num_taken
                prefill_s += num_taken * one.pace.token_s
                if not one.num_left:
                    prefilled.append(one)
        return _Step(begins_s + step_s + prefill_s, decoding, prefilled)

    def _admitted(self) -> list[_Sequence]:
        """Starts the requests for which there is room, in the order of their arrival."""
        started = []
        for one in self._waiting:
            # A request that is larger than the KV cache runs alone.
            has_room = not self._running or self._num_kv_tokens + one.kv_tokens <= self.kv_tokens
            if not has_room or len(self._running) >= self._pace.max_running:
                break
            self._running[one] = None
            self._num_kv_tokens += one.kv_tokens
            started.append(one)
        for one in started:
            del self._waiting[one]
        return started

    def _end(self, step: _Step) -> None:
        """Gives each request of a step its next piece, unless its client is gone or far behind."""
        for one in step.prefilled:
            if one in self._running:
                one.first_token_s = step.ends_s
                self._prefills.done(one.num_prompt_tokens, 0, one.scheduled_s, one.first_token_s)
        for one in (*step.decoding, *step.prefilled):
            if one in self._running and one.pieces.qsize() < MAX_UNTAKEN:
                one.advance()
                if one.is_done:
                    self._remove(one)


def event(text: str, num_chars: int = 0) -> str:
    """The server-sent event of one token, filled up with spaces to a length."""
    line = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}"
    return f"{line:<{num_chars}}\n\n"
