"""The requests and bytes that one Router replica takes on at a time."""

from __future__ import annotations

import random

import pytest

from cluster.admission.slots import Admission, Slot
from cluster.errors import BodyTooLarge, Overloaded


def test_places_and_bytes_come_back() -> None:
    """A request that leaves frees its slot and bytes. Leaving twice frees nothing of other requests."""
    admission = Admission(2, 100)
    first, second = admission.enter(), admission.enter()
    with pytest.raises(Overloaded, match="2 requests"):
        admission.enter()
    first.hold(60)
    with pytest.raises(Overloaded, match="60 bytes"):
        second.hold(41)
    first.leave()
    first.leave()
    assert (admission.num_requests, admission.num_bytes) == (1, 0)
    admission.enter().hold(100)


def test_of_requests_that_do_not_fit_together_the_last_is_served() -> None:
    """The bytes of a refused request are free at once, so that of several requests which do not fit together one is
    always served."""
    admission = Admission(3, 100)
    slots = [admission.enter() for _ in range(3)]
    for slot in slots:
        slot.hold(33)
    for slot in slots[:2]:
        for num_bytes in (40, 1):
            with pytest.raises(Overloaded):
                slot.hold(num_bytes)
    slots[2].hold(60)
    assert admission.num_bytes == 93


def test_a_refusal_says_the_limit() -> None:
    """The error states how much is held and how much is allowed."""
    admission = Admission(2, 10)
    admission.enter().hold(5)
    with pytest.raises(Overloaded) as caught:
        admission.enter().hold(6)
    assert caught.value.figures == {"held_bytes": 5, "limit_bytes": 10}
    assert caught.value.status == 429


def test_what_can_never_fit_is_not_put_off() -> None:
    """A request that alone exceeds the limit gets 413, because a retry cannot help."""
    slot = Admission(1, 10).enter()
    slot.hold(6)
    with pytest.raises(BodyTooLarge) as caught:
        slot.hold(5)
    assert caught.value.figures == {"asked_bytes": 11, "limit_bytes": 10}


def test_any_order_of_events_keeps_the_books() -> None:
    """Over random arrivals and departures, the sums equal those of the slots in use."""
    draw = random.Random(0)
    admission = Admission(8, 1000)
    slots: dict[Slot, int] = {}
    refused: set[Slot] = set()
    for _ in range(5000):
        match draw.randrange(4):
            case 0 if len(slots) < 8:
                slots[admission.enter()] = 0
            case 1 if slots:
                slot, num_bytes = draw.choice([*slots]), draw.randrange(200)
                if slot not in refused and sum(slots.values()) + num_bytes <= 1000:
                    slot.hold(num_bytes)
                    slots[slot] += num_bytes
                elif slot not in refused and slots[slot] + num_bytes > 1000:
                    with pytest.raises(BodyTooLarge):
                        slot.hold(num_bytes)
                    refused.add(slot)
                    slots[slot] = 0
                else:
                    with pytest.raises(Overloaded):
                        slot.hold(num_bytes)
                    refused.add(slot)
                    slots[slot] = 0
            case 2 if slots:
                slot = draw.choice([*slots])
                slot.drop_bytes()
                slots[slot] = 0
            case 3 if slots:
                slot = draw.choice([*slots])
                slot.leave()
                del slots[slot]
        assert (admission.num_requests, admission.num_bytes) == (len(slots), sum(slots.values()))


def test_limits_change_while_requests_are_in_flight() -> None:
    """With lower limits no request loses its slot or bytes, and new ones are refused until enough have left."""
    admission = Admission(2, 100)
    first, second = admission.enter(), admission.enter()
    first.hold(80)
    admission.set_limits(1, 50)
    assert (admission.num_requests, admission.num_bytes) == (2, 80)
    with pytest.raises(Overloaded):
        second.hold(1)
    second.leave()
    with pytest.raises(Overloaded):
        admission.enter()
    first.leave()
    third = admission.enter()
    third.hold(50)
    admission.set_limits(2, 200)
    admission.enter().hold(150)


def test_one_tenant_leaves_slots_to_others() -> None:
    """A tenant fills seven eighths of the slots at most, whatever its requests do, and another one always finds one."""
    admission = Admission(256, 100)
    slots = [admission.enter("large") for _ in range(224)]
    with pytest.raises(Overloaded, match="no room"):
        admission.enter("large")
    admission.enter("small").leave()
    slots.pop().leave()
    admission.enter("large")


def test_without_keys_all_slots_are_used() -> None:
    """Where all requests are of one tenant, none is kept for others."""
    admission = Admission(256, 100)
    slots = [admission.enter() for _ in range(256)]
    assert admission.num_free == 0
    for slot in slots:
        slot.leave()
    assert not admission._num_requests_of


def test_the_only_slot_is_for_any_tenant() -> None:
    """A Router with a single slot still serves tenants."""
    admission = Admission(1, 100)
    slot = admission.enter("a")
    with pytest.raises(Overloaded):
        admission.enter("b")
    slot.leave()
    admission.enter("b")


def test_a_tenant_learns_nothing_of_others() -> None:
    """A refusal tells a tenant its own time to come again, and no figures of the Router."""
    admission = Admission(2, 10)
    admission.retry_after_s = {"a": 3, "b": 5}.__getitem__
    admission.enter("a").hold(6)
    refused = []
    with pytest.raises(Overloaded) as caught:
        admission.enter("b").hold(5)
    refused.append(caught.value)
    with pytest.raises(Overloaded) as caught:
        admission.enter("a")
    refused.append(caught.value)
    assert [error.retry_after_s for error in refused] == [5, 3]
    assert [error.figures for error in refused] == [{}, {}]
    assert not any(letter.isdigit() for error in refused for letter in error.message)
