"""A schedule: which requests arrive when, and how large they are, as a file of JSON lines.

The first line describes the schedule, and each further line is one arrival, in the order of time. The simulator and
the planner read it. The load tests have a reader of their own.
"""

from __future__ import annotations

import heapq
import itertools
import json
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from cluster.config import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import TextIO

Line = TypeVar("Line", bound=Frozen)

FORMAT: Final = "prism-schedule-1"


class ScheduleError(ValueError):
    """Data that are no schedule, or from which none can be made. The message says where, and what is wrong."""


class ScheduledPicture(Frozen):
    """One picture of a request. Pictures with the same name are the same picture."""

    name: str
    """The name of the picture."""
    width: int = Field(ge=1)
    """Pixels."""
    height: int = Field(ge=1)
    """Pixels."""


class Arrival(Frozen):
    """One request and the time at which it arrives.

    A later turn of a conversation sends everything of the earlier turns again: their texts, pictures and answers. The
    sizes here are those of the new turn alone.
    """

    at_s: float = Field(ge=0)
    """Seconds from the start of the schedule."""
    client: str
    """The name of the client that sends it."""
    text_tokens: int = Field(ge=1)
    """Tokens of the new text."""
    pictures: tuple[ScheduledPicture, ...] = ()
    """The new pictures."""
    output_tokens: int = Field(ge=1)
    """Tokens of the answer."""
    conversation: str | None = None
    """The name of the conversation, or None for a request on its own."""
    turn: int = Field(default=0, ge=0)
    """The number of earlier turns of the conversation."""


class Heading(Frozen):
    """The first line of a schedule."""

    format: Literal["prism-schedule-1"] = FORMAT
    """The version of this format."""
    source: str
    """The origin of the schedule, in words."""
    seed: int
    """The seed of all random choices. The same options and seed give the same schedule."""
    duration_s: float = Field(gt=0)
    """The length of the schedule in seconds. No arrival is later."""


def write_schedule(file: TextIO, heading: Heading, arrivals: Iterable[Arrival]) -> int:
    """Writes a schedule and returns the number of arrivals."""
    file.write(heading.model_dump_json() + "\n")
    num_arrivals = 0
    for num_arrivals, arrival in enumerate(arrivals, 1):  # noqa: B007 -- the count is the result
        file.write(arrival.model_dump_json(exclude_defaults=True) + "\n")
    return num_arrivals


def read_schedule(path: Path) -> tuple[Heading, list[Arrival]]:
    """Reads a schedule.

    Raises:
        ScheduleError: A line is no JSON, has unknown keys or wrong values, or is out of order.
        OSError: The file cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        lines = enumerate(file, 1)
        heading = _parse(Heading, *next(lines, (1, "")))
        arrivals = [_parse(Arrival, number, line) for number, line in lines]
    for number, (before, after) in enumerate(itertools.pairwise(arrivals), 3):
        if after.at_s < before.at_s:
            raise ScheduleError(
                f"line {number}: at_s is {after.at_s}, earlier than the {before.at_s} of the line above"
            )
    if arrivals and arrivals[-1].at_s > heading.duration_s:
        raise ScheduleError(f"line {len(arrivals) + 1}: at_s is beyond the duration_s of {heading.duration_s}")
    return heading, arrivals


def _parse(kind: type[Line], number: int, line: str) -> Line:
    try:
        return kind.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ScheduleError(f"line {number}: {where}: {first['msg']}, not {first['input']!r:.80}") from None
    except ValueError as error:
        raise ScheduleError(f"line {number} is no JSON: {error}") from None


def in_order(streams: Iterable[Iterator[Arrival]]) -> Iterator[Arrival]:
    """Merges several streams of arrivals, each in the order of time, into one."""
    return heapq.merge(*streams, key=lambda arrival: arrival.at_s)
