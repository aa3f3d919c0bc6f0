"""The paced engine runs the steps of continuous batching, and forgets requests whose clients are gone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from cluster.messages import Call, FirstPiece, Piece
from cluster.scaling.work import BUSY_S, FULLNESS, OFFERED, WAITING, WORK
from tests.helpers.ask import chat, text
from tests.helpers.pace import Pace
from tests.helpers.paced_engine import DONE, PacedEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PACE = Pace(token_s=0.0005, step_s=0.01)
NUM_CHARS = 400


def stream(engine: PacedEngine, num_chars: int = NUM_CHARS, **options: Any) -> AsyncIterator[FirstPiece | Piece]:
    """Sends a text and returns its answer."""
    body = chat([text("x" * num_chars)], **{"max_tokens": 3, **options})
    return engine.generate(Call("chat", "id", body), {}, {})


async def times(pieces: AsyncIterator[FirstPiece | Piece]) -> tuple[list[float], list[str]]:
    """Reads an answer, and returns the times and the texts of its pieces."""
    times_s, texts = [], []
    async for piece in pieces:
        times_s.append(time.perf_counter())
        texts.append(piece.text)
    return times_s, texts


async def ended(engine: PacedEngine) -> None:
    """Waits until the engine runs no steps."""
    assert engine._steps is not None
    await engine._steps


async def test_prompts_that_fit_into_a_step_get_their_first_tokens_at_the_same_time() -> None:
    """The step takes the time of both prompts. Afterwards both answers get a token in each step."""
    engine, began_s = PacedEngine(PACE, 4), time.perf_counter()
    (ones_s, texts), (others_s, _) = await asyncio.gather(times(stream(engine)), times(stream(engine)))
    num_tokens = engine.work()[WORK] / 2
    assert num_tokens >= NUM_CHARS / 4
    assert ones_s[0] - began_s >= 2 * num_tokens * PACE.token_s + PACE.step_s
    assert others_s == pytest.approx(ones_s, abs=PACE.step_s / 2)
    assert [*texts[0:1], texts[-1]] == [texts[0], DONE]
    assert len(texts) == 4
    assert ones_s[2] - began_s >= 2 * num_tokens * PACE.token_s + 3 * PACE.step_s


async def test_a_prompt_that_does_not_fit_goes_on_in_the_next_step() -> None:
    """A step has room for one and a half prompts, so the first prompt is done one step before the second one."""
    engine = PacedEngine(PACE.model_copy(update={"step_tokens": 200}), 4)
    one, other = stream(engine, max_tokens=1), stream(engine, max_tokens=1)
    first = asyncio.create_task(times(one))
    (others_s, _), (ones_s, _) = await asyncio.gather(times(other), first)
    assert others_s[0] - ones_s[0] >= PACE.step_s


async def test_a_step_takes_as_long_as_its_slowest_request_asks_for() -> None:
    """A request changes its pace with ``pace``, and gets several tokens to a piece."""
    engine, began_s = PacedEngine(PACE, 4), time.perf_counter()
    pace = {"token_s": 0, "step_s": 0.05, "piece_tokens": 4, "event_chars": 230}
    (times_s, texts), _ = await asyncio.gather(
        times(stream(engine, max_tokens=6, pace=pace)), times(stream(engine, pace={"token_s": 0}))
    )
    assert [one.count("data: ") for one in texts] == [1, 4, 1, 1]
    assert all(len(one) >= 230 for one in texts[:-1])
    assert times_s[2] - began_s >= 3 * pace["step_s"]


async def test_an_answer_that_is_left_frees_its_slot() -> None:
    """With one slot, a second request starts when the first one is closed in mid-stream. Afterwards nothing runs."""
    engine = PacedEngine(PACE.model_copy(update={"max_running": 1}), 4)
    left = stream(engine, max_tokens=100_000)
    assert isinstance(await anext(left), FirstPiece)
    waiting = asyncio.create_task(times(stream(engine)))
    await asyncio.sleep(0)
    assert (engine.stats()["running"], engine.stats()["waiting"]) == (1, 1)
    assert engine.work()[FULLNESS] == 1
    await left.aclose()  # type: ignore[attr-defined]
    _, texts = await waiting
    assert texts[-1] == DONE
    await ended(engine)
    assert engine.stats() == {"waiting": 0, "running": 0, "queued_tokens": 0, "kv_use": 0.0}


async def test_an_answer_waits_for_its_reader() -> None:
    """An answer whose reader stops for 20 steps is not whole after them, and loses no token."""
    engine = PacedEngine(PACE, 4)
    slow = stream(engine, max_tokens=10)
    assert isinstance(await anext(slow), FirstPiece)
    await times(stream(engine, max_tokens=20))
    assert engine.stats()["running"] == 1
    assert len([piece async for piece in slow]) == 10  # nine tokens, and the end
    assert engine.stats()["running"] == 0


async def test_a_prompt_waits_for_room_in_the_kv_cache() -> None:
    """Two requests of 60,000 tokens do not fit into 100,000, so the second starts when the first one has ended."""
    engine, num_chars = PacedEngine(PACE.model_copy(update={"token_s": 0}), 4), PACE.kv_tokens * 4 * 6 // 10
    first, second = (asyncio.create_task(times(stream(engine, num_chars))) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (engine.stats()["running"], engine.stats()["waiting"], engine.stats()["kv_use"]) == (1, 1, 0.6)
    (firsts_s, _), (seconds_s, _) = await asyncio.gather(first, second)
    assert seconds_s[0] > firsts_s[-1]


async def test_work_is_counted_as_by_a_real_engine() -> None:
    """Prompts count as waiting until they are done, and as done with their first token. The busy time is that of the
    steps that compute prompts."""
    engine = PacedEngine(PACE, 4)
    answer = asyncio.create_task(times(stream(engine)))
    await asyncio.sleep(0)
    work = engine.work()
    assert work[WAITING] == work[OFFERED] >= NUM_CHARS / 4
    assert work[WORK] == 0
    await answer
    done = engine.work()
    assert (done[WAITING], done[WORK]) == (0, work[OFFERED])
    assert done[BUSY_S] == pytest.approx(work[OFFERED] * PACE.token_s + PACE.step_s)
