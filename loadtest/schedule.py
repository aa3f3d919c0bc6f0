"""Reads a schedule of arrivals, and splits it among the processes that make the load.

The file is what ``prism schedule`` writes: JSON lines, first a heading, then one arrival per line in the order of time.
The load speaks to Prism over HTTP only, so it has a reader of its own. A test holds it against Prism's.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loadtest.fields import BadFields, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FORMAT: Final = "prism-schedule-1"


@dataclass(frozen=True, slots=True)
class LoadPicture:
    """One picture of a request. Pictures with the same name are the same picture.

    Args:
        name: The name of the picture.
        width: Pixels.
        height: Pixels.
    """

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class LoadArrival:
    """One request and the time at which it arrives. The sizes are those of the new turn alone.

    Args:
        at_s: Seconds from the start of the schedule.
        client: The name of the client that sends it.
        text_tokens: Tokens of the new text.
        output_tokens: Tokens of the answer.
        pictures: The new pictures.
        conversation: The name of the conversation, or None for a request on its own.
        turn: The number of earlier turns of the conversation.
    """

    at_s: float
    client: str
    text_tokens: int
    output_tokens: int
    pictures: tuple[LoadPicture, ...] = ()
    conversation: str | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class LoadHeading:
    """The first line of a schedule.

    Args:
        source: The origin of the schedule, in words.
        seed: The seed of all random choices.
        duration_s: The length of the schedule in seconds. No arrival is later.
    """

    source: str
    seed: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """An arrival with what the whole schedule says about it.

    Args:
        index: Its place among all arrivals of the schedule, from 0.
        arrival: The arrival.
        kind: The group of its figures: ``text``, ``new picture``, ``seen picture`` (the schedule had all its pictures
            before) or ``later turn``.
        is_last_turn: True if no later turn of its conversation follows. It is also true without a conversation.
    """

    index: int
    arrival: LoadArrival
    kind: str
    is_last_turn: bool


def read_load(path: Path) -> tuple[LoadHeading, list[LoadArrival]]:
    """Reads a schedule.

    Raises:
        BadFields: A line is no JSON, has unknown fields or wrong values, or is out of order. The message names the
            file, the line and the field.
        OSError: The file cannot be read.
    """
    arrivals: list[LoadArrival] = []
    with path.open(encoding="utf-8") as file:
        heading = _heading(_fields(path, 1, file.readline()))
        for number, line in enumerate(file, 2):
            fields = _fields(path, number, line)
            arrival = _arrival(fields)
            if arrivals and arrival.at_s < arrivals[-1].at_s:
                raise fields.wrong("at_s", f"at least the {arrivals[-1].at_s} of the line above", arrival.at_s)
            if arrival.at_s > heading.duration_s:
                raise fields.wrong("at_s", f"at most the duration_s of {heading.duration_s}", arrival.at_s)
            arrivals.append(arrival)
    return heading, arrivals


def plan(arrivals: Iterable[LoadArrival]) -> Iterator[PlannedRequest]:
    """Adds to each arrival what the arrivals before and after it say about it.

    Args:
        arrivals: All arrivals of a schedule. An endless iterator has no conversations, and is read one by one.
    """
    names: set[str] = set()
    turns_left = Counter(one.conversation for one in arrivals) if isinstance(arrivals, list) else Counter[str | None]()
    for index, arrival in enumerate(arrivals):
        new = {picture.name for picture in arrival.pictures} - names
        names |= new
        kind = "new picture" if new else "seen picture" if arrival.pictures else "text"
        turns_left[arrival.conversation] -= 1
        is_last = arrival.conversation is None or turns_left[arrival.conversation] <= 0
        yield PlannedRequest(index, arrival, "later turn" if arrival.turn else kind, is_last)


def share(requests: Iterable[PlannedRequest], worker: int, num_workers: int) -> Iterator[PlannedRequest]:
    """The part of a schedule that one of several workers sends.

    All turns of a conversation are in one part, because a later turn sends the earlier answers again.

    Args:
        requests: The whole schedule.
        worker: The worker's number, from 0.
        num_workers: The number of workers.
    """
    for request in requests:
        conversation = request.arrival.conversation
        place = request.index if conversation is None else zlib.crc32(conversation.encode())
        if place % num_workers == worker:
            yield request


def _fields(path: Path, number: int, line: str) -> Fields:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadFields(f"{path}: line {number} is no JSON: {error}") from None
    return Fields(value, f"{path}: line {number}")


def _heading(fields: Fields) -> LoadHeading:
    if (found := fields.text("format", default=FORMAT)) != FORMAT:
        raise fields.wrong("format", FORMAT, found)
    source, seed = fields.text("source"), fields.whole("seed", least=-(2**63))
    duration_s = fields.number("duration_s")
    if not duration_s:
        raise fields.wrong("duration_s", "above 0", duration_s)
    fields.end()
    return LoadHeading(source, seed, duration_s)


def _arrival(fields: Fields) -> LoadArrival:
    arrival = LoadArrival(
        at_s=fields.number("at_s"),
        client=fields.text("client"),
        text_tokens=fields.whole("text_tokens", least=1),
        output_tokens=fields.whole("output_tokens", least=1),
        pictures=_pictures(fields, fields.items("pictures", default=())),
        conversation=fields.text("conversation", default=None),
        turn=fields.whole("turn", least=0, default=0),
    )
    fields.end()
    return arrival


def _pictures(fields: Fields, values: Sequence[Any]) -> tuple[LoadPicture, ...]:
    pictures = []
    for number, value in enumerate(values):
        picture = fields.nested(f"pictures.{number}", value)
        pictures.append(
            LoadPicture(picture.text("name"), picture.whole("width", least=1), picture.whole("height", least=1))
        )
        picture.end()
    return tuple(pictures)
