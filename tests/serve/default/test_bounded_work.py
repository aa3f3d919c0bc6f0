"""A request is judged before anything is done for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.samples import counted
from tests.serve.default.bad_input.kind import CHAT

if TYPE_CHECKING:
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
