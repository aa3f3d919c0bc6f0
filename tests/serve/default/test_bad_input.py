"""Bad input of every kind is refused by name, and disturbs nobody."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image, ImageDraw

from cluster.decode.bounds import MAX_ANSWERS
from tests.helpers.ask import chat, image, text
from tests.serve.default.bad_input import kinds
from tests.serve.default.bad_input.kind import CHAT, COMPLETIONS, Bad

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from deployments.local.launch import Cluster
    from tests.helpers.ask import Part

CONCURRENCY = 6
STREAMED = 120
PATIENCE_S = 30.0
"""A good request that waits longer is disturbed."""
FIGURES = {"request_too_large", "image_too_large", "image_too_expensive", "too_many_images", "invalid_value"}
"""Errors about a limit say what was asked for, and the limit."""

COLOUR = text("What colour is the shape?")


def circle(colour: str) -> Part:
    """Returns a content part with a disc on white."""
    picture = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 96, 96), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return image(file.getvalue())


async def answer(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """Returns the text of the model's answer."""
    response = await client.post(CHAT, json=body)
    assert response.status_code == httpx.codes.OK, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def fault(client: httpx.AsyncClient, bad: Bad) -> str | None:
    """Sends one kind of bad input and returns the difference between its refusal and the expected one, or None."""
    response = await client.request(bad.method, bad.path, content=bad.content)
    if response.headers["content-type"] != "application/json":
        return f"{bad.name}: {response.status_code} {response.text[:300]}"
    body = response.json()
    error = body.get("error", {})
    expected = (bad.status, bad.code, bad.param, "invalid_request_error")
    given = (response.status_code, error.get("code"), error.get("param"), error.get("type"))
    keys = error.keys() - ({"figures"} if bad.code in FIGURES else set())
    message = error.get("message", "")
    if given != expected:
        return f"{bad.name}: {given} is not {expected}: {message[:300]}"
    if body.keys() != {"error"} or keys != {"message", "type", "param", "code", "request_id"}:
        return f"{bad.name}: {body} is not of the OpenAI API's shape"
    if len(message.split()) < 3 or not message.endswith((".", "!", "?")):
        return f"{bad.name}: {message!r} is not a sentence"
    return None


async def faults(client: httpx.AsyncClient, wanted: Iterable[Bad]) -> list[str]:
    """Sends every kind, a few at the same time, and returns the faults that were found."""
    waiting = iter(wanted)

    async def send() -> list[str | None]:
        return [await fault(client, bad) for bad in waiting]

    found = await asyncio.gather(*(send() for _ in range(CONCURRENCY)))
    return [one for some in found for one in some if one]


async def decoder(client: httpx.AsyncClient) -> dict[str, float]:
    """Returns the start time of the decoder's process and the number of requests that its engine holds."""
    names = {"process_start_time_seconds": "started", "prism_engine_requests": "requests"}
    samples = [
        line.rpartition(" ") for line in (await client.get("/metrics")).text.splitlines() if 'pool="decoder"' in line
    ]
    found = {names[name]: float(value) for key, _, value in samples if (name := key.partition("{")[0]) in names}
    assert found.keys() == set(names.values())
    return found


@asynccontextmanager
async def undisturbed(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Runs a good request all through the block. Checks that its answer stays right and that the same engine lives
    afterwards."""
    good = chat([circle("red"), COLOUR], logprobs=True, return_token_ids=True)
    before = (await client.post(CHAT, json=good)).json()["choices"]
    process = await decoder(client)
    answers: list[Any] = []
    done = asyncio.Event()

    async def run() -> None:
        while not done.is_set():
            answers.append((await client.post(CHAT, json=good, timeout=PATIENCE_S)).json().get("choices"))

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        done.set()
        await task  # which raises for an answer that came too late
    assert [other for other in answers if tokens(other) != tokens(before)] == []
    assert (await client.get("/health")).status_code == httpx.codes.OK
    assert await decoder(client) == process


def tokens(choices: Any) -> Any:
    """Returns the tokens of an answer, or the response itself if it is no answer."""
    return choices[0]["token_ids"] if choices else choices


async def test_every_kind_is_refused_by_name_and_disturbs_nobody(prism: httpx.AsyncClient) -> None:
    """Hundreds of kinds of bad input get the expected status, code and field, while a good request keeps its answer."""
    wanted = list(kinds())
    assert len({bad.name for bad in wanted}) == len(wanted) >= 80
    async with undisturbed(prism):
        assert await faults(prism, wanted) == []


async def test_streams_are_refused_before_they_begin(prism: httpx.AsyncClient) -> None:
    """With ``stream``, bad input gets the same status and JSON, and never a stream with an error in it."""
    streamable = [
        Bad(f"{bad.name}, streamed", bad.code, bad.param, {**bad.body, "stream": True}, bad.status, bad.path)
        for bad in kinds()
        if isinstance(bad.body, dict)
        and bad.path in (CHAT, COMPLETIONS)
        and not {"stream", "stream_options", "prompt_logprobs"} & bad.body.keys()
    ]
    async with undisturbed(prism):
        assert await faults(prism, random.Random(0).sample(streamable, STREAMED)) == []


async def test_a_uuid_is_taken_with_its_picture_and_is_never_a_key(prism: httpx.AsyncClient) -> None:
    """Two pictures with the same uuid are answered correctly, in two requests and in one."""
    plain = {colour: await answer(prism, chat([circle(colour), COLOUR])) for colour in ("red", "blue")}
    assert plain == {"red": "red", "blue": "blue"}
    for colour in ("red", "blue", "red"):
        named = {**circle(colour), "uuid": "mine"}
        assert await answer(prism, chat([named, COLOUR])) == colour
    for first, second in (("red", "blue"), ("blue", "red")):
        pair = [circle(first), circle(second)]
        named_pair = [{**part, "uuid": "mine"} for part in pair]
        whole = {"logprobs": True, "top_logprobs": 5}
        with_uuid = await prism.post(CHAT, json=chat([*named_pair, COLOUR], **whole))
        without = await prism.post(CHAT, json=chat([*pair, COLOUR], **whole))
        assert with_uuid.json()["choices"] == without.json()["choices"]


async def test_a_body_that_is_announced_too_large_is_not_waited_for(cluster: Cluster) -> None:
    """A request that announces a body of a terabyte is refused before any of it has arrived."""
    url = httpx.URL(cluster.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: prism\r\nContent-Length: {2**40}\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_body_without_end_is_cut_off(prism: httpx.AsyncClient) -> None:
    """A body of unknown length is read up to the limit and no further."""

    async def spaces() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b" " * 2**20

    response = await prism.post(CHAT, content=spaces())
    assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_client_that_leaves_in_mid_body_is_no_error(cluster: Cluster, prism: httpx.AsyncClient) -> None:
    """A client that disconnects inside its body is counted as one that left, and its slot is free again."""
    url = httpx.URL(cluster.url)
    before = await counts(prism)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f'POST {CHAT} HTTP/1.1\r\nHost: prism\r\nContent-Length: 1000\r\n\r\n{{"mess'.encode())
    await writer.drain()
    while (await counts(prism))["in flight"] == 0:
        pass
    writer.close()
    while (after := await counts(prism))["in flight"]:
        pass
    assert (after["499"] - before["499"], after["500"] - before["500"]) == (1, 0)


async def counts(client: httpx.AsyncClient) -> Counter[str]:
    """Returns the Router's number of requests in flight, and its numbers of ended requests by status."""
    found: Counter[str] = Counter()
    for line in (await client.get("/metrics")).text.splitlines():
        if line.startswith("prism_requests_in_flight{") and 'pool="router"' in line:
            found["in flight"] += int(float(line.split()[-1]))
        elif line.startswith("prism_requests_total{"):
            found[line.partition('status="')[2][:3]] += int(float(line.split()[-1]))
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat([text("<|image_pad|> and <|video_pad|>")])),
        (CHAT, chat([text("hello")], prism={}, stream=None, n=None)),
        (CHAT, chat([text("hello")], temperature=1, n=MAX_ANSWERS, max_tokens=1)),
        (CHAT, chat([{**text("hello"), "cache_control": {"type": "ephemeral"}}])),
        (CHAT, chat([circle("red")] * 16)),
        (CHAT, chat([circle("red"), text("<|vision_start|><|video_pad|><|im_end|>")])),
        (CHAT, chat([{"type": "image_url", "image_url": circle("red")["image_url"]["url"]}])),
        (CHAT, chat([{**circle("red"), "uuid": None}])),
        (COMPLETIONS, {"prompt": "hello <|image_pad|>", "max_tokens": 1}),
        (COMPLETIONS, {"prompt": ["a"] * 300, "n": 1, "max_tokens": 1}),
        ("/tokenize", {"prompt": "<|image_pad|>", "stream": True}),
        ("/detokenize", {"tokens": []}),
    ],
)
async def test_what_looks_odd_but_is_right_is_served(prism: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    """Requests exactly at a limit, and requests with harmless extra fields, are served."""
    response = await prism.post(path, json=body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
