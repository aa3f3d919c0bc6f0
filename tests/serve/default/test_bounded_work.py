"""A request is judged before anything is done for it, and no answer is without a bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import TokenizeCompletionRequest

from cluster.config import ModelConfig
from cluster.decode.answer_size import MAX_ANSWER_BYTES, AnswerSize
from cluster.decode.bounds import MAX_OPTION_BYTES
from cluster.request import MAX_TEXT_BYTES
from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.samples import counted
from tests.serve.default.bad_input.kind import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tests.helpers.ask import Part

NUM_PICTURES = 16


def new_pictures(seed: int) -> list[Part]:
    """Returns as many pictures as a request may have. No test has sent them before."""
    return [image(random_png(230, 150, 1000 * seed + number)) for number in range(NUM_PICTURES)]


async def work(client: httpx.AsyncClient) -> dict[str, int]:
    """Returns the pictures that preprocessors and encoders have worked on, and those that encoders and decoders were
    asked for."""
    counters = {
        "preprocessor": "prism_pictures_total",
        "encoder": "prism_pictures_total",
        "decoder": "prism_embedding_cache_lookups_total",
        "an encoder's cache": "prism_embedding_cache_lookups_total",
    }
    pools = {"an encoder's cache": "encoder"}
    return {where: (await counted(client, name, pools.get(where, where))).total() for where, name in counters.items()}


@pytest.mark.parametrize(
    ("code", "param", "options", "words"),
    [
        ("invalid_value", "temperature", {"temperature": "hot"}, "?"),
        ("invalid_request", "temperature", {"temperature": -1}, "?"),
        ("invalid_request", "logit_bias", {"logit_bias": {"999999": 1}}, "?"),
        ("invalid_request", "allowed_token_ids", {"allowed_token_ids": [2**40]}, "?"),
        ("invalid_request", "structured_outputs", {"structured_outputs": {"regex": "((("}}, "?"),
        ("invalid_request", "tool_choice", {"tool_choice": "auto"}, "?"),
        ("invalid_value", "n", {"n": 257}, "?"),
        ("invalid_value", "messages", {}, "<|image_pad|>"),
        ("invalid_value", "prompt_logprobs", {"prompt_logprobs": 300_000}, "?"),
        ("context_length_exceeded", "messages", {}, "red " * 3_400),
        ("context_length_exceeded", "messages", {}, "red " * 100_000),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_refused_request_runs_no_tower(
    prism: httpx.AsyncClient, code: str, param: str, options: dict[str, Any], words: str
) -> None:
    """A request that vLLM refuses, or that cannot fit the context with its pictures, is refused before any of its
    pictures is asked for, streamed or not."""
    pictures, before = new_pictures(76), await work(prism)
    for stream in (False, True):
        if stream and "prompt_logprobs" in options:
            continue
        response = await prism.post(CHAT, json=chat([*pictures, text(words)], **{**options, "stream": stream}))
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert await work(prism) == before


async def test_a_good_request_has_its_pictures_encoded_once(prism: httpx.AsyncClient) -> None:
    """A good request about the pictures of the refused ones moves every counter by their number: they were new."""
    before = await work(prism)
    response = await prism.post(CHAT, json=chat([*new_pictures(76), text("?")]))
    assert response.status_code == httpx.codes.OK, response.text
    assert {name: number - before[name] for name, number in (await work(prism)).items()} == dict.fromkeys(
        before, NUM_PICTURES
    )


async def test_tokens_of_pictures_are_counted_without_a_tower(prism: httpx.AsyncClient) -> None:
    """/tokenize counts as many tokens for pictures as a chat about them has, and nothing is encoded for it."""
    sizes = [(30, 40), (400, 300), (300, 400), (640, 20), (113, 113)]
    content = [*(image(random_png(*size, 4000 + sum(size))) for size in sizes), text("What is it?")]
    before = await work(prism)
    counted_first = (await prism.post("/tokenize", json={"messages": chat(content)["messages"]})).json()["count"]
    assert await work(prism) == before
    answer = (await prism.post(CHAT, json=chat(content))).json()
    assert answer["usage"]["prompt_tokens"] == counted_first


KINDS: dict[str, type[BaseModel]] = {
    CHAT: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    "/tokenize": TokenizeCompletionRequest,
}
WORDS = "What colour is the shape? " * 40
PROMPTS = ["red blue " * 200] * 400


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        (COMPLETIONS, "echo", {"prompt": PROMPTS, "echo": True, "logprobs": 20, "max_tokens": 0}),
        (COMPLETIONS, "echo", {"prompt": PROMPTS, "echo": True, "logprobs": 20, "stream": True}),
        (COMPLETIONS, "echo", {"prompt": WORDS * 10, "echo": True, "logprobs": 1, "n": 64, "temperature": 1}),
        (COMPLETIONS, "prompt_logprobs", {"prompt": PROMPTS, "prompt_logprobs": 20, "max_tokens": 1}),
        (COMPLETIONS, "prompt_logprobs", {"prompt": WORDS * 10, "prompt_logprobs": 0, "n": 256, "temperature": 1}),
        (COMPLETIONS, "logprobs", {"prompt": "a", "logprobs": 20, "n": 64, "max_tokens": 1000, "temperature": 1}),
        (CHAT, "logprobs", chat([text("a")], logprobs=True, top_logprobs=20, n=16, max_tokens=1000)),
        (CHAT, "logprobs", chat([text("a")], logprobs=True, top_logprobs=5, n=16, max_tokens=4000)),
        (CHAT, "logprobs", chat([text("a")], logprobs=True, logprob_token_ids=[*range(128)], max_tokens=4000)),
        ("/tokenize", "return_token_strs", {"prompt": "é" * (MAX_TEXT_BYTES // 2 - 50), "return_token_strs": True}),
    ],
    ids=lambda value: str(value)[-60:],
)
async def test_an_answer_without_a_bound_is_refused(
    prism: httpx.AsyncClient, path: str, param: str, body: dict[str, Any]
) -> None:
    """An answer that could exceed the limit is refused at once. The error names the field that adds the most, the
    estimate, and what would be right."""
    response = await prism.post(path, json={**body, **({"temperature": 1} if path == CHAT else {})})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", param), error
    assert error["figures"]["asked_bytes"] > error["figures"]["limit_bytes"] == MAX_ANSWER_BYTES
    assert "; " in error["message"]


async def test_long_options_for_many_answers_are_refused(prism: httpx.AsyncClient) -> None:
    """A long ``logit_bias`` for hundreds of prompts is refused, and for one prompt it is served."""
    body = {"prompt": "a", "max_tokens": 1, "logit_bias": {str(token): 0.5 for token in range(900)}}
    assert (await prism.post(COMPLETIONS, json=body)).status_code == httpx.codes.OK
    response = await prism.post(COMPLETIONS, json={**body, "prompt": ["a"] * 600})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "logit_bias"), error
    assert error["figures"]["limit_bytes"] == MAX_OPTION_BYTES


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": WORDS, "echo": True, "logprobs": 5, "max_tokens": 8}),
        (COMPLETIONS, {"prompt": [WORDS] * 8, "echo": True, "logprobs": 1, "max_tokens": 0}),
        (COMPLETIONS, {"prompt": WORDS, "echo": True, "n": 8, "temperature": 1, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": WORDS, "prompt_logprobs": 5, "n": 2, "temperature": 1, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": WORDS, "return_token_ids": True, "n": 16, "temperature": 1, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": "a", "logprobs": 20, "max_tokens": 200, "ignore_eos": True}),
        (CHAT, chat([text("a")], logprobs=True, top_logprobs=20, max_tokens=200, ignore_eos=True)),
        (CHAT, chat([text("a")], logprobs=True, logprob_token_ids=[*range(100)], max_tokens=50, ignore_eos=True)),
        (CHAT, chat([text(WORDS)], prompt_logprobs=5, max_tokens=1)),
        (CHAT, chat([text(WORDS)], echo=True, n=16, temperature=1, max_tokens=1)),
        ("/tokenize", {"prompt": WORDS}),
        ("/tokenize", {"prompt": WORDS, "return_token_strs": True}),
    ],
    ids=lambda value: str(value)[-60:],
)
async def test_the_estimate_is_near_the_answer(prism: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    """The estimated size of an answer is between its true size and three times as much. The oracle is the answer."""
    prompts = body.get("prompt", [WORDS])
    prompts = prompts if isinstance(prompts, list) else [prompts]
    tokens = (await prism.post("/tokenize", json={"prompt": prompts[0]})).json()["count"]
    size = AnswerSize(KINDS[path].model_validate(body))
    for prompt in prompts:
        size.add(tokens, lambda prompt=prompt: len(prompt), ModelConfig().max_model_len - tokens)  # type: ignore[misc]
    response = await prism.post(path, json=body)
    assert response.status_code == httpx.codes.OK, response.text
    frame = 600 * (len(prompts) * body.get("n", 1))  # the same for any request: names, usage, an object for each choice
    assert 0.8 * (len(response.content) - frame) <= size.num_bytes <= 3 * len(response.content)


NUM_ASKED, LARGE_BYTES = 12, 9 * 2**20
"""With their bodies, the pictures of so many requests fill the default ``max_held_bytes``."""


async def test_answers_that_are_not_streamed_do_not_hold_their_pictures(prism: httpx.AsyncClient) -> None:
    """While a dozen long answers about large pictures are made, one more request with such a picture is served."""

    async def ask(number: int, num_tokens: int) -> int:
        picture = image(random_png(56, 56, 90_000 + number).ljust(LARGE_BYTES, b"\0"))
        body = chat([picture, text("?")], max_tokens=num_tokens, ignore_eos=True)
        return (await prism.post(CHAT, json=body)).status_code

    long = [asyncio.ensure_future(ask(number, 1500)) for number in range(NUM_ASKED)]
    while (await counted(prism, "prism_engine_requests", "decoder")).total() < NUM_ASKED:
        assert not any(one.done() for one in long)
    assert await ask(NUM_ASKED, 4) == 200
    assert not any(one.done() for one in long)
    assert [await one for one in long] == [200] * NUM_ASKED
