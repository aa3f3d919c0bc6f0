"""A token bucket on an injected clock."""

from __future__ import annotations

import pytest

from cluster.access.buckets import TokenBucket


class Clock:
    """A clock that is set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Returns a clock that stands still."""
    return Clock()


def test_a_bucket_gives_a_minutes_worth_at_once_and_then_steadily(clock: Clock) -> None:
    """A full bucket gives as much as a minute allows. Then each token comes at its time, and not before."""
    bucket = TokenBucket(60, clock)
    assert all(bucket.take(1) for _ in range(60))
    assert not bucket.take(1)
    assert bucket.wait_s(1) == 1.0
    clock.now_s += 0.999
    assert not bucket.take(1)
    clock.now_s += 0.002
    assert bucket.take(1)
    assert not bucket.take(1)
    clock.now_s += 3600
    assert bucket.level == 60


def test_the_told_wait_is_enough(clock: Clock) -> None:
    """After the time that a bucket tells, the tokens are there."""
    bucket = TokenBucket(90, clock)
    assert bucket.take(90)
    clock.now_s += bucket.wait_s(7) + 1e-9
    assert bucket.take(7)


def test_more_than_the_bucket_holds_makes_a_debt(clock: Clock) -> None:
    """A request that is larger than the bucket is served when it is full. The next one waits until that is paid."""
    bucket = TokenBucket(60, clock)
    assert bucket.take(90)
    assert bucket.level == -30
    assert bucket.wait_s(1) == 31
    assert not bucket.take(90)
    assert bucket.full_s() == 90


def test_less_than_one_token_a_minute_can_be_used(clock: Clock) -> None:
    """A rate below one per minute, a share of several Routers, still lets one request through after its time."""
    bucket = TokenBucket(0.25, clock)
    assert bucket.take(1)
    assert not bucket.take(1)
    clock.now_s += 240
    assert bucket.take(1)


def test_a_new_rate_holds_at_once(clock: Clock) -> None:
    """After a change the bucket fills at the new rate, and holds no more than that allows."""
    bucket = TokenBucket(60, clock)
    bucket.set_rate(6)
    assert bucket.level == 6
    assert bucket.take(6)
    assert bucket.wait_s(1) == 10
    bucket.set_rate(600)
    assert bucket.level == 0
    assert bucket.wait_s(1) == pytest.approx(0.1)
