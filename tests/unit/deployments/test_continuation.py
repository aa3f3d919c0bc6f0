"""Streams that go on at other decoders, with decoders of the test's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cluster.deadline import Deadline
from cluster.errors import DeadlineExceeded, InternalError, PictureLost, PoolUnavailable, PrismError
from cluster.messages import FirstPiece, Piece
from deployments import continuation
from deployments.continuation import MAX_CONTINUATIONS, Continuation
from deployments.ray_serve.retries import Attempts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cluster.messages import Replay

GONE = PoolUnavailable("Gone.", pool="decoder")


class Pool:
    """Decoders named by numbers. Each makes its own pieces of the stream, and then fails or is done. After
    ``num_late_looks`` the pool has them all."""

    def __init__(self, *scripts: tuple[list[Piece], PrismError | None], num_spare: int = 9) -> None:
        self.scripts = list(scripts)
        self.replays: list[Replay | None] = []
        self.num_replicas = len(scripts) + num_spare
        self.attempts = Attempts("decoder")
        self.num_went_on = self.num_late_looks = 0

    async def decode(self, replay: Replay | None) -> AsyncGenerator[FirstPiece | Piece]:
        name = str(len(self.replays))
        self.replays.append(replay)
        pieces, error = self.scripts[len(self.replays) - 1]
        self.attempts.sent(name, has_other=True, suspect=lambda: None, trusted=self.names)
        for number, piece in enumerate(pieces):
            yield piece if number else FirstPiece(piece.text, {}, piece.num_events, piece.steps, 77)
        if isinstance(error, PoolUnavailable):
            self.attempts.note(error)
        if error:
            raise error

    def names(self) -> list[str]:
        """The replicas of the pool."""
        if self.num_late_looks:
            self.num_late_looks -= 1
            self.num_replicas += not self.num_late_looks and 2
        return [str(number) for number in range(self.num_replicas)]

    def went_on(self) -> None:
        """Counts a continuation."""
        self.num_went_on += 1

    async def texts(self, *, waits: bool = False, timeout_s: float = 60.0) -> list[str]:
        pieces = self.decode(None)
        first = await anext(pieces)
        assert isinstance(first, FirstPiece)
        deadline = Deadline(asyncio.get_running_loop().time(), timeout_s)
        stream = Continuation(self.decode, self.attempts, deadline, waits=waits, went_on=self.went_on)
        return [first.text, *[text async for text in stream.texts(first, pieces)]]


def piece(text: str, num_events: int = 1) -> Piece:
    """A piece whose steps are its text."""
    return Piece(text, num_events, text.encode())


async def test_the_next_decoder_knows_what_was_sent() -> None:
    """The next decoder gets all steps, the number of events, and the characters of an event that was sent in part."""
    pool = Pool(
        ([piece("a", 2), piece("b"), piece("c", 0), piece("d", 0)], GONE),
        ([piece("e"), piece("f", 3)], GONE),
        ([piece("g")], None),
    )
    assert await pool.texts() == list("abcdefg")
    assert pool.num_went_on == 2
    first, second = pool.replays[1:]
    assert first
    assert second
    assert (first.created, first.num_events, first.num_chars, first.steps) == (77, 3, 2, b"abcd")
    assert (second.created, second.num_events, second.num_chars, second.steps) == (77, 7, 0, b"abcdef")


async def test_a_request_that_kills_ends_after_two() -> None:
    """After two decoders have failed at the same place of a stream, no third one is called."""
    pool = Pool(([piece("a")], GONE), ([], GONE), ([piece("b")], None))
    with pytest.raises(PoolUnavailable):
        await pool.texts()
    assert len(pool.replays) == 2


async def test_a_stream_goes_on_only_so_often() -> None:
    """A stream whose decoders fail again and again ends with the error of the last one."""
    pool = Pool(*(([piece(name)], GONE) for name in "abcde"))
    with pytest.raises(PoolUnavailable):
        await pool.texts()
    assert len(pool.replays) == 1 + MAX_CONTINUATIONS


@pytest.mark.parametrize("error", [InternalError("No."), PictureLost("No."), PoolUnavailable("No.", pool="encoder")])
async def test_errors_of_the_request_end_it(error: PrismError) -> None:
    """An error that another decoder would make too is the stream's end."""
    pool = Pool(([piece("a")], error), ([piece("b")], None))
    with pytest.raises(type(error)):
        await pool.texts()
    assert len(pool.replays) == 1


async def test_the_only_decoders_successor_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the pool has no other decoder, the stream waits for one, until its deadline or not at all."""
    monkeypatch.setattr(continuation, "LOOK_S", 0.0)
    pool = Pool(([piece("a")], GONE), num_spare=0)
    with pytest.raises(PoolUnavailable):
        await pool.texts(waits=False)
    pool = Pool(([piece("a")], GONE), num_spare=0)
    with pytest.raises(DeadlineExceeded):
        await pool.texts(waits=True, timeout_s=0.05)
    pool = Pool(([piece("a")], GONE), ([piece("b")], None), num_spare=-2)
    pool.num_late_looks = 3
    assert await pool.texts(waits=True) == ["a", "b"]
    assert not pool.num_late_looks
