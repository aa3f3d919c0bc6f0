"""Odd request bodies: junk in every field, and bytes that are hardly JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as some

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

GOOD: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2, "temperature": 0},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
"""A short request to each endpoint."""

SAMPLING: Final = [
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "echo",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
    "logit_bias",
    "logprob_token_ids",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "priority",
    "prompt_logprobs",
    "repetition_detection",
    "repetition_penalty",
    "response_format",
    "return_token_ids",
    "return_token_offsets",
    "return_tokens_as_token_ids",
    "routed_experts_prompt_start",
    "seed",
    "session_id",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_interval",
    "stream_options",
    "structured_outputs",
    "temperature",
    "thinking_token_budget",
    "top_k",
    "top_p",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_beam_search",
    "user",
    "watermarking",
]
CHAT: Final = [
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "include_reasoning",
    "max_completion_tokens",
    "messages",
    "parallel_tool_calls",
    "reasoning_effort",
    "return_prompt_text",
    "tool_choice",
    "tools",
    "top_logprobs",
]
FIELDS: Final[dict[str, list[str]]] = {
    "/v1/chat/completions": [*SAMPLING, *CHAT],
    "/v1/completions": [*SAMPLING, "prompt", "suffix"],
    "/tokenize": [
        *("add_generation_prompt", "add_special_tokens", "chat_template_kwargs", "continue_final_message", "messages"),
        *("model", "prompt", "return_token_strs", "tools"),
    ],
    "/detokenize": ["model", "tokens"],
}
"""The fields that clients may send, by endpoint. A test compares them with vLLM's."""

NUMBERS: Final = (0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324)
TEXTS: Final = ("", " ", "\0", "\ud800", "a\udfffb", "\U0010ffff", "7", "true", "null", "NaN", "<|image_pad|>", "../a")
MAX_DEPTH: Final = 300


@some.composite
def _nested(draw: DrawFn) -> Any:
    """A value in many arrays or objects."""
    value: Any = draw(some.sampled_from([1, "a", None]))
    name = draw(some.sampled_from(["a", "type", "properties"]))
    is_array = draw(some.booleans())
    for _ in range(draw(some.integers(2, MAX_DEPTH))):
        value = [value] if is_array else {name: value}
    return value


LEAVES: Final[SearchStrategy[Any]] = some.one_of(
    some.none(), some.booleans(), some.sampled_from(NUMBERS), some.sampled_from(TEXTS), some.integers(), some.text()
)
JUNK: Final[SearchStrategy[Any]] = some.one_of(
    LEAVES,
    some.recursive(
        LEAVES,
        lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ),
    _nested(),
)
"""Any JSON value, with a taste for those at the edges. NaN and infinity are not among them, since JSON has none."""

PARTS: Final[SearchStrategy[Any]] = some.one_of(
    JUNK,
    some.fixed_dictionaries(
        {},
        optional={
            "type": some.sampled_from(["text", "image_url", "input_text", "refusal", "image_embeds", "video_url", "x"])
            | JUNK,
            "text": JUNK,
            "image_url": JUNK | some.fixed_dictionaries({}, optional={"url": JUNK, "detail": JUNK, "x": JUNK}),
            "uuid": JUNK,
            "image": JUNK,
        },
    ),
)
MESSAGES: Final[SearchStrategy[Any]] = some.lists(
    some.one_of(
        JUNK,
        some.fixed_dictionaries(
            {"role": some.sampled_from(["user", "system", "assistant", "tool", "x"]) | JUNK},
            optional={"content": JUNK | some.lists(PARTS, max_size=3), "tool_calls": JUNK, "name": JUNK, "x": JUNK},
        ),
    ),
    max_size=3,
)
"""Messages that are nearly right."""


@some.composite
def spoilt(draw: DrawFn) -> tuple[str, str, dict[str, Any]]:
    """Draws an endpoint, a field, and a short request in which that field has an odd value."""
    path = draw(some.sampled_from(sorted(GOOD)))
    field = draw(some.sampled_from([*FIELDS[path], "prism"]))
    value = draw(MESSAGES | JUNK if field == "messages" else JUNK)
    good = {name: kept for name, kept in GOOD[path].items() if (name, field) != ("prompt", "messages")}
    return path, field, {**good, field: value}


@some.composite
def raw_bodies(draw: DrawFn) -> bytes:
    """Draws bytes that are JSON, nearly JSON, or not at all."""
    path = draw(some.sampled_from(sorted(GOOD)))
    good = json.dumps(GOOD[path])
    fields = draw(some.dictionaries(some.sampled_from(FIELDS[path]), JUNK, max_size=3))
    text = json.dumps({**GOOD[path], **fields})
    return draw(
        some.one_of(
            some.just(text.encode()),
            some.integers(0, len(text)).map(lambda end: text[:end].encode()),
            some.binary(max_size=64),
            some.sampled_from(
                [
                    b"",
                    b"\xef\xbb\xbf" + good.encode(),
                    good.encode("utf-16"),
                    good.encode() + b"\0",
                    good.encode() + good.encode(),
                    good.replace("hello", "\udc80").encode("utf-8", "surrogateescape"),
                    good.replace('"hello"', '"\\ud800"').encode(),
                    good.replace("{", '{"max_tokens": "x", "max_tokens": 1, ', 1).encode(),
                    good.replace("{", '{"prism": {}, "prism": [], ', 1).encode(),
                    good.replace("{", '{"temperature": NaN, ', 1).encode(),
                    good.replace("{", '{"temperature": -Infinity, ', 1).encode(),
                    good.replace("{", '{"seed": 1e999, ', 1).encode(),
                    b"[" * 100_000,
                    b'{"a":' * 100_000,
                    b"[" + b"1," * 100_000 + b"1]",
                    b'"hello"',
                    b"null",
                    b"1" * 10_000,
                ]
            ),
        )
    )
