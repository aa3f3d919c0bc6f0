"""The requests of the side-by-side benchmark."""

from __future__ import annotations

import base64
import itertools
import json
import random
from typing import Any

import pytest

from loadtest.bench.__main__ import DEMO
from loadtest.bench.requests import Request, body, bursts, letters, steady, windows
from loadtest.bench.workloads import SCENARIOS, Writer


def test_schedules_are_what_they_say() -> None:
    """Steady arrivals end before the duration does, and a burst's times count from its start."""
    assert steady(4.0, 1.0) == [0.0, 0.25, 0.5, 0.75]
    assert steady(2.0, 0.6) == [0.0, 0.5]
    assert steady(2.0, 0.0) == []
    assert bursts([1.0, 7.0], 3, 4.0) == [1.0, 1.25, 1.5, 7.0, 7.25, 7.5]


def test_windows_slide_by_one() -> None:
    """Each turn drops the oldest picture and adds a new one."""
    turns = windows([b"a", b"b", b"c", b"d", b"e"], 3, 3)
    assert turns == [(b"a", b"b", b"c"), (b"b", b"c", b"d"), (b"c", b"d", b"e")]
    with pytest.raises(ValueError, match="take 5 pictures, not 4"):
        windows([b"a", b"b", b"c", b"d"], 3, 3)


def test_letters_are_letters() -> None:
    """The demo's vocabulary has 52 tokens that are one letter."""
    vocabulary = {
        number: token for token, number in json.loads((DEMO / "tokenizer.json").read_text())["model"]["vocab"].items()
    }
    found = [vocabulary[number] for number in letters(DEMO)]
    assert len(found) == 52
    assert all(len(token) == 1 and token.isalpha() and token.isascii() for token in found)


QUICK = [scenario for scenario in SCENARIOS if not scenario.name.startswith("preprocess")]
"""The scenarios without pictures of 24 megapixels, which take seconds to draw."""


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_every_system_gets_the_same_bytes(scenario: Any) -> None:
    """Two writers with the same seed write the same requests. No new picture appears in two phases of a latency
    scenario."""

    def written_again() -> list[Request]:
        phases = scenario.phases(Writer(random.Random("seed"), [1, 2], quick=True))
        return [request for phase in phases for queue in (*phase.queues, phase.schedule) for request in queue]

    written = written_again()
    assert written == written_again()
    assert written != scenario.phases(Writer(random.Random("other"), [1, 2], quick=True))
    for request in written:
        assert json.loads(request.body)["min_tokens"] == request.num_tokens


def test_four_pictures_of_five_were_in_the_request_before() -> None:
    """In the sliding window, each user's request shares four of its five pictures with that user's previous request,
    and none with other users."""
    [scenario] = [each for each in SCENARIOS if each.name == "windows"]
    first, rest = scenario.phases(Writer(random.Random(1), [1], quick=True))
    users = [(*begin, *later) for begin, later in zip(first.queues, rest.queues, strict=True)]
    seen: set[str] = set()
    for requests in users:
        pictures = [pictures_of(request) for request in requests]
        assert all(len(each) == 5 for each in pictures)
        assert all(len(set(before) & set(after)) == 4 for before, after in itertools.pairwise(pictures))
        mine = {picture for each in pictures for picture in each}
        assert not mine & seen
        seen |= mine


def pictures_of(request: Request) -> list[str]:
    """Returns the URLs of a request's pictures."""
    parts = json.loads(request.body)["messages"][0]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_a_picture_can_stand_after_the_words() -> None:
    """With the text first, a prefix cache cannot contain the picture's tokens."""
    content = json.loads(body("hello", [b"jpeg"], 1, [5], text_first=True))["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"]
    assert content[1]["image_url"]["url"].endswith(base64.b64encode(b"jpeg").decode())
