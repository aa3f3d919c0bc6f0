"""Pictures whose bytes make way for other requests once their embeddings are made."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cluster.admission.slots import Admission
from cluster.errors import Overloaded
from cluster.messages import Picture

if TYPE_CHECKING:
    from cluster.admission.kept import KeptPictures
    from cluster.admission.slots import Slot


def pictures(*sizes: int) -> list[Picture]:
    """Returns pictures with so many bytes each."""
    return [Picture(f"{number}", b"x" * size, 2, 3, "messages") for number, size in enumerate(sizes)]


def test_bytes_that_are_needed_stay() -> None:
    """Before a request has begun, nothing makes it lose its pictures."""
    admission = Admission(2, 100)
    first = admission.enter()
    first.hold(70)
    kept = first.keep(pictures(30, 20), 10)
    assert admission.num_bytes == 60
    with pytest.raises(Overloaded, match="60 bytes"):
        admission.enter().hold(41)
    assert [len(picture.data) for picture in kept.pictures] == [30, 20]


def test_the_oldest_makes_way_first_and_only_as_far_as_needed() -> None:
    """Of the pictures that may be evicted, the one that has been so for the longest time goes first. Its digest and its
    size stay."""
    admission = Admission(3, 100)
    first, second = admission.enter(), admission.enter()
    kept = []
    for slot in (first, second):
        slot.hold(50)
        kept.append(slot.keep(pictures(20, 20), 5))
    kept[1].release()
    kept[0].release()
    kept[0].release()
    third = admission.enter()
    third.hold(25)
    assert [[len(picture.data) for picture in one.pictures] for one in kept] == [[20, 20], [0, 20]]
    assert [(one.digest, one.width, one.height) for one in kept[1].pictures] == [("0", 2, 3), ("1", 2, 3)]
    assert (admission.num_bytes, admission.evictable.num_bytes) == (95, 60)
    with pytest.raises(Overloaded, match="35 bytes"):
        third.hold(66)
    for slot in (first, second, third):
        slot.leave()
        slot.leave()
    assert (admission.num_bytes, admission.evictable.num_bytes) == (0, 0)


def test_a_refusal_evicts_nothing() -> None:
    """A request that cannot fit, even without what may be evicted, costs no other request its pictures."""
    admission = Admission(2, 100)
    first = admission.enter()
    first.hold(90)
    kept = first.keep(pictures(30), 60)
    kept.release()
    with pytest.raises(Overloaded):
        admission.enter().hold(41)
    assert len(kept.pictures[0].data) == 30


def test_any_order_of_events_keeps_the_sums() -> None:
    """Over random events, what is counted equals what is there, and never exceeds the limit."""
    draw, admission = random.Random(0), Admission(9, 1000)
    slots: list[tuple[Slot, KeptPictures]] = []
    for _ in range(4000):
        match draw.randrange(4):
            case 0 if len(slots) < 9:
                slot, sizes = admission.enter(), [draw.randrange(100) for _ in range(3)]
                try:
                    slot.hold(sum(sizes) + 50)
                except Overloaded:
                    slot.leave()
                else:
                    slots.append((slot, slot.keep(pictures(*sizes), 30)))
            case 1 | 2 if slots:
                draw.choice(slots)[1].release()
            case 3 if slots:
                slots.pop(draw.randrange(len(slots)))[0].leave()
        assert admission.num_bytes == sum(kept.num_bytes + 30 for _, kept in slots) <= 1000
        assert 0 <= admission.evictable.num_bytes <= admission.num_bytes
