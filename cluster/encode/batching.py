"""Which waiting pictures the vision tower takes next, and how long it waits for more: pure policy.

Pictures stand in the order in which they would be done if each had the tower to itself from when it arrived. Small ones
so pass large ones, but only those that came no later than the large one's own run takes: whoever waits grows older than
all who come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WAIT_S: Final = 0.001
"""The longest that a free tower leaves a picture waiting for others that are on their way: about what each of them
saves by not having a run of its own, which costs 0.7 ms on a CPU core before it computes anything."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A picture whose pixels are there: ``arrived_s`` on a clock that only goes forward."""

    num_patches: int
    arrived_s: float


def take(waiting: Sequence[Waiting], *, budget_patches: int, patch_s: float) -> list[int]:
    """The pictures to run together, as indices into those waiting, in their order.

    The first in order is always among them, alone if it is above the budget; after it, each that still fits.

    Args:
        waiting: At least one picture.
        budget_patches: What a run may have.
        patch_s: What the tower takes per patch.
    """
    first, *others = sorted(range(len(waiting)), key=lambda index: due_s(waiting[index], patch_s))
    batch, room = [first], budget_patches - waiting[first].num_patches
    for index in others:
        if waiting[index].num_patches <= room:
            batch.append(index)
            room -= waiting[index].num_patches
    return batch


def due_s(picture: Waiting, patch_s: float) -> float:
    """When a picture would be done if it had the tower to itself from when it arrived; the earlier, the sooner its
    turn."""
    return picture.arrived_s + picture.num_patches * patch_s


def wait_s(waiting: Sequence[Waiting], *, now_s: float, num_coming: int, budget_patches: int) -> float:
    """How much longer a free tower waits before it takes a batch: not at all when nothing comes or half a batch is
    there.

    Half a batch has most of what there is to gain from sharing a run, and another picture may not fit beside it. The
    wait counts from when the oldest arrived, so that after a run during which others arrived there is no more waiting.

    Args:
        waiting: At least one picture.
        now_s: On the clock of their arrivals.
        num_coming: Pictures on their way here.
        budget_patches: What a run may have.
    """
    if not num_coming or 2 * sum(picture.num_patches for picture in waiting) >= budget_patches:
        return 0.0
    return max(0.0, min(picture.arrived_s for picture in waiting) + MAX_WAIT_S - now_s)
