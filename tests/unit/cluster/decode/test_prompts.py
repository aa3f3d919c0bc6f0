"""Decode stage: prompts between their tokenization and the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from cluster.decode.answer_size import MAX_ANSWER_BYTES, AnswerSize, TokenLengths
from cluster.decode.prompts import CheckedChat, CheckedCompletion, PromptCheck
from cluster.errors import InvalidField

# vLLM reads a field of a chat that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

PAD = 7
MODEL: Any = SimpleNamespace(max_model_len=32_768, hf_config=SimpleNamespace(image_token_id=PAD))
TOKENIZER: Any = SimpleNamespace(decode=lambda _: "<|image_pad|>", truncation_side="right", max_chars_per_token=9)
MESSAGES = [{"role": "user", "content": "a"}]


def check(request: Any, tokens: list[int], *pictures: int) -> AnswerSize:
    """Runs a prompt through vLLM's rules and the check, as vLLM does after tokenization."""
    size = AnswerSize(request)
    request.checked(PromptCheck(size, TokenLengths({"word": 1}), pictures))
    prompt = {"prompt_token_ids": tokens}
    assert request.build_tok_params(MODEL).apply_post_tokenization(TOKENIZER, prompt) == prompt
    return size


def test_a_prompt_has_as_many_picture_tokens_as_pictures() -> None:
    """A text that spells the token of a picture is refused next to pictures. Without pictures it is a text."""
    for tokens, pictures in (([1, PAD], (48,)), ([PAD, 1, PAD], (48, 12)), ([PAD, PAD, 1], ())):
        check(CheckedChat.model_validate({"messages": MESSAGES}), tokens, *pictures)
    for tokens, pictures in (([1], (48,)), ([PAD, PAD], (48,)), ([PAD], (48, 48))):
        with pytest.raises(InvalidField, match="which would take the place of a picture") as refused:
            check(CheckedChat.model_validate({"messages": MESSAGES}), tokens, *pictures)
        assert refused.value.param == "messages"


def test_the_tokens_of_pictures_count_for_the_answer() -> None:
    """A picture is one token of the prompt, and counts as all that it becomes: vLLM repeats those in the answer."""
    asked = {"prompt_logprobs": 20, "max_tokens": 1}
    small = check(CheckedChat.model_validate({"messages": MESSAGES, **asked}), [1, PAD], 48)
    large = check(CheckedChat.model_validate({"messages": MESSAGES, **asked}), [1, PAD], 96)
    assert large.num_bytes == pytest.approx(small.num_bytes * 97 / 49, rel=0.1)
    with pytest.raises(InvalidField) as refused:
        check(CheckedChat.model_validate({"messages": MESSAGES, **asked}), [1, PAD], 16_384)
    assert (refused.value.param, refused.value.figures["limit_bytes"]) == ("prompt_logprobs", MAX_ANSWER_BYTES)


def test_all_prompts_of_a_request_add_up() -> None:
    """Prompts that pass one by one are refused when their answers together are too large."""
    request = CheckedCompletion.model_validate({"prompt": ["a"] * 9, "echo": True, "logprobs": 20, "max_tokens": 0})
    request.checked(PromptCheck(AnswerSize(request), TokenLengths({"word": 1}), ()))
    rules = request.build_tok_params(MODEL)
    one = 2_000 * 21 * 100  # the two kinds of log-probabilities of each token
    for _ in range(MAX_ANSWER_BYTES // one):
        rules.apply_post_tokenization(TOKENIZER, {"prompt_token_ids": [1] * 2_000})
    with pytest.raises(InvalidField, match="leave it out, ask for fewer logprobs"):
        rules.apply_post_tokenization(TOKENIZER, {"prompt_token_ids": [1] * 2_000})


def test_the_context_comes_first() -> None:
    """A prompt that does not fit the context gets vLLM's own words, whatever its answer would be."""
    request = CheckedChat.model_validate({"messages": MESSAGES, "prompt_logprobs": 20})
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        check(request, [1] * 40_000)
