"""Reading and splitting schedules."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.schedules.schedule import ScheduleError, read_schedule, write_schedule
from cluster.scaling.schedules.synthetic import KINDS, SyntheticLoad, synthetic
from loadtest.fields import BadFields
from loadtest.schedule import LoadArrival, LoadPicture, plan, read_load, share

if TYPE_CHECKING:
    from pathlib import Path

HEADING = '{"format": "prism-schedule-1", "source": "test", "seed": 1, "duration_s": 10}'


def line(**changes: object) -> str:
    """An arrival after one second, with changes."""
    return json.dumps({"at_s": 1, "client": "a", "text_tokens": 5, "output_tokens": 2, **changes})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A schedule with requests of all kinds."""
    path = tmp_path / "mixed.jsonl"
    with path.open("w") as file:
        write_schedule(file, *synthetic(SyntheticLoad(60, 10), seed=3))
    return path


def test_both_readers_read_the_same(mixed: Path) -> None:
    """For every field of every line, the load reads what Prism reads."""
    heading, arrivals = read_load(mixed)
    prisms_heading, prisms = read_schedule(mixed)
    names = ("source", "seed", "duration_s")
    assert [getattr(heading, name) for name in names] == [getattr(prisms_heading, name) for name in names]
    expected = [
        LoadArrival(
            **{**dict(arrival), "pictures": tuple(LoadPicture(**dict(picture)) for picture in arrival.pictures)}
        )
        for arrival in prisms
    ]
    assert arrivals == expected
    assert {arrival.client for arrival in arrivals} == {*KINDS}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([""], "line 1 is no JSON"),
        ([line()], "line 1: source: it is missing"),
        ([HEADING.replace("-1", "-2")], "line 1: format: it must be prism-schedule-1"),
        ([HEADING, "{"], "line 2 is no JSON"),
        ([HEADING, "[]"], "line 2: it must be an object"),
        ([HEADING, line(), '{"at_s": 1}'], "line 3: client: it is missing"),
        ([HEADING, line(more=1)], "line 2: more: there is no such field"),
        ([HEADING, line(text_tokens=0)], "line 2: text_tokens: it must be a whole number from 1 on, not 0"),
        ([HEADING, line(text_tokens=math.nan)], "line 2: text_tokens"),
        ([HEADING, line(at_s=-1)], "line 2: at_s: it must be a number from 0 on"),
        ([HEADING.replace("10", "1e999"), line(at_s=math.inf)], "line 1: duration_s: it must be a number from 0 on"),
        ([HEADING, line(at_s=11)], "line 2: at_s: it must be at most the duration_s of 10"),
        ([HEADING, line(), line(at_s=0.5)], "line 3: at_s: it must be at least the 1.0 of the line above"),
        ([HEADING, line(pictures=[{"name": "p", "width": 1}])], "line 2: pictures.0: height: it is missing"),
    ],
)
def test_what_is_no_schedule_is_refused_by_both_readers(tmp_path: Path, lines: list[str], words: str) -> None:
    """The load's reader names the line and the field, and Prism's reader refuses the same files."""
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(BadFields, match=words):
        read_load(path)
    with pytest.raises(ScheduleError):
        read_schedule(path)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_workers_share_a_schedule(mixed: Path, num_workers: int) -> None:
    """Each request belongs to exactly one worker, all turns of a conversation to one, and no worker is idle."""
    _, arrivals = read_load(mixed)
    parts = [[*share(plan(arrivals), worker, num_workers)] for worker in range(num_workers)]
    assert sorted(one.index for part in parts for one in part) == [*range(len(arrivals))]
    assert all(parts)
    homes: dict[str | None, set[int]] = {}
    for worker, part in enumerate(parts):
        for one in part:
            homes.setdefault(one.arrival.conversation, set()).add(worker)
    homes.pop(None)
    assert len(homes) > 5
    assert all(len(workers) == 1 for workers in homes.values())


def test_the_plan_knows_what_came_before_and_what_follows() -> None:
    """A picture is seen once the schedule has had its name. A conversation ends with its last turn."""
    pictures = [(LoadPicture(name, 28, 28),) for name in "abab"]
    arrivals = [LoadArrival(index, "c", 1, 1, each) for index, each in enumerate(pictures)]
    arrivals += [LoadArrival(5 + turn, "c", 1, 1, conversation="x", turn=turn) for turn in range(3)]
    planned = [*plan(arrivals)]
    assert [one.kind for one in planned] == [
        *["new picture"] * 2,
        *["seen picture"] * 2,
        "text",
        "later turn",
        "later turn",
    ]
    assert [one.is_last_turn for one in planned] == [True] * 4 + [False, False, True]
