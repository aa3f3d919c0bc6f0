"""Readings of one pool with a given number of calls, for tests of policies that look at calls."""

from __future__ import annotations

from cluster.scaling.simulation.sizing import CallsReading


def calls_reading(
    num_running: int,
    num_calls: float,
    now_s: float,
    *,
    target: int | None = None,
    bounds: tuple[int, int] = (1, 20),
    num_queued: float = 0.0,
) -> CallsReading:
    """Returns the reading of a pool that has no counters of work."""
    names = frozenset(f"replica {number}" for number in range(num_running))
    return CallsReading(
        running=names,
        target=num_running if target is None else target,
        min_replicas=bounds[0],
        max_replicas=bounds[1],
        sources=names,
        offered={},
        served={},
        num_queued=num_queued,
        num_ongoing=num_calls,
        counted_s=now_s,
    )
