"""The counters of one replica."""

from __future__ import annotations

import pytest

from cluster.scaling.work import NUM_CALLS, OFFERED, OfferedWork


class RefusedError(Exception):
    """Refuses a call."""


def test_expected_work_counts_at_once() -> None:
    """Work of a call that is being judged counts before its end, and once."""
    offered = OfferedWork()
    with offered.expecting(36, unless=RefusedError):
        assert offered.stats(0, 0)[OFFERED] == 36
    assert (offered.stats(0, 0)[OFFERED], offered.num_calls) == (36, 1)


def test_calls_that_are_refused_soon_count_for_nothing() -> None:
    """A thousand calls that are refused count as ten calls in all. A good call then counts in full at its end."""
    offered = OfferedWork()
    for _ in range(1000):
        with pytest.raises(RefusedError), offered.expecting(100, unless=RefusedError):
            raise RefusedError
    assert offered.stats(0, 0)[OFFERED] == pytest.approx(1000)
    before = offered.stats(0, 0)[OFFERED]
    with offered.expecting(100, unless=RefusedError):
        assert offered.stats(0, 0)[OFFERED] == pytest.approx(before)
    assert offered.stats(0, 0)[OFFERED] == pytest.approx(before + 100)
    assert offered.stats(0, 0)[NUM_CALLS] == 1001


def test_other_failures_say_nothing_about_the_next_calls() -> None:
    """A call that fails for another reason has counted, and the next one counts in full."""
    offered = OfferedWork()
    with pytest.raises(TimeoutError), offered.expecting(100, unless=RefusedError):
        raise TimeoutError
    with offered.expecting(100, unless=RefusedError):
        assert offered.stats(0, 0)[OFFERED] == 200
