"""Carries a stream on to its end when the decoder that makes it fails: another decoder goes on behind the last piece.

The Router keeps what the decoder has told about the stream, and reads none of its text. The other decoder repeats the
earlier tokens in vLLM, below its API layer (``cluster/decode/replay.py``), and sends only the rest.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from cluster.errors import PoolUnavailable, PrismError
from cluster.messages import Begun, FirstPiece, Piece, Replay
from cluster.metrics import CONTINUATIONS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cluster.deadline import Deadline
    from deployments.ray_serve.retries import Attempts

    Decode = Callable[[Replay], AsyncGenerator[Begun | FirstPiece | Piece]]

log: Final = logging.getLogger("ray.serve")

MAX_CONTINUATIONS: Final = 2
"""How often one stream goes on at another decoder. It never does after a decoder that has failed without a piece of it:
the request may be what kills decoders, and two have failed at the same place."""
LOOK_S: Final = 0.25
"""The pause between two looks for another decoder, in seconds."""


class Continuation:
    """One stream over all decoders that make it.

    Args:
        decode: Calls a decoder for the rest of the stream.
        attempts: The decoders that have failed on this request.
        deadline: The end of the request's time.
        waits: Wait for the successor of the failed decoder, if the pool has no other.
        went_on: Called each time the stream has gone on.
    """

    def __init__(
        self,
        decode: Decode,
        attempts: Attempts,
        deadline: Deadline,
        *,
        waits: bool,
        went_on: Callable[[], None],
    ) -> None:
        self._decode: Final = decode
        self._attempts: Final = attempts
        self._deadline: Final = deadline
        self._waits: Final = waits
        self._went_on: Final = went_on
        self._steps: Final = bytearray()
        self._num_events = self._num_chars = self._created = 0
        self._num_continuations = 0

    async def texts(self, first: FirstPiece, pieces: AsyncGenerator[Begun | FirstPiece | Piece]) -> AsyncGenerator[str]:
        """Yields the text of all pieces behind the first one.

        Args:
            first: The first piece of the stream.
            pieces: The other pieces that its decoder makes.

        Raises:
            PoolUnavailable: The stream cannot go on: too many decoders have failed, two have failed at the same place,
                or there is no other.
            DeadlineExceeded: The request's time ran out.
            PrismError: A decoder's own error.
        """
        self._created = first.created
        self._take(first)
        while True:
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        assert not isinstance(piece, Begun), "an answer begins once"
                        yield self._take(piece)
                return
            except PoolUnavailable as error:
                failed = error
            first, pieces = await self._go_on(failed)
            yield self._take(first)

    async def _go_on(self, failed: PoolUnavailable) -> tuple[FirstPiece, AsyncGenerator[Begun | FirstPiece | Piece]]:
        """Has another decoder go on.

        Raises:
            PrismError: See ``texts``.
        """
        try:
            await self._check(failed)
            self._num_continuations += 1
            pieces = self._decode(Replay(self._created, self._num_events, self._num_chars, bytes(self._steps)))
            while isinstance(first := await anext(pieces), Begun):
                pass
        except PrismError as error:
            CONTINUATIONS.labels(error.code).inc()
            raise
        assert isinstance(first, FirstPiece), "a decoder's first item"
        CONTINUATIONS.labels("continued").inc()
        self._went_on()
        return first, pieces

    async def _check(self, failed: PoolUnavailable) -> None:
        """Waits until there is a decoder that may go on.

        Raises:
            PoolUnavailable: There is none, or this request has had its share of them, or nobody knows which replica
                has failed, because Serve's own policy routes the calls (``routing.policy: balanced``).
            DeadlineExceeded: None came in time.
        """
        log.warning("a decoder failed in the middle of a stream: %s", failed.replica)
        if failed.pool != "decoder" or self._num_continuations == MAX_CONTINUATIONS or not self._attempts.failed:
            raise failed
        try:
            async with asyncio.timeout_at(self._deadline.at_s):
                while not self._attempts.has_untried():
                    if not self._waits:
                        raise failed
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise self._deadline.exceeded(cause="waiting for another decoder") from failed

    def _take(self, piece: FirstPiece | Piece) -> str:
        """The text of a piece, which counts as sent from now on."""
        self._steps.extend(piece.steps)
        if piece.num_events:
            self._num_events, self._num_chars = self._num_events + piece.num_events, 0
        else:
            self._num_chars += len(piece.text)
        return piece.text


async def texts(pieces: AsyncGenerator[Begun | FirstPiece | Piece]) -> AsyncGenerator[str]:
    """The texts of pieces of an answer that is no stream."""
    async with aclosing(pieces):
        async for piece in pieces:
            assert not isinstance(piece, Begun), "an answer begins once"
            yield piece.text
