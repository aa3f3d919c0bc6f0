"""The requests of chaos."""

from __future__ import annotations

from collections import Counter

from loadtest.chaos.mix import make_requests


def test_half_are_streams_and_half_have_pictures() -> None:
    """All four kinds come equally often, greedy, and each request differs from all others."""
    made = make_requests(64, seed=1, model="m", timeout_s=9)
    assert set(Counter(request.kind for request in made).values()) == {16}
    assert len({str(request.body["messages"]) for request in made}) == 64
    assert {request.body["temperature"] for request in made} == {0}


def test_the_seed_decides_the_bodies() -> None:
    """The same seed gives the same bodies, and another seed gives others."""
    first, same, other = (make_requests(8, seed=seed, model="m", timeout_s=9) for seed in (1, 1, 2))
    assert first == same
    assert all(one.body != two.body for one, two in zip(first, other, strict=True))


def test_a_salt_changes_nothing_else() -> None:
    """A salted request has the number and the body of the request, and its salt."""
    [request] = make_requests(1, seed=1, model="m", timeout_s=9)
    salted = request.salted("x")
    assert (salted.index, salted.body) == (request.index, {**request.body, "cache_salt": "x"})
