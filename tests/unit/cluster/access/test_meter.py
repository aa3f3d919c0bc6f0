"""What one key has used of its limits."""

from __future__ import annotations

import pytest

from cluster.access.keys import KeyEntry
from cluster.access.meter import Meter
from cluster.errors import RateLimited

now_s = 0.0


def clock() -> float:
    """Returns a time that stands still."""
    return now_s


def entry(**limits: int) -> KeyEntry:
    """Returns an entry with limits."""
    return KeyEntry.model_validate({"tenant": "a", "sha256": "a" * 64, **limits})


def headers(meter: Meter) -> dict[str, str]:
    """Returns the headers of a meter."""
    return {name.decode(): value.decode() for name, value in meter.headers()}


def test_a_key_without_limits_has_none() -> None:
    """Without limits nothing is refused, and no header speaks of one."""
    meter = Meter(entry(), 1, clock)
    for _ in range(1000):
        meter.enter()
        meter.spend_picture_tokens(10**9)
    assert headers(meter) == {}


def test_headers_tell_what_is_left() -> None:
    """The headers have each limit, what is left of it, and the time until all of it is there again."""
    meter = Meter(entry(requests_per_minute=60, picture_tokens_per_minute=1000), 1, clock)
    meter.enter()
    meter.spend_picture_tokens(1100)
    assert headers(meter) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-picture-tokens": "1000",
        "x-ratelimit-remaining-picture-tokens": "0",
        "x-ratelimit-reset-picture-tokens": "1m6s",
    }
    with pytest.raises(RateLimited, match="picture tokens") as refusal:
        meter.spend_picture_tokens(1)
    assert refusal.value.retry_after_s == 7  # it would be 6.06 s
    meter.spend_picture_tokens(0)  # a text needs none


def test_a_refused_request_uses_nothing() -> None:
    """A request that is refused for its number leaves the others their places."""
    meter = Meter(entry(max_concurrent=2, requests_per_minute=3), 1, clock)
    meter.enter()
    meter.enter()
    with pytest.raises(RateLimited, match="at the same time"):
        meter.enter()
    meter.leave()
    meter.enter()
    meter.leave()
    with pytest.raises(RateLimited, match="requests per minute") as refusal:
        meter.enter()
    assert refusal.value.retry_after_s == 20
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")


def test_each_router_grants_its_share() -> None:
    """Four Routers grant a quarter each, one request at a time at least. Headers still speak of the whole."""
    meters = [Meter(entry(requests_per_minute=8, max_concurrent=2), 4, clock) for _ in range(4)]
    granted = 0
    for meter in meters:
        while True:
            try:
                meter.enter()
            except RateLimited:
                break
            meter.leave()
            granted += 1
        meter.set_limits(entry(max_concurrent=2), 4)
        meter.enter()
        with pytest.raises(RateLimited, match="at the same time"):
            meter.enter()
    assert granted == 8
    assert headers(Meter(entry(requests_per_minute=8), 4, clock))["x-ratelimit-remaining-requests"] == "8"


def test_new_limits_keep_what_was_used() -> None:
    """Changed limits give nobody a new start."""
    meter = Meter(entry(requests_per_minute=2), 1, clock)
    meter.enter()
    meter.enter()
    meter.set_limits(entry(requests_per_minute=5), 1)
    with pytest.raises(RateLimited):
        meter.enter()
    meter.set_limits(entry(), 1)
    meter.enter()
