"""The gates of one Router in front of the encoders and the decoders, and the refusals there.

In: the estimated cost of a request. Out: nothing, or ``Overloaded`` with the time after which a retry succeeds; then,
when the request's pictures are known, its passes.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from cluster.admission.bookings import MAX_AHEAD_S, Bookings, name_of
from cluster.admission.gate import Gate
from cluster.admission.slots import MAX_SHARE_OF_SLOTS
from cluster.errors import Overloaded
from cluster.metrics import OLDEST_WAIT_S, WAITING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.admission.cost import RequestCost
    from cluster.admission.gate import Pass
    from cluster.admission.slots import Slot


class StageGates:
    """Counts the work that one Router has at the encoders and decoders, and lets the rest wait.

    Attributes:
        encoder: The gate of the pictures, by their patches.
        decoder: The gate of the answers, by their sequences.

    Args:
        encoder_patches: The patches that may be in preparation now.
        decoder_sequences: The sequences that may be at the decoders now.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        encoder_patches: Callable[[], float],
        decoder_sequences: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.encoder: Final = Gate(encoder_patches, clock=clock)
        self.decoder: Final = Gate(decoder_sequences, clock=clock)
        self._bookings: Final = Bookings(clock=clock)

    def judge(
        self,
        tenant: str,
        cost: RequestCost,
        raw: bytes,
        priority: int = 0,
        *,
        max_wait_s: float,
        left_s: float,
        num_free_slots: int,
    ) -> None:
        """Refuses a request that would wait too long.

        A request that comes again at its booked time is accepted, if the wait fits its deadline and its tenant does not
        have too many requests waiting: twice ``MAX_SHARE_OF_SLOTS`` for each free slot.

        Args:
            tenant: Its tenant.
            cost: Its estimated cost.
            raw: Its body, by which it is recognised.
            priority: See ``FairQueue.push``.
            max_wait_s: The longest time that a new request may wait.
            left_s: The time until the request's deadline.
            num_free_slots: The slots of the Router that are free.

        Raises:
            Overloaded: The request would wait too long, or its tenant has too many requests waiting.
        """
        if not cost.num_sequences:
            return
        wait_s = self.decoder.wait_s(tenant, priority)
        if cost.num_patches:
            wait_s += self.encoder.wait_s(tenant, priority)
        num_waiting = self.decoder.num_waiting_of(tenant) + self.encoder.num_waiting_of(tenant)
        if wait_s <= min(max_wait_s, left_s) and num_waiting <= MAX_SHARE_OF_SLOTS * num_free_slots:
            return
        name = name_of(tenant, raw)
        has_slot = num_waiting <= 2 * MAX_SHARE_OF_SLOTS * num_free_slots  # some are left for other tenants
        if wait_s <= left_s and has_slot and self._bookings.is_due(name):
            return
        takes_s = self.decoder.takes_s(tenant, cost.weighted_tokens)
        if cost.num_patches:
            takes_s = max(takes_s, self.encoder.takes_s(tenant, cost.num_patches))
        booked_s = self._bookings.book(name, tenant, wait_s=wait_s, takes_s=takes_s)
        reason = f"would wait for about {wait_s:.0f} s" if wait_s >= 1 else "has no room now"
        error = Overloaded(f"The request {reason}; send it again when Retry-After is over.")
        error.retry_after_s = _whole(booked_s)
        raise error

    async def enter(
        self, slot: Slot, tenant: str, cost: RequestCost, priority: int = 0
    ) -> tuple[Pass | None, Pass, bool]:
        """Takes the passes of a request, or waits for them. Pictures come first, so that a request whose pictures wait
        takes nothing from those that have none. The slot gives the passes back when the request leaves.

        Returns:
            The pass of its pictures, if it has any; that of its answer; and whether it has waited.
        """
        has_waited, pictures = False, None
        if num_patches := cost.num_patches:
            pictures = self.encoder.try_enter(tenant, num_patches, num_patches)
            if pictures is None:
                has_waited = True
                pictures = await self.encoder.enter(tenant, num_patches, num_patches, priority)
            slot.attach(pictures)
        answer = self.decoder.try_enter(tenant, cost.num_sequences, cost.weighted_tokens)
        if answer is None:
            has_waited = True
            if pictures is not None:
                pictures.hold_back()
            answer = await self.decoder.enter(tenant, cost.num_sequences, cost.weighted_tokens, priority)
            if pictures is not None:
                pictures.begin()
        slot.attach(answer)
        return pictures, answer, has_waited

    def look(self) -> None:
        """Lets requests in for which there is room now, because a pool may have grown."""
        self.encoder.look()
        self.decoder.look()

    def observe(self) -> None:
        """Sets this process's metrics of what waits."""
        for stage, gate in (("encoder", self.encoder), ("decoder", self.decoder)):
            WAITING.labels(stage).set(gate.num_waiting)
            OLDEST_WAIT_S.labels(stage).set(gate.oldest_wait_s)

    def retry_after_s(self, tenant: str) -> int:
        """The seconds for ``Retry-After`` of a request that was refused before it was read. Nothing is booked, because
        the request cannot be recognised when it comes again."""
        return _whole(min(MAX_AHEAD_S, self.decoder.wait_s(tenant) + self.decoder.takes_s(tenant)))


def _whole(seconds: float) -> int:
    """Whole seconds, at least one."""
    return max(1, math.ceil(seconds))
