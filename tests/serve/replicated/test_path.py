"""A real request takes the path that docs/path.md tells."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.path_page import steps
from tests.helpers.recorder import calls_between

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.launching import Launched

Calls = list[tuple[str, str]]
SEVERAL = "with several decoders", "with several encoders"


@pytest.fixture(scope="module")
def calls(launched: Launched, records: Path) -> Calls:
    """The calls that a streamed request with one new picture causes, in all processes of the cluster."""
    start_s = time.monotonic()
    content = [image(random_png(224, 168, seed=71)), text("What is in the photograph?")]
    body = chat(content, stream=True, max_tokens=16, ignore_eos=True)
    answer = httpx.post(f"{launched.url}/v1/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    assert answer.text.endswith("data: [DONE]\n\n")
    return [(call.file, call.function) for call in calls_between(records, start_s, time.monotonic())]


def missing_from(calls: Calls, expected: Calls) -> Calls:
    """Returns the expected calls that do not come in the expected order."""
    remaining, missing = iter(calls), []
    for step in expected:
        before = list(remaining)
        if step in before:
            remaining = iter(before[before.index(step) + 1 :])
        else:
            missing.append(step)
            remaining = iter(before)
    return missing


def test_a_new_picture_takes_the_path_of_the_page(calls: Calls) -> None:
    """The functions of the table are called in its order, across all processes."""
    assert missing_from(calls, steps("One new picture", *SEVERAL)) == []


def test_a_token_takes_the_path_of_the_page(calls: Calls) -> None:
    """After the first piece, the functions that carry a token are called in the order of the table."""
    first = calls.index(("cluster/stream.py", "relay"))
    assert missing_from(calls[first:], steps("One token")) == []


def test_a_step_out_of_order_is_found() -> None:
    """The comparison fails when two steps change places."""
    calls = [("a.py", "first"), ("a.py", "second"), ("a.py", "third")]
    assert missing_from(calls, calls) == []
    assert missing_from(calls, [calls[1], calls[0], calls[2]]) == [calls[0]]
