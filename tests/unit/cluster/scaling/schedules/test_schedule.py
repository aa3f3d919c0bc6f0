"""Schedules as files: what is written is read, and what is wrong is named by its line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cluster.scaling.schedules.schedule import (
    Arrival,
    Heading,
    ScheduledPicture,
    ScheduleError,
    in_order,
    read_schedule,
    write_schedule,
)

if TYPE_CHECKING:
    from pathlib import Path

HEADING = Heading(source="by hand", seed=1, duration_s=10)
ARRIVALS = [
    Arrival(at_s=0, client="a", text_tokens=3, output_tokens=1),
    Arrival(
        at_s=2.5,
        client="b",
        text_tokens=1,
        pictures=(ScheduledPicture(name="cat", width=640, height=480),),
        output_tokens=7,
        conversation="one",
        turn=1,
    ),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A schedule comes back as it was written, one line for each arrival."""
    path = tmp_path / "schedule.jsonl"
    with path.open("w") as file:
        assert write_schedule(file, HEADING, ARRIVALS) == 2
    assert read_schedule(path) == (HEADING, ARRIVALS)
    assert len(path.read_text().splitlines()) == 3


def test_a_schedule_may_be_empty(tmp_path: Path) -> None:
    """A schedule without arrivals is valid."""
    path = tmp_path / "schedule.jsonl"
    with path.open("w") as file:
        assert write_schedule(file, HEADING, []) == 0
    assert read_schedule(path) == (HEADING, [])


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (1, {"format": "other"}, "line 1: format"),
        (1, {"duration_s": 0}, "line 1: duration_s"),
        (2, {"text_tokens": 0}, "line 2: text_tokens"),
        (2, {"at_s": "soon"}, "line 2: at_s"),
        (2, {"tokens": 3}, "line 2: tokens"),
        (3, {"pictures": [{"name": "cat", "width": 0, "height": 1}]}, "line 3: pictures.0.width"),
        (2, {"at_s": 3}, "line 3: at_s is 2.5, earlier than the 3"),
        (3, {"at_s": 11}, "line 3: at_s is beyond the duration_s of 10"),
    ],
)
def test_a_wrong_line_is_named(line: int, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    """A line with a wrong or unknown value is named, with the key."""
    path = tmp_path / "schedule.jsonl"
    with path.open("w") as file:
        write_schedule(file, HEADING, ARRIVALS)
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ScheduleError) as caught:
        read_schedule(path)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("text", ["", "{", "[]", "\n"])
def test_what_is_no_schedule_is_refused(text: str, tmp_path: Path) -> None:
    """A file whose first line is no heading is refused."""
    path = tmp_path / "schedule.jsonl"
    path.write_text(text)
    with pytest.raises(ScheduleError, match="line 1"):
        read_schedule(path)


def test_streams_are_merged_in_the_order_of_time() -> None:
    """Arrivals of several streams become one stream in the order of time."""
    streams = [
        [Arrival(at_s=at_s, client="a", text_tokens=1, output_tokens=1) for at_s in one] for one in ([1, 4], [2])
    ]
    assert [arrival.at_s for arrival in in_order(map(iter, streams))] == [1, 2, 4]
