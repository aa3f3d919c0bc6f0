"""Values of fields, at every endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cluster.request import OPERATOR_FIELDS
from tests.helpers.ask import image, text
from tests.serve.default.bad_input.kind import COMPLETIONS, PICTURE, URL, Bad, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG: Final = 10**30


def chat_fields() -> Iterator[Bad]:
    """Yields wrong values for fields of the OpenAI API, of vLLM and of Prism. The error names the field unless the kind
    says otherwise."""
    tool = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}
    schema = {"type": "json_schema", "json_schema": {"name": "a"}}
    # invalid_value: of the wrong kind; invalid_request: what vLLM thinks of the value
    wrong_kind: dict[str, list[Any]] = {
        "model": [5, ["prism-demo"]],
        "temperature": ["hot", [], 10**400],
        "top_p": ["a"],
        "top_k": [1.5, BIG, str(BIG)],
        "max_tokens": ["a", 1.5, BIG],
        "max_completion_tokens": ["a"],
        "n": ["a", 2.5, 257, "257", 257.0, 16_384, BIG],
        "logprobs": ["a", 5],
        "stop": [5, ["a"] * 1000],
        "seed": ["a", 1.5, 2**64],
        "logit_bias": [5],
        "response_format": [5],
        "tools": [5],
        "stream": ["yes", "true", 1, []],
        "user": [5],
        "stop_token_ids": [5],
        "stream_interval": [0, BIG],
        "chat_template_kwargs": [5],
        "documents": [5],
        "prompt": ["hello"],
        "prism": [5, "a", []],
    }
    unfit: dict[str, list[Any]] = {
        "temperature": [-1, 1e308],
        "top_p": [0, -1, 2],
        "top_k": [-5],
        "min_p": [2],
        "max_tokens": [0, -1, 5000],
        "n": [0, -1, 17],
        "frequency_penalty": [3],
        "repetition_penalty": [0],
        "stop": ["", [""]],
        "logit_bias": [{"a": 1}, {"999999": 1}, {"-1": 1}],
        "stop_token_ids": [[-1], [999_999], [2**40]],
        "allowed_token_ids": [[], [-1], [2**40]],
        "bad_words": [[""]],
        "min_tokens": [-1, 99],
        "prompt_logprobs": [-2, 21],
        "top_logprobs": [-2, 5],
        "tools": [[]],
        "tool_choice": ["auto", "a", 5, {"type": "function", "function": {"name": "a"}}],
        "stream_options": [{"include_usage": True}],
        "cache_salt": ["", 5, "../a"],
        "continue_final_message": [True],
        "thinking_token_budget": [5],
    }
    for code, table in {"invalid_value": wrong_kind, "invalid_request": unfit}.items():
        for name, values in table.items():
            for value in values:
                yield Bad(f"{name} {repr(value)[:40]}", code, name, ask(text("hello"), **{name: value}))
    named: list[tuple[str, str | None, dict[str, Any]]] = [
        ("invalid_value", "stop[1]", {"stop": ["a", 1]}),
        ("invalid_value", "logit_bias.5", {"logit_bias": {"5": "a"}}),
        ("invalid_value", "response_format.type", {"response_format": {"type": "a"}}),
        ("invalid_request", "response_format", {"response_format": {"type": "json_schema"}}),
        (
            "invalid_request",
            "response_format",
            {"response_format": {**schema, "json_schema": {"name": "a", "schema": {"type": "a"}}}},
        ),
        ("invalid_value", "tools[0].function", {"tools": [{"type": "function"}]}),
        ("invalid_value", "tools[0].type", {"tools": [{**tool, "type": "a"}]}),
        (
            "invalid_request",
            "tool_choice",
            {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "a"}}},
        ),
        (
            "invalid_value",
            None,
            {"tools": [{"type": "function"}], "tool_choice": {"type": "function", "function": {"name": "a"}}},
        ),
        ("invalid_value", None, {"tools": [None], "tool_choice": {"type": "function", "function": {"name": "a"}}}),
        ("invalid_request", "logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("invalid_request", "logprob_token_ids", {"logprobs": True, "logprob_token_ids": [-1]}),
        ("invalid_value", "structured_outputs", {"structured_outputs": "a"}),
        ("invalid_request", None, {"structured_outputs": {}}),
        ("invalid_request", "structured_outputs", {"structured_outputs": {"regex": "((("}}),
        ("invalid_request", None, {"structured_outputs": {"choice": []}}),
        ("invalid_request", None, {"structured_outputs": {"grammar": "a"}}),
        ("invalid_request", None, {"structured_outputs": {"json": "{"}}),
        ("invalid_value", "structured_outputs.choice[0]", {"structured_outputs": {"choice": [1]}}),
        ("invalid_value", "repetition_detection.min_count", {"repetition_detection": {"min_count": BIG}}),
        ("invalid_request", None, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}),
        ("invalid_request", None, {"chat_template_kwargs": {"messages": []}}),
        ("invalid_value", "prism.timeout_s", {"prism": {"timeout_s": 0}}),
        ("invalid_value", "prism.timeout_s", {"prism": {"timeout_s": "5"}}),
        ("invalid_value", "prism.timeout_s", {"prism": {"timeout_s": True}}),
        ("invalid_value", "prism.timeout_s", {"prism": {"timeout_s": 10**400}}),
        ("unknown_field", "prism.model", {"prism": {"model": "a", "timeout_s": 5}}),
        ("embeddings_not_accepted", "prompt_embeds", {"prompt_embeds": "a"}),
    ]
    for code, param, options in named:
        yield Bad(f"fields {str(options)[:90]}", code, param, ask(text("hello"), **options))
    for name in ("nope", "", "prism-demo ", "../prism-demo"):
        yield Bad(f"model {name!r}", "model_not_found", "model", ask(text("hello"), model=name), status=404)
    for name in OPERATOR_FIELDS:
        for value in ({}, {"image": {"num_frames": 1}}):
            yield Bad(f"{name} {value}", "unknown_field", name, ask(text("hello"), **{name: value}))


def other_endpoints() -> Iterator[Bad]:
    """Yields bad requests to completions, tokenize and detokenize."""
    picture = ask(PICTURE)["messages"]
    table: list[tuple[str, str, str | None, dict[str, Any]]] = [
        (COMPLETIONS, "invalid_request", None, {}),
        (COMPLETIONS, "invalid_request", "prompt", {"prompt": ""}),
        (COMPLETIONS, "invalid_request", "prompt", {"prompt": []}),
        (COMPLETIONS, "invalid_request", "prompt", {"prompt": [""]}),
        (COMPLETIONS, "invalid_value", "prompt", {"prompt": 5}),
        (COMPLETIONS, "invalid_value", "prompt", {"prompt": {"prompt_token_ids": [1]}}),
        (COMPLETIONS, "invalid_value", "prompt[0]", {"prompt": [-1]}),
        (COMPLETIONS, "invalid_value", "prompt[0]", {"prompt": [PICTURE]}),
        (COMPLETIONS, "invalid_request", None, {"prompt": [999_999]}),
        (COMPLETIONS, "invalid_request", None, {"prompt": [2**40]}),
        (COMPLETIONS, "invalid_request", "prompt", {"prompt": ["a"] * 2000}),
        (COMPLETIONS, "invalid_value", "n", {"prompt": ["a"] * 100, "n": 3, "temperature": 1}),
        (COMPLETIONS, "invalid_value", "prompt", {"prompt": "hello", "messages": picture}),
        (COMPLETIONS, "embeddings_not_accepted", "prompt_embeds", {"prompt": "hello", "prompt_embeds": "a"}),
        (COMPLETIONS, "embeddings_not_accepted", "prompt_embeds", {"prompt_embeds": ["a"]}),
        (
            COMPLETIONS,
            "unknown_field",
            "mm_processor_kwargs",
            {"prompt": "hello", "mm_processor_kwargs": {"min_pixels": 1}},
        ),
        (COMPLETIONS, "invalid_request", "logprobs", {"prompt": "hello", "logprobs": 21}),
        (COMPLETIONS, "invalid_request", "suffix", {"prompt": "hello", "suffix": "a"}),
        (COMPLETIONS, "invalid_value", "echo", {"prompt": "hello", "echo": "a"}),
        (COMPLETIONS, "context_length_exceeded", "prompt", {"prompt": "red " * 5000}),
        ("/tokenize", "invalid_value", "prompt", {}),
        ("/tokenize", "invalid_value", "prompt", {"prompt": 5}),
        ("/tokenize", "invalid_value", "prompt", {"prompt": ["a"]}),
        ("/tokenize", "invalid_value", "messages", {"messages": 5}),
        ("/tokenize", "invalid_image", URL, {"messages": ask(image(b"x"))["messages"]}),
        ("/tokenize", "invalid_value", "prompt", {"prompt": "hello", "messages": picture}),
        ("/tokenize", "unknown_field", "chat_template", {"messages": picture, "chat_template": "{{ 1 }}"}),
        ("/tokenize", "invalid_value", "add_special_tokens", {"prompt": "hello", "add_special_tokens": "a"}),
        ("/detokenize", "invalid_value", "tokens", {}),
        ("/detokenize", "invalid_value", "tokens", {"tokens": 5}),
        ("/detokenize", "invalid_value", "tokens", {"tokens": "hello"}),
        ("/detokenize", "invalid_value", "tokens[1]", {"tokens": [1, "a"]}),
        ("/detokenize", "invalid_value", "tokens[0]", {"tokens": [1.5]}),
        ("/detokenize", "invalid_value", "tokens[0]", {"tokens": [-1]}),
        ("/detokenize", "invalid_value", "tokens[0]", {"tokens": [BIG]}),
        ("/detokenize", "invalid_request", None, {"tokens": [999_999]}),
        ("/detokenize", "invalid_request", None, {"tokens": [2**63 - 1]}),
    ]
    for path, code, param, body in table:
        yield Bad(f"{path} {str(body)[-90:]}", code, param, {"max_tokens": 2, **body}, path=path)
    yield Bad(
        "/tokenize another model",
        "model_not_found",
        "model",
        {"prompt": "a", "model": "b"},
        status=404,
        path="/tokenize",
    )


SECTIONS: Final = (chat_fields, other_endpoints)
