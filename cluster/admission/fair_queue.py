"""A queue that is fair between tenants by the cost of what they send.

Each item gets a start tag: the finish tag of its tenant's item before, or the virtual time if that is later. Its finish
tag is its start tag and its cost. The item with the least start tag comes first, and its start tag becomes the virtual
time. So a tenant that has waited for nothing is next, however much others have queued. Of several tenants that always
have something queued, each gets the same cost per time.

Source: Goyal, Vin and Cheng, Start-time Fair Queueing, SIGCOMM 1996.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

MIN_PRUNED: Final = 64
"""The tenants that are remembered before those with nothing left to pay are forgotten."""


class FairQueue(Generic[Item]):
    """Items by priority, then by start tag, then by arrival. Each operation takes O(log n).
    For a removal that is the average."""

    def __init__(self) -> None:
        self._heap: Final[list[tuple[int, float, int, Item]]] = []
        self._numbers: Final = count()
        self._live: Final[dict[int, tuple[str, float]]] = {}
        self._virtual_time = 0.0
        self._finish_tags: Final[dict[str, float]] = {}
        self._prune_at = MIN_PRUNED

    def __len__(self) -> int:
        """The items that wait."""
        return len(self._live)

    def push(self, item: Item, tenant: str, cost: float, priority: int = 0) -> int:
        """Queues an item.

        Args:
            item: The item.
            tenant: The tenant that pays for it.
            cost: Its cost, in any unit.
            priority: Items of a higher priority come first, whatever their tags.

        Returns:
            The number of the item, for ``remove``.
        """
        number = next(self._numbers)
        heapq.heappush(self._heap, (-priority, self._tag(tenant, cost), number, item))
        self._live[number] = tenant, cost
        return number

    def charge(self, tenant: str, cost: float) -> None:
        """Counts an item that is served at once, while nothing waits."""
        self._virtual_time = max(self._virtual_time, self._tag(tenant, cost))

    def remove(self, number: int) -> None:
        """Removes an item that waits. Its tenant owes nothing for it."""
        tenant, cost = self._live.pop(number)
        if tenant in self._finish_tags:
            self._finish_tags[tenant] = max(self._virtual_time, self._finish_tags[tenant] - cost)
        self._skip_removed()
        if len(self._heap) > 2 * len(self._live):
            self._heap[:] = [entry for entry in self._heap if entry[2] in self._live]
            heapq.heapify(self._heap)

    def first(self) -> Item:
        """The next item. There must be one."""
        return self._heap[0][3]

    def pop(self) -> Item:
        """Takes the next item. There must be one."""
        _, start_tag, number, item = heapq.heappop(self._heap)
        del self._live[number]
        self._virtual_time = max(self._virtual_time, start_tag)
        self._skip_removed()
        return item

    def _tag(self, tenant: str, cost: float) -> float:
        """The start tag of a new item."""
        start_tag = max(self._virtual_time, self._finish_tags.get(tenant, 0.0))
        self._finish_tags[tenant] = start_tag + cost
        if len(self._finish_tags) > self._prune_at:
            paid = [name for name, tag in self._finish_tags.items() if tag <= self._virtual_time]
            for name in paid:
                del self._finish_tags[name]
            self._prune_at = MIN_PRUNED + 2 * len(self._finish_tags)
        return start_tag

    def _skip_removed(self) -> None:
        while self._heap and self._heap[0][2] not in self._live:
            heapq.heappop(self._heap)
