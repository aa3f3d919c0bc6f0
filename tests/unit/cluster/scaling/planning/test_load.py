"""The work of a schedule, and its busiest part."""

from __future__ import annotations

import pytest

from cluster.scaling.planning.load import ScheduleLoad, busiest_part
from tests.helpers.simulated import PATCHES, PIXELS, ROUND, TOKENS, arrival, heading


def test_work_is_counted_per_second_and_once() -> None:
    """Three requests in ten seconds, of which two have the same picture. One is a later turn of the first, and sends
    the picture again. Only what is sent counts it each time."""
    arrivals = [
        arrival(0.0, "a", output_tokens=20, conversation="one"),
        arrival(1.0, "a", output_tokens=20),
        arrival(2.0, text_tokens=40, output_tokens=20, conversation="one", turn=1),
    ]
    load = ScheduleLoad.of(heading(10), arrivals, ROUND.processor)
    assert (load.requests, load.output_tokens, load.pictures) == (0.3, 6, 0.1)
    assert (load.patches, load.pixels) == (PATCHES / 10, PIXELS / 10)
    assert (load.sent_pictures, load.sent_pixels) == (0.3, 3 * PIXELS / 10)
    assert load.new_tokens == (100 + 100 + 40 + TOKENS) / 10
    assert load.longest_tokens == (TOKENS + 100 + 20 + 40) + 20
    assert load.context_tokens == pytest.approx((210 + 210 + 270) / 3)


def test_an_empty_schedule_has_no_work() -> None:
    """A schedule without arrivals needs nothing."""
    load = ScheduleLoad.of(heading(10), [], ROUND.processor)
    assert (load.requests, load.longest_tokens, load.context_tokens) == (0, 0, 0)


def test_the_busiest_part_is_a_schedule_of_its_own() -> None:
    """Of a schedule with few large and many small requests, the five seconds with most tokens are taken."""
    quiet = [arrival(float(at_s), text_tokens=10) for at_s in range(20)]
    busy = [arrival(20.0 + at_s, text_tokens=1000) for at_s in range(3)]
    late = [arrival(40.0 + at_s / 10, text_tokens=10) for at_s in range(50)]
    part, arrivals = busiest_part(heading(60), [*quiet, *busy, *late], 5.0)
    assert part.duration_s == 5.0
    assert part.source.endswith("the busiest 5 s, from 18 s")
    assert [one.at_s for one in arrivals] == [0, 1, 2, 3, 4]
    assert [one.text_tokens for one in arrivals] == [10, 10, 1000, 1000, 1000]


def test_a_short_schedule_is_taken_as_a_whole() -> None:
    """A schedule that is not longer than the part stays as it is."""
    arrivals = [arrival(0.0)]
    assert busiest_part(heading(60), arrivals, 60) == (heading(60), arrivals)
