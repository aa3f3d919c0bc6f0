"""Refused requests, and the times at which they were told to come again."""

from __future__ import annotations

from cluster.admission.bookings import (
    BOOKED_SHARE,
    EARLY_S,
    LATE_S,
    MAX_AHEAD_S,
    MAX_BOOKINGS,
    MAX_TENANTS,
    Bookings,
    name_of,
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_requests_that_were_refused_together_do_not_come_together() -> None:
    """Each refusal is told a time that is later by what the request before it takes."""
    bookings = Bookings(clock=Clock())
    times_s = [bookings.book(b"%d" % number, "a", wait_s=3, takes_s=0.9) for number in range(5)]
    assert [round(one_s, 3) for one_s in times_s] == [3 + (number + 1) * 0.9 / BOOKED_SHARE for number in range(5)]


def test_tenants_do_not_wait_for_each_others_bookings() -> None:
    """A tenant is told the time of its own backlog."""
    bookings = Bookings(clock=Clock())
    for number in range(50):
        bookings.book(b"%d" % number, "large", wait_s=0, takes_s=1)
    assert bookings.book(b"x", "small", wait_s=0, takes_s=0.9) == 1


def test_a_client_that_comes_at_its_time_is_recognised_once() -> None:
    """A booking is due from a little before its time until some time after it, and only once."""
    clock = Clock()
    bookings = Bookings(clock=clock)
    times_s = {name: clock() + bookings.book(name, "a", wait_s=9, takes_s=0) for name in (b"early", b"due", b"late")}
    clock.now_s = times_s[b"due"] - EARLY_S - 0.01
    assert not bookings.is_due(b"early")
    clock.now_s = times_s[b"due"]
    assert bookings.is_due(b"due")
    assert not bookings.is_due(b"due")
    assert not bookings.is_due(b"unknown")
    clock.now_s = times_s[b"late"] + LATE_S + 0.01
    assert not bookings.is_due(b"late")


def test_who_comes_early_keeps_the_time() -> None:
    """A request that is sent again too early is told the rest of its time, and takes no second place."""
    clock = Clock()
    bookings = Bookings(clock=clock)
    assert bookings.book(b"a", "a", wait_s=10, takes_s=0) == 10
    clock.now_s += 4
    assert bookings.book(b"a", "a", wait_s=20, takes_s=9) == 6
    assert bookings.book(b"b", "a", wait_s=0, takes_s=0) == 6


def test_the_memory_is_bounded() -> None:
    """Neither many refusals, nor old ones, nor times far ahead fill the memory."""
    clock = Clock()
    bookings = Bookings(clock=clock)
    for number in range(MAX_BOOKINGS + 10):
        bookings.book(b"%d" % number, f"{number}", wait_s=1, takes_s=0)
    assert len(bookings) == MAX_BOOKINGS
    clock.now_s += LATE_S + 2
    bookings.book(b"new", "new", wait_s=1, takes_s=0)
    assert len(bookings) == 1
    assert len(bookings._booked_until_s) <= MAX_TENANTS
    assert bookings.book(b"far", "new", wait_s=MAX_AHEAD_S + 1, takes_s=0) == MAX_AHEAD_S
    assert len(bookings) == 1


def test_a_request_is_named_by_its_tenant_and_its_body() -> None:
    """The same body of a tenant has one name; a change at its beginning, its end or in its length makes another."""
    long = b"a" * 2**20
    names = [name_of("t", body) for body in (b"", b"a", b"b", long, long + b"a", b"b" + long[1:], long[1:] + b"b")]
    assert len({*names, name_of("u", b"a")}) == 8
    assert name_of("t", bytes(long)) == names[3]
