"""Broken pictures get a clear refusal, and never anything worse."""

from __future__ import annotations

import pytest

from cluster.config import MediaConfig
from tests.fuzz.mutations import mutated
from tests.fuzz.pictures import as_they_are, broken, corpus, fuzz

NUM_BROKEN = 300
MAX_PIXELS = 4_000_000
"""Files whose size is broken may be large, and then take long. The command runs them with Prism's own limit."""


async def test_broken_pictures_are_refused_clearly() -> None:
    """Each of 300 broken files gets the pixels of the stage or a clear refusal in time, in bounded memory."""
    found = await fuzz(broken(0, NUM_BROKEN, 15, corpus()), MediaConfig(max_picture_pixels=MAX_PIXELS))
    assert found.faults == []
    assert sum(found.outcomes.values()) == NUM_BROKEN
    assert found.outcomes["invalid_image"] > NUM_BROKEN // 3
    assert found.outcomes["answered"] > NUM_BROKEN // 10


async def test_good_pictures_are_answered() -> None:
    """Every sample is answered, and every file that is no picture is refused."""
    found = await fuzz(as_they_are(), MediaConfig())
    assert found.faults == []
    assert found.outcomes.keys() == {"answered", "invalid_image"}


@pytest.mark.parametrize("number", [0, 7])
def test_a_broken_file_is_found_again(number: int) -> None:
    """The same number and seed give the same file, and another seed another one."""
    files = corpus()
    assert mutated(number, 1, files) == mutated(number, 1, files) != mutated(number, 2, files)
