"""Steps of a stream, from the decoder that makes them to the one that repeats them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cluster.decode.steps import Share, Step, StepLog, StreamClock, follow, read_steps
from cluster.messages import Replay

if TYPE_CHECKING:
    import pytest


def output(*shares: tuple[int, list[int], str | None, int | str | None]) -> Any:
    """Returns an output of vLLM's engine client, as far as it is noted."""
    names = ("index", "token_ids", "finish_reason", "stop_reason")
    return SimpleNamespace(outputs=[SimpleNamespace(**dict(zip(names, share, strict=True))) for share in shares])


def test_steps_are_read_as_they_were_noted() -> None:
    """Tokens, answers, prompts and ends come back, also if they were taken in several parts."""
    progress = StepLog()
    progress.note(0, output((0, [5, 6], None, None), (1, [7], "length", None)))
    progress.settle()
    taken = progress.take()
    progress.note(2, output((0, [], "stop", "words")))
    progress.note(1, output((3, [8], "stop", 8)))
    progress.note(1, output((0, [9], "repetition", "repetition_detected")))
    progress.settle()
    assert read_steps(taken + progress.take()) == [
        Step(0, (Share(0, [5, 6], None, None, is_last=False), Share(1, [7], "length", None, is_last=True))),
        Step(2, (Share(0, [], None, None, is_last=True),)),
        Step(1, (Share(3, [8], "stop", 8, is_last=True),)),
        Step(1, (Share(0, [9], "repetition", None, is_last=True),)),
    ]
    assert progress.take() == b""


def test_a_step_is_taken_when_it_has_been_read() -> None:
    """A step that vLLM's API layer has not read yet stays for the next piece."""
    progress = StepLog()
    progress.note(0, output((0, [5], None, None)))
    assert progress.take() == b""
    progress.settle()
    progress.note(1, output((0, [6], None, None)))
    assert [step.prompt for step in read_steps(progress.take())] == [0]


async def test_outputs_come_in_the_order_of_the_first_decoder() -> None:
    """The outputs of several prompts are passed on in the order that the first decoder noted, and new ones after
    them. None is passed on before the last one was read."""
    first = StepLog()
    for prompt in (1, 0, 1):
        first.note(prompt, output((0, [prompt], None, None)))
    first.settle()
    progress, order = StepLog(Replay(3, 0, 0, first.take())), []

    async def pass_on(prompt: int, num_outputs: int) -> None:
        for _ in range(num_outputs):
            await progress.turn(prompt)
            order.append(prompt)
            progress.note(prompt, output((0, [prompt], None, None)))
            await asyncio.sleep(0)
            assert order[-1] == prompt
            progress.passed()

    await asyncio.gather(pass_on(0, 3), pass_on(1, 2))
    assert order[:3] == [1, 0, 1]
    assert [step.prompt for step in read_steps(progress.take())] == order[3:] == [0, 0]


async def test_a_turn_wakes_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output that is passed on wakes only the next prompt, in the order in which they came."""
    progress, order, num_turns = StepLog(), [], 64
    loop, num_callbacks = asyncio.get_running_loop(), 0
    call_soon = loop.call_soon

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal num_callbacks
        num_callbacks += 1
        return call_soon(*args, **options)

    async def pass_on(prompt: int) -> None:
        await progress.turn(prompt)
        order.append(prompt)
        await asyncio.sleep(0)
        progress.passed()

    await progress.turn(num_turns)
    tasks = [asyncio.create_task(pass_on(prompt)) for prompt in range(num_turns)]
    await asyncio.sleep(0)
    monkeypatch.setattr(loop, "call_soon", counted)
    progress.passed()
    await asyncio.gather(*tasks)
    assert order == [*range(num_turns)]
    assert num_callbacks < 5 * num_turns


async def test_a_turn_of_who_has_left_goes_to_the_next() -> None:
    """A prompt that is cancelled while it waits, or in the moment in which it gets its turn, keeps no other waiting."""
    progress = StepLog()
    await progress.turn(0)
    left, given, last = [asyncio.create_task(progress.turn(prompt)) for prompt in (1, 2, 3)]
    await asyncio.sleep(0)
    left.cancel()
    progress.passed()
    given.cancel()
    async with asyncio.timeout(5):
        await last
    assert given.cancelled()
    assert left.cancelled()


def test_a_stream_keeps_its_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a stream the clock of vLLM's API layer stands at the stream's begin, and elsewhere it runs."""
    clock = StreamClock()
    monkeypatch.setattr(time, "time", lambda: 99.5)
    follow(StepLog(Replay(7, 0, 0, b"")))
    assert clock.time() == 7
    follow(None)
    assert clock.time() == 99.5
    assert clock.monotonic is time.monotonic
