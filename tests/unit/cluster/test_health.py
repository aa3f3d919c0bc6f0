"""A worker that is stuck is told from one that is busy, idle or slow. Tests set the clock of the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cluster.health import ANSWER_S, POLL_S, PROVEN_S, StuckWatch
from tests.helpers.waiting import settled

PATIENCE_S = 8.0


@dataclass
class Worker:
    """A worker that answers a question when the test says so."""

    progress_s: float = 0.0
    patience_s: float = PATIENCE_S
    num_asked: int = 0
    verdicts: list[str] = field(default_factory=list)
    answer: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def ask(self) -> None:
        self.num_asked += 1
        await asyncio.shield(self.answer)

    def watch(self) -> StuckWatch:
        return StuckWatch(
            self.ask,
            progress_s=lambda: self.progress_s,
            patience_s=lambda: self.patience_s,
            give_up=self.verdicts.append,
        )


@dataclass
class Clock:
    """The time of the event loop."""

    now_s: float = 1000.0

    async def pass_by(self, duration_s: float, step_s: float = 0.25) -> None:
        """Lets time pass in small steps, and lets everything run that waits for it."""
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + step_s)
            await settled()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the running event loop, which the test moves."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock.now_s)
    return clock


async def checked(watch: StuckWatch, clock: Clock) -> None:
    """Runs one check to its end."""
    check = asyncio.ensure_future(watch.check())
    await settled()
    if not check.done():
        await clock.pass_by(ANSWER_S + 0.25)
    await check


async def test_a_worker_that_makes_progress_is_not_asked(clock: Clock) -> None:
    """A worker that makes progress all the time is never asked, however long it is busy."""
    worker = Worker()
    watch = worker.watch()
    for _ in range(300):
        worker.progress_s = clock.now_s
        await clock.pass_by(PROVEN_S, PROVEN_S)
        await checked(watch, clock)
    assert (worker.num_asked, worker.verdicts, watch.is_silent) == (0, [], False)


async def test_an_idle_worker_that_answers_is_well(clock: Clock) -> None:
    """A worker without work is asked once for each check, and it is well when it answers."""
    worker = Worker()
    worker.answer.set_result(None)
    watch = worker.watch()
    for _ in range(5):
        await clock.pass_by(PROVEN_S + 1, PROVEN_S + 1)
        await checked(watch, clock)
    assert (worker.num_asked, worker.verdicts) == (5, [])


async def test_a_worker_without_progress_or_answer_is_stuck(clock: Clock) -> None:
    """A worker that neither makes progress nor answers is given up when its time is over, without another check and
    once. It is called silent long before."""
    worker, watch = Worker(), None
    watch = worker.watch()
    await checked(watch, clock)  # returns, although there is no answer yet
    assert watch.is_silent
    await clock.pass_by(PATIENCE_S - ANSWER_S - 1)
    assert worker.verdicts == []
    await clock.pass_by(2)
    assert len(worker.verdicts) == 1
    assert worker.num_asked == 1


async def test_progress_gives_a_worker_more_time(clock: Clock) -> None:
    """A worker that does not answer because much work comes first is well as long as it makes progress: each step may
    take nearly all of its time."""
    worker = Worker()
    watch = worker.watch()
    for _ in range(20):
        await checked(watch, clock)
        await clock.pass_by(PATIENCE_S - ANSWER_S - 1)
        worker.progress_s = clock.now_s
        await settled()
    assert (worker.num_asked, worker.verdicts) == (1, [])
    assert not watch.is_silent
    await clock.pass_by(PATIENCE_S + 1)
    assert len(worker.verdicts) == 1


async def test_a_slow_worker_has_the_time_that_it_needs(clock: Clock) -> None:
    """The patience is read anew all the time, because the work that is under way may need longer."""
    worker = Worker(patience_s=60)
    await checked(worker.watch(), clock)
    await clock.pass_by(50)
    assert worker.verdicts == []
    worker.patience_s = PATIENCE_S
    await clock.pass_by(1)
    assert len(worker.verdicts) == 1


async def test_time_in_which_the_process_did_not_run_does_not_count(clock: Clock) -> None:
    """A process that was stopped itself for a minute does not blame its worker, whose answer it has not read yet."""
    worker = Worker()
    await checked(worker.watch(), clock)
    await clock.pass_by(60, 60)
    worker.answer.set_result(None)
    await clock.pass_by(PATIENCE_S)
    assert worker.verdicts == []


async def test_the_workers_error_is_the_checks_error(clock: Clock) -> None:
    """A check raises the worker's error, and the next check asks again. Checks at the same time share a question."""
    worker = Worker()
    watch = worker.watch()
    checks = [asyncio.ensure_future(watch.check()) for _ in range(3)]
    await clock.pass_by(POLL_S, POLL_S / 2)
    worker.answer.set_exception(RuntimeError("device-side assert"))
    failures = await asyncio.gather(*checks, return_exceptions=True)
    assert [str(failure) for failure in failures] == 3 * ["device-side assert"]
    assert worker.num_asked == 1
    with pytest.raises(RuntimeError, match="device-side assert"):
        await checked(watch, clock)
    assert (worker.num_asked, worker.verdicts) == (2, [])
