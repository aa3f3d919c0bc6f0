"""The policy of the batch queue: which waiting pictures share the next run, and how long the tower waits for more.

In: the waiting pictures and the time. Out: a choice of pictures, or a time to wait. Nothing here has state.

Pictures are sorted by the time at which each would be finished if the tower had started it on arrival. A small picture
can overtake a large one only if it arrives within the large one's own run time, so no picture starves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WAIT_S: Final = 0.001
"""The longest time that a free tower lets a picture wait for others on their way here. It is about the time that each
of the others saves by sharing the run. Measured (one CPU core): fixed cost of a run, before it computes anything → 0.7
ms.
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A picture in the queue. ``arrived_s`` is its time of arrival in seconds, on a clock that never goes back."""

    num_patches: int
    arrived_s: float


def take(waiting: Sequence[Waiting], *, budget_patches: int, patch_s: float) -> list[int]:
    """Chooses the pictures of the next run.

    The picture that is first by ``due_s`` is always chosen, and runs alone if it is above the budget. Then each further
    picture is chosen, in that order, if it still fits into the budget.

    Args:
        waiting: The waiting pictures, at least one.
        budget_patches: The most patches of one run.
        patch_s: The time in seconds that the tower takes per patch.

    Returns:
        Indices into ``waiting``, sorted by ``due_s``.
    """
    first, *others = sorted(range(len(waiting)), key=lambda index: due_s(waiting[index], patch_s))
    batch, room = [first], budget_patches - waiting[first].num_patches
    for index in others:
        if waiting[index].num_patches <= room:
            batch.append(index)
            room -= waiting[index].num_patches
    return batch


def due_s(picture: Waiting, patch_s: float) -> float:
    """The time in seconds at which a picture would be finished if the tower had started it on arrival, on its clock.

    The picture with the earliest time is encoded first.
    """
    return picture.arrived_s + picture.num_patches * patch_s


def wait_s(waiting: Sequence[Waiting], *, now_s: float, num_coming: int, budget_patches: int) -> float:
    """The time in seconds that a free tower waits before it starts a run.

    The time is 0 if no picture is on its way, or if half a batch is waiting already. Half a batch gains most of the
    time that sharing a run can save, and another picture may not fit into the same run. The wait counts from the
    arrival of the oldest picture, so pictures that waited during the previous run do not wait again.

    Args:
        waiting: The waiting pictures, at least one.
        now_s: The time in seconds, on the clock of their arrivals.
        num_coming: The number of pictures on their way here.
        budget_patches: The most patches of one run.
    """
    if not num_coming or 2 * sum(picture.num_patches for picture in waiting) >= budget_patches:
        return 0.0
    return max(0.0, min(picture.arrived_s for picture in waiting) + MAX_WAIT_S - now_s)
