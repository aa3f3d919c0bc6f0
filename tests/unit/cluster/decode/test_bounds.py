"""Decode stage: what may reach the engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from cluster.decode.bounds import MAX_ANSWERS, MAX_OPTION_BYTES, check_bounds
from cluster.errors import InvalidField


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("top_k", {"top_k": 2**63}),
        ("top_k", {"top_k": str(2**70)}),
        ("min_tokens", {"min_tokens": -(2**63) - 1}),
        ("temperature", {"temperature": math.inf}),
        ("stream_interval", {"stream_interval": 10**30}),
        ("temperature", {"temperature": "nan"}),
        ("logit_bias.5", {"logit_bias": {"5": "inf"}}),
        ("repetition_detection.min_count", {"repetition_detection": {"max_pattern_size": 4, "min_count": 10**30}}),
        ("n", {"n": MAX_ANSWERS + 1}),
        ("n", {"n": str(MAX_ANSWERS + 1)}),
        ("n", {"n": float(MAX_ANSWERS + 1)}),
    ],
    ids=str,
)
def test_what_the_engine_could_not_bear_is_refused(param: str, fields: dict[str, Any]) -> None:
    """A value that would end the engine is refused. It is judged as vLLM reads it, also when it is a string or has a
    decimal point."""
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "a"}], **fields})
    with pytest.raises(InvalidField) as refused:
        check_bounds(request)
    assert refused.value.param == param


def test_answers_are_bounded_over_all_prompts() -> None:
    """The limit counts ``n`` answers to each prompt. A list of prompts in one request is left for vLLM to refuse."""
    for fits in (
        {"n": MAX_ANSWERS},
        {"prompt": ["a"] * 1000},
        {"prompt": ["a"] * 1000, "n": 1},
        {"prompt": [5] * 1000, "n": 2},
    ):
        check_bounds(CompletionRequest.model_validate({"prompt": "a", **fits}))
    half = MAX_ANSWERS // 2
    for prompt in (["a"] * half, [[5]] * half):
        with pytest.raises(InvalidField) as refused:
            check_bounds(CompletionRequest.model_validate({"prompt": prompt, "n": 3}))
        assert (refused.value.param, refused.value.figures) == ("n", {"asked": 3 * half, "limit": MAX_ANSWERS})


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("logit_bias", {str(number): 1.0 for number in range(50_000)}),
        ("allowed_token_ids", list(range(80_000))),
        ("bad_words", ["word"] * 60_000),
        ("structured_outputs", {"regex": "a" * 400_000}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": "a" * 400_000}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_long_options_are_for_few_answers(param: str, value: Any) -> None:
    """A long option is accepted for one answer or a few, and refused for many, by prompts or by ``n``."""
    for few in ({"prompt": "a"}, {"prompt": ["a"] * 4}, {"prompt": "a", "n": 4}):
        check_bounds(CompletionRequest.model_validate({param: value, **few}))
    for many in ({"prompt": ["a"] * 64}, {"prompt": [[5]] * 64}, {"prompt": "a", "n": 64}):
        with pytest.raises(InvalidField) as refused:
            check_bounds(CompletionRequest.model_validate({param: value, **many}))
        assert refused.value.param == param
        assert refused.value.figures["limit_bytes"] == MAX_OPTION_BYTES
