"""Writes down the engine's outputs behind a stream, so that another decoder can repeat them.

A step is one output that vLLM's API layer takes from the engine client. The layer makes the same events of the same
steps, so a stream can go on elsewhere, and nothing has to parse its text.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import defaultdict, deque
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

    from cluster.messages import Replay

FINISHES: Final = ("stop", "length", "repetition")
"""The ends of an answer that are repeated. After any other end the stream fails."""
GOES_ON, BY_TEXT = -1, len(FINISHES)
"""Two more ends of a share: the answer goes on, or a stop string ended it, which the tokens show by themselves."""
NO_TOKEN: Final = -1
INTS: Final = "i"
HEADER_INTS: Final = 6


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a step that belongs to one of the answers to a prompt. ``finish`` is one of ``FINISHES``, or None.
    ``stop_token`` is the token that ended the answer, if the request names it."""

    index: int
    tokens: list[int]
    finish: str | None
    stop_token: int | None
    is_last: bool
    """The answer needs no more of the engine."""


@dataclass(frozen=True, slots=True)
class Step:
    """One output of the engine client: the number of its prompt, and a share of each answer that has got tokens."""

    prompt: int
    shares: tuple[Share, ...]


class StepLog:
    """The steps of one stream: those that another decoder has made, and those of this one.

    Args:
        replay: The part of the stream that another decoder has made, if it is not the first.
    """

    def __init__(self, replay: Replay | None = None) -> None:
        self.created: Final = replay.created if replay else int(time.time())
        steps: Final = read_steps(replay.steps) if replay else []
        self._steps: Final[defaultdict[int, list[Step]]] = defaultdict(list)
        for step in steps:
            self._steps[step.prompt].append(step)
        self._due: Final = deque(step.prompt for step in steps)
        self._notes: Final = array(INTS)
        self._num_settled_ints = 0
        self._num_prompts = 0
        self._is_taken = False
        self._waiting: Final[dict[int, asyncio.Future[None]]] = {}
        """The prompts that wait for their turn, in the order in which they came."""

    def enter(self) -> int:
        """Returns the number of the next prompt. vLLM's API layer sends them in their order."""
        self._num_prompts += 1
        return self._num_prompts - 1

    def steps_of(self, prompt: int) -> list[Step]:
        """The steps that another decoder has made for a prompt."""
        return self._steps.get(prompt, [])

    async def turn(self, prompt: int) -> None:
        """Waits until the prompt's next output may be passed on. Call ``passed`` when it has been taken.

        vLLM's API layer takes the outputs of several prompts in any order. It must be the order of the notes, and on
        another decoder the order of the first one.
        """
        if self._is_taken or (self._due and self._due[0] != prompt):
            given = self._waiting[prompt] = asyncio.get_running_loop().create_future()
            try:
                await given
            except asyncio.CancelledError:
                self._waiting.pop(prompt, None)
                if not given.cancelled():  # the turn was given in the same moment
                    self._give_turn()
                raise
        self._is_taken = True

    def passed(self) -> None:
        """Lets the next output be passed on."""
        self.settle()
        self._give_turn()

    def _give_turn(self) -> None:
        """Gives the turn to one prompt alone. If all woke up, a step of so many prompts would cost their square."""
        self._is_taken = False
        while not self._is_taken and self._waiting:
            prompt = self._due[0] if self._due else next(iter(self._waiting))
            given = self._waiting.pop(prompt, None)
            if given is None:
                return
            if not given.done():  # a task that is being cancelled may not have left yet
                given.set_result(None)
                self._is_taken = True

    def note(self, prompt: int, output: RequestOutput) -> None:
        """Writes an output down, unless another decoder has done so."""
        if self._due:
            self._due.popleft()
            return
        notes, num_more = self._notes, len(output.outputs)
        for share in output.outputs:
            num_more -= 1
            finish, stop_token = GOES_ON, NO_TOKEN
            if share.finish_reason is not None:
                if share.finish_reason == "stop" and isinstance(share.stop_reason, str):
                    finish = BY_TEXT
                elif share.finish_reason in FINISHES:
                    finish = FINISHES.index(share.finish_reason)
                    stop_token = share.stop_reason if isinstance(share.stop_reason, int) else NO_TOKEN
            notes.extend((prompt, num_more, share.index, finish, stop_token, len(share.token_ids)))
            notes.extend(share.token_ids)

    def settle(self) -> None:
        """Call it for each event: vLLM's API layer has read the last output. With several prompts it may not have read
        it yet when the events before it are sent."""
        self._num_settled_ints = len(self._notes)

    def take(self) -> bytes:
        """The steps since the last call that vLLM's API layer has read."""
        taken = self._notes[: self._num_settled_ints].tobytes()
        del self._notes[: self._num_settled_ints]
        self._num_settled_ints = 0
        return taken


def read_steps(data: bytes) -> list[Step]:
    """Reads what ``StepLog.take`` gave, one or several times."""
    ints, steps, shares, at = array(INTS, data), [], [], 0
    while at < len(ints):
        prompt, num_more, index, finish, stop_token, num_tokens = ints[at : at + HEADER_INTS]
        at += HEADER_INTS
        tokens = ints[at : at + num_tokens].tolist()
        at += num_tokens
        name = FINISHES[finish] if 0 <= finish < len(FINISHES) else None
        shares.append(Share(index, tokens, name, None if stop_token == NO_TOKEN else stop_token, finish != GOES_ON))
        if not num_more:
            steps.append(Step(prompt, tuple(shares)))
            shares = []
    return steps


_progress: Final[ContextVar[StepLog | None]] = ContextVar("prism_progress", default=None)


def follow(progress: StepLog | None) -> None:
    """Has the engine's outputs in the current task written down from now on, or no longer."""
    _progress.set(progress)


def followed() -> StepLog | None:
    """The progress that the current task follows."""
    return _progress.get()


class StreamClock:
    """Stands in for the module ``time`` in vLLM's API layer, which stamps each chunk with the time of its start. The
    chunks of a stream have one stamp, also if two decoders have made them."""

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def time(self) -> float:
        """The stamp of the stream that the current task follows. Otherwise the time of the epoch, in seconds."""
        progress = _progress.get()
        return time.time() if progress is None else float(progress.created)
