"""What one Router replica takes on at a time."""

from __future__ import annotations

import random

import pytest

from cluster.admission import Admission, Place
from cluster.errors import BodyTooLarge, Overloaded


def test_places_and_bytes_come_back() -> None:
    """What a request holds is free again once it leaves, and leaving twice frees nothing of others."""
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
    """A refused request's bytes are free at once, before it has left, and it takes no more: somebody always gets on."""
    admission = Admission(3, 100)
    places = [admission.enter() for _ in range(3)]
    for place in places:
        place.hold(33)
    for place in places[:2]:
        for num_bytes in (40, 1):
            with pytest.raises(Overloaded):
                place.hold(num_bytes)
    places[2].hold(60)
    assert admission.num_bytes == 93


def test_a_refusal_says_the_limit() -> None:
    """The error carries what is held and how much may be."""
    admission = Admission(2, 10)
    admission.enter().hold(5)
    with pytest.raises(Overloaded) as caught:
        admission.enter().hold(6)
    assert caught.value.figures == {"held_bytes": 5, "limit_bytes": 10}
    assert caught.value.status == 429


def test_what_can_never_fit_is_not_put_off() -> None:
    """A request that alone needs more than all there is gets 413, for to send it again would not help."""
    place = Admission(1, 10).enter()
    place.hold(6)
    with pytest.raises(BodyTooLarge) as caught:
        place.hold(5)
    assert caught.value.figures == {"asked_bytes": 11, "limit_bytes": 10}


def test_any_order_of_events_keeps_the_books() -> None:
    """Over random comings and goings the sums are those of the places that are taken."""
    draw = random.Random(0)
    admission = Admission(8, 1000)
    places: dict[Place, int] = {}
    refused: set[Place] = set()
    for _ in range(5000):
        match draw.randrange(4):
            case 0 if len(places) < 8:
                places[admission.enter()] = 0
            case 1 if places:
                place, num_bytes = draw.choice([*places]), draw.randrange(200)
                if place not in refused and sum(places.values()) + num_bytes <= 1000:
                    place.hold(num_bytes)
                    places[place] += num_bytes
                elif place not in refused and places[place] + num_bytes > 1000:
                    with pytest.raises(BodyTooLarge):
                        place.hold(num_bytes)
                    refused.add(place)
                    places[place] = 0
                else:
                    with pytest.raises(Overloaded):
                        place.hold(num_bytes)
                    refused.add(place)
                    places[place] = 0
            case 2 if places:
                place = draw.choice([*places])
                place.drop_bytes()
                places[place] = 0
            case 3 if places:
                place = draw.choice([*places])
                place.leave()
                del places[place]
        assert (admission.num_requests, admission.num_bytes) == (len(places), sum(places.values()))
