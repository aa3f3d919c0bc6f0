"""The segments that vLLM's scheduler has open."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cluster.decode.transport.connector import OpenSegments
from cluster.decode.transport.segment import Segment

ROWS = np.arange(6 * 4096, dtype=np.uint32).reshape(6, 4096).view(np.uint8)
ROW_BYTES = 4 * 4096


def holders(name: str) -> list[str]:
    """Returns the descriptors that lead to a segment, in all processes that can be read."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if name in os.readlink(link):
                found.append(str(link))
        except OSError:
            continue
    return found


def test_what_the_scheduler_has_opened_outlives_the_request_and_the_steps_under_way() -> None:
    """A segment that its owner has closed stays open in the scheduler until the request has ended and every step
    that may read it is over."""
    segment = Segment.of(ROWS)
    openings = OpenSegments(ROW_BYTES, 2, pytest.fail)
    assert openings.open("request", [("picture", 6), ("picture", 6)], {"picture": list(segment.address)})
    segment.close()
    for _ in range(5):
        openings.step()
        assert openings.open("request", [("picture", 6), ("picture", 6)], {"picture": list(segment.address)})
        assert np.fromfile(openings.path("request", "picture"), np.uint8).nbytes == ROWS.nbytes
    openings.end("request")
    for _ in range(2):
        openings.step()
        assert len(holders(segment.name)) == 1
    openings.step()
    assert holders(segment.name) == []


@pytest.mark.parametrize(
    "addresses",
    [None, {}, {"there": None}, {"there": None, "gone": [1, 2, "x"]}, {"there": None, "gone": [1]}],
    ids=str,
)
def test_a_request_with_a_lost_picture_is_reported_once_and_holds_nothing(addresses: dict[str, object] | None) -> None:
    """A segment that cannot be opened is reported once, with its request, to the owner and to vLLM. Other requests
    go on."""
    segment, reported = Segment.of(ROWS), list[str]()
    if addresses and "there" in addresses:
        addresses = {**addresses, "there": list(segment.address)}
    openings = OpenSegments(ROW_BYTES, 1, reported.append)
    for _ in range(3):
        assert not openings.open("request", [("there", 6), ("gone", 6)], addresses)
    assert reported == ["request"]
    assert (openings.take_lost(), openings.take_lost()) == ({"request"}, set())
    for _ in range(2):
        openings.step()
    assert len(holders(segment.name)) == 1
    segment.close()
