"""Decode stage: the size of an answer before it is made."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeCompletionRequest

from cluster.decode.answer_size import ADVICE, MAX_ANSWER_BYTES, AnswerSize, TokenLengths, check_text_size
from cluster.errors import InvalidField

CONTEXT = 32_768
MESSAGES = [{"role": "user", "content": "a"}]


def add(request: Any, *, num_prompts: int = 1, num_tokens: int = 1_000, text_bytes: int = 4_000) -> None:
    """Adds prompts of one length to the size of an answer."""
    size = AnswerSize(request)
    for _ in range(num_prompts):
        size.add(num_tokens, lambda: text_bytes, CONTEXT - num_tokens)


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({"logprobs": 5, "max_tokens": 1000}, {}),
        ({"logprobs": 5, "max_tokens": 1000, "n": 16}, {}),
        ({"n": 256, "max_tokens": 1000}, {}),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, {"num_prompts": 64}),
        ({"echo": True, "logprobs": 5, "max_tokens": 1}, {"num_tokens": 4000}),
        ({"prompt_logprobs": 5}, {"num_tokens": CONTEXT - 1}),
        ({"return_token_ids": True, "n": 16}, {"num_tokens": CONTEXT - 1000}),
        ({"logprobs": 20, "max_tokens": 30_000, "stream": True}, {}),
        ({"return_tokens_as_token_ids": True, "logprobs": 5, "max_tokens": 1000}, {}),
    ],
    ids=str,
)
def test_ordinary_requests_for_completions_pass(options: dict[str, Any], prompts: dict[str, int]) -> None:
    """Ordinary requests stay far below the limit."""
    add(CompletionRequest.model_validate({"prompt": "a", **options}), **prompts)


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({}, {}),
        ({"logprobs": True, "top_logprobs": 5}, {}),
        ({"logprobs": True, "top_logprobs": 20, "max_tokens": 1000, "n": 8}, {}),
        ({"logprobs": True, "top_logprobs": 5, "max_completion_tokens": 1000, "n": 16}, {}),
        ({"logprobs": True, "top_logprobs": 20, "stream": True, "n": 16}, {}),
        ({"n": 64}, {}),
        ({"echo": True, "n": 16}, {}),
        ({"return_token_ids": True, "return_prompt_text": True}, {"num_tokens": CONTEXT - 1}),
    ],
    ids=str,
)
def test_ordinary_requests_for_chats_pass(options: dict[str, Any], prompts: dict[str, int]) -> None:
    """What users of the API ask for stays below the limit, also without ``max_tokens`` in a context of 32k tokens."""
    add(ChatCompletionRequest.model_validate({"messages": MESSAGES, **options}), **prompts)


@pytest.mark.parametrize(
    ("param", "options", "prompts"),
    [
        ("echo", {"echo": True, "logprobs": 20, "max_tokens": 1}, {"num_prompts": 100}),
        ("echo", {"echo": True, "logprobs": 20, "stream": True}, {"num_prompts": 100}),
        ("echo", {"echo": True, "n": 256, "max_tokens": 1}, {"text_bytes": 100_000}),
        ("prompt_logprobs", {"prompt_logprobs": 20}, {"num_prompts": 20}),
        ("prompt_logprobs", {"prompt_logprobs": 0, "n": 256, "max_tokens": 1}, {}),
        ("return_token_ids", {"return_token_ids": True, "n": 256, "max_tokens": 1}, {"num_tokens": 10_000}),
        ("logprobs", {"logprobs": 20, "n": 64, "max_tokens": 1000}, {}),
        ("logprobs", {"logprobs": 1, "logprob_token_ids": list(range(128)), "max_tokens": 30_000}, {}),
        ("logprobs", {"logprobs": 20, "stream": True, "stream_interval": 10**6, "max_tokens": 30_000}, {}),
        ("n", {"n": 256, "max_tokens": 30_000}, {}),
    ],
    ids=str,
)
def test_a_completion_without_a_bound_is_refused(param: str, options: dict[str, Any], prompts: dict[str, int]) -> None:
    """An answer beyond the limit is refused with the field that adds the most, and with what would be right."""
    with pytest.raises(InvalidField) as refused:
        add(CompletionRequest.model_validate({"prompt": "a", **options}), **prompts)
    assert refused.value.param == param
    assert ADVICE[param] in refused.value.message
    assert refused.value.figures["asked_bytes"] > refused.value.figures["limit_bytes"] == MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("param", "options", "prompts"),
    [
        ("logprobs", {"logprobs": True, "top_logprobs": 20, "n": 16, "max_tokens": 1000}, {}),
        ("prompt_logprobs", {"prompt_logprobs": 20}, {"num_tokens": CONTEXT - 1}),
        ("echo", {"echo": True, "n": 256, "max_tokens": 1}, {"text_bytes": 100_000}),
        ("echo", {"echo": True, "top_logprobs": 20, "logprobs": True, "max_tokens": 1}, {"num_tokens": CONTEXT - 1}),
        ("return_prompt_text", {"return_prompt_text": True}, {"text_bytes": 2 * MAX_ANSWER_BYTES}),
    ],
    ids=str,
)
def test_a_chat_without_a_bound_is_refused(param: str, options: dict[str, Any], prompts: dict[str, int]) -> None:
    """An answer beyond the limit is refused with the field that adds the most."""
    with pytest.raises(InvalidField) as refused:
        add(ChatCompletionRequest.model_validate({"messages": MESSAGES, **options}), **prompts)
    assert refused.value.param == param


@pytest.mark.parametrize("n", [1, 4])
def test_a_chat_that_leaves_its_length_open_gets_what_fits(n: int) -> None:
    """A chat with many log-probabilities and no ``max_tokens`` is served, and may be as long as the limit allows."""
    wanted = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 20, "n": n}
    chat = ChatCompletionRequest.model_validate(wanted)
    add(chat)
    assert chat.max_completion_tokens is not None
    assert 10_000 < n * chat.max_completion_tokens < 12_000
    explicit = ChatCompletionRequest.model_validate({**wanted, "max_tokens": chat.max_completion_tokens})
    add(explicit)
    with pytest.raises(InvalidField):
        add(ChatCompletionRequest.model_validate({**wanted, "max_tokens": chat.max_completion_tokens + 1}))
    short = ChatCompletionRequest.model_validate({"messages": MESSAGES})
    add(short)
    assert short.max_completion_tokens is None


def test_the_limits_of_tokenize_and_detokenize() -> None:
    """The longest body can be tokenized. With the strings, or as text again, the answer has a limit."""
    plain = TokenizeCompletionRequest.model_validate({"prompt": "a"})
    add(plain, num_tokens=2 * 2**20)
    with pytest.raises(InvalidField, match="send a shorter text"):
        add(plain, num_tokens=3 * 2**20)
    strings = TokenizeCompletionRequest.model_validate({"prompt": "a", "return_token_strs": True})
    add(strings, num_tokens=500_000, text_bytes=2 * 2**20)
    with pytest.raises(InvalidField) as refused:
        add(strings, num_tokens=2 * 2**20, text_bytes=2 * 2**20)
    assert refused.value.param == "return_token_strs"
    check_text_size(MAX_ANSWER_BYTES)
    with pytest.raises(InvalidField, match="Send fewer tokens"):
        check_text_size(MAX_ANSWER_BYTES + 1)


def test_the_length_of_a_text_is_known_from_its_tokens() -> None:
    """Each token counts the bytes of its text; numbers beyond the vocabulary count nothing."""
    lengths = TokenLengths({"a": 0, "long": 3})
    assert [lengths.of(tokens) for tokens in ([], [0, 3, 3], [1, 2, 4, 2**40, -1])] == [0, 9, 0]
    assert TokenLengths({}).of([5]) == 0
