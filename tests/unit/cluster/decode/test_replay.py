"""The choice between the two ways to repeat tokens. ``tests/serve/test_replay.py`` repeats them in a real engine."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from cluster.decode.replay import must_force


@pytest.mark.parametrize(
    ("options", "is_forced"),
    [
        ({"temperature": 0.0, "seed": 1}, False),
        ({"temperature": 0.7, "seed": 1}, True),
        ({"temperature": 0.7}, False),
        ({"stop": ["a"], "logprobs": 2, "min_tokens": 3, "logit_bias": {1: 2.0}}, False),
        ({"frequency_penalty": 0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"bad_words": ["a"]}, True),
    ],
)
def test_what_an_engine_counts_is_forced(options: dict[str, Any], *, is_forced: bool) -> None:
    """Tokens are forced if the engine has to count them itself, and are part of the prompt otherwise."""
    assert must_force(SamplingParams(**options)) is is_forced
