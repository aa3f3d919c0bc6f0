"""A simulated decoder: an engine with continuous batching, chunked prefill and a prefix cache, as in vLLM.

A step computes the next tokens of the prompts that are not done, up to ``step_tokens``, and one token of every answer.
It takes ``step_s``, ``sequence_s`` for each answer, and the time of the prompt tokens. Steps without prompt tokens are
all alike, so many of them are simulated at once.

Three things are simpler than in vLLM. A request reserves room in the KV cache for its whole answer when it starts, so
no request is ever preempted. The prefix cache is whole segments of prompts and not blocks of 16 tokens. A step never
overlaps the next one.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from cluster.routing.ledger import Held
from cluster.routing.pictures import PictureRoutes
from cluster.scaling.simulation.servers import SimReplica

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cluster.messages import Digest, Replica
    from cluster.scaling.simulation.events import EventClock
    from cluster.scaling.simulation.prompts import Prompt
    from cluster.scaling.simulation.speeds import DecoderSpeeds


@dataclass(slots=True)
class EngineSequence:
    """A request inside an engine.

    Args:
        prompt: The prompt.
        output_tokens: The tokens of its answer.
        started: Called with the seconds that it waited in the engine.
        answered: Called when its first token is there.
        ended: Called when its last token is there.
        num_new_tokens: The tokens of its prompt that are not in the prefix cache.
        token_s: The seconds that each of these takes.
    """

    prompt: Prompt
    output_tokens: int
    started: Callable[[float], None]
    answered: Callable[[], None]
    ended: Callable[[], None]
    num_new_tokens: int = 0
    token_s: float = 0.0
    num_left: int = 0
    arrived_s: float = 0.0

    @property
    def kv_tokens(self) -> int:
        """The tokens of prompt and answer."""
        return self.prompt.num_tokens + self.output_tokens


@dataclass(slots=True)
class _Steps:
    """Steps of one kind that run now: how many, when they began, and how long each takes."""

    num_steps: int
    started_s: float
    step_s: float
    done: list[EngineSequence] = field(default_factory=list)
    """The sequences whose prompts are done at their end."""
    num_tokens: int = 0
    """The tokens of prompts that they compute."""


class DecoderReplica(SimReplica):
    """A decoder. Its work is counted in tokens of prompts that are computed.

    The work is counted as ``PrefillLog`` counts it for a real engine: a prompt waits until its first token is there,
    and is done then. The engine is busy in all steps that compute tokens of prompts.

    ``pictures`` has the pictures whose embeddings it keeps. ``pulls`` has the pictures that it waits for, each
    with the actions to run when it is there. ``routes`` is its own view of the encoders.
    """

    def __init__(self, name: Replica, clock: EventClock, speeds: DecoderSpeeds, load_factor: float) -> None:
        super().__init__(name, clock)
        self._speeds: Final = speeds
        self.routes: Final = PictureRoutes(load_factor)
        self.pictures: Final = Held()
        self.pictures.capacity = speeds.picture_tokens
        self.pulls: Final[dict[Digest, list[Callable[[dict[str, float]], None]]]] = {}
        self._prefixes: Final = Held()
        self._prefixes.capacity = speeds.kv_tokens
        self._queue: Final[deque[EngineSequence]] = deque()
        self._prefilling: Final[deque[EngineSequence]] = deque()
        self._decoding: Final[list[tuple[int, int, EngineSequence]]] = []
        self._num_added = 0
        self._num_steps = 0
        self._kv_tokens = 0
        self._steps: _Steps | None = None

    @property
    def waiting(self) -> float:
        ends_now = self._steps.done if self._steps else []
        return sum(one.num_new_tokens for one in (*self._queue, *self._prefilling, *ends_now))

    @property
    def kv_use(self) -> float:
        """The share of the KV cache that requests have reserved, from 0 to 1."""
        return self._kv_tokens / self._speeds.kv_tokens

    @property
    def fullness(self) -> float:
        num_running = len(self._prefilling) + len(self._decoding)
        return max(self.kv_use, num_running / self._speeds.max_num_seqs)

    def stats(self) -> dict[str, float]:
        """The report to the request routers."""
        return {
            "queued_tokens": self.waiting,
            "waiting": len(self._queue),
            "running": len(self._prefilling) + len(self._decoding),
            "kv_use": self.kv_use,
        }

    @property
    def has_tower(self) -> bool:
        """Whether the engine encodes pictures itself (colocated)."""
        return self._speeds.tower_patch_s is not None

    def add(self, sequence: EngineSequence, to_encode: Collection[Digest]) -> None:
        """Takes a request whose pictures are all there.

        Args:
            sequence: The request.
            to_encode: The pictures that an engine with a tower encodes for it. Those in its prefix cache cost nothing.
        """
        links = sequence.prompt.conversation.links
        cached = [*takewhile(lambda link: link.name in self._prefixes, links)]
        num_cached = sum(link.num_tokens for link in cached)
        # An engine computes the last token of a prompt even if all of it is cached.
        sequence.num_new_tokens = sequence.num_left = max(1, sequence.prompt.num_tokens - num_cached)
        patches = {one.digest: one.num_patches for one in sequence.prompt.pictures if one.digest in to_encode}
        num_patches = sum(patches.values()) - sum(patches.get(link.picture or "", 0) for link in cached)
        tower_s = max(0, num_patches) * (self._speeds.tower_patch_s or 0.0)
        # vLLM encodes pictures as it comes to them in the prompt, so the time is spread over the prompt's tokens.
        sequence.token_s = 1 / self._speeds.prefill_tokens_per_s + tower_s / sequence.num_new_tokens
        sequence.arrived_s = self.clock.now_s
        self.offered += sequence.num_new_tokens
        self._queue.append(sequence)
        if self._steps is None:
            self._begin()
        elif self._has_room():
            self._cut_short()

    def _has_room(self) -> bool:
        is_free = len(self._prefilling) + len(self._decoding) < self._speeds.max_num_seqs
        return is_free and self._kv_tokens + self._queue[0].kv_tokens <= self._speeds.kv_tokens

    def _cut_short(self) -> None:
        """Ends the equal steps that run now with the present one, because a prompt has arrived."""
        assert self._steps is not None
        steps = self._steps
        if steps.num_steps > 1:
            num_begun = max(1, math.ceil((self.clock.now_s - steps.started_s) / steps.step_s))
            if num_begun < steps.num_steps:
                self._schedule(_Steps(num_begun, steps.started_s, steps.step_s))

    def _begin(self) -> None:
        """Starts the next step, or all steps until the next change."""
        self._steps = None
        while self._queue and self._has_room():
            sequence = self._queue.popleft()
            self._kv_tokens += sequence.kv_tokens
            sequence.started(self.clock.now_s - sequence.arrived_s)
            self._prefilling.append(sequence)
        num_decoding, now_s = len(self._decoding), self.clock.now_s
        step_s = self._speeds.step_s + num_decoding * self._speeds.sequence_s
        if self._prefilling:
            step = _Steps(1, now_s, step_s)
            self._prefill(step, max(1, self._speeds.step_tokens - num_decoding))
            self._schedule(step)
        elif self._decoding:
            self._schedule(_Steps(self._decoding[0][0] - self._num_steps, now_s, step_s))

    def _prefill(self, step: _Steps, room_tokens: int) -> None:
        """Adds the next tokens of prompts to a step, as far as they fit in."""
        while self._prefilling and step.num_tokens < room_tokens:
            sequence = self._prefilling[0]
            num_taken = min(room_tokens - step.num_tokens, sequence.num_left)
            sequence.num_left -= num_taken
            step.num_tokens += num_taken
            step.step_s += num_taken * sequence.token_s
            if not sequence.num_left:
                step.done.append(self._prefilling.popleft())

    def _schedule(self, steps: _Steps) -> None:
        self._steps = steps
        self.clock.at(steps.started_s + steps.num_steps * steps.step_s, partial(self._end, steps))

    def _end(self, steps: _Steps) -> None:
        if steps is not self._steps:  # it was cut short
            return
        self._num_steps += steps.num_steps
        self.done += sum(one.num_new_tokens for one in steps.done)
        self.busy_s += steps.step_s if steps.num_tokens else 0.0
        ended = []
        while self._decoding and self._decoding[0][0] <= self._num_steps:
            ended.append(heapq.heappop(self._decoding)[2])
        for sequence in steps.done:
            self._use(sequence)
            sequence.answered()
            if sequence.output_tokens == 1:
                ended.append(sequence)
            else:
                self._num_added += 1
                last_step = self._num_steps + sequence.output_tokens - 1
                heapq.heappush(self._decoding, (last_step, self._num_added, sequence))
        for sequence in ended:
            self._kv_tokens -= sequence.kv_tokens
            answer = sequence.prompt.answer
            self._prefixes.use(answer.name, answer.num_tokens)
            sequence.ended()
        self._begin()

    def _use(self, sequence: EngineSequence) -> None:
        """Puts a prompt into the prefix cache. The beginning counts as used last, so that it is evicted last."""
        for link in reversed(sequence.prompt.conversation.links):
            self._prefixes.use(link.name, link.num_tokens)
