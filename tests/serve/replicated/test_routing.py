"""Two Routers, three encoders and two decoders: what is kept where, who is asked for it, and what is answered."""

from __future__ import annotations

import asyncio
import random

import httpx

from tests.helpers.ask import Part, chat, image, random_png, square, text
from tests.helpers.samples import counted, lookups
from tests.serve.default.test_parity import compare, requests
from tests.serve.replicated.conftest import NUM_ENCODERS

NUM_CONCURRENT = 12
NUM_COMPARED = 40


async def asked(client: httpx.AsyncClient, parts: list[Part], **options: object) -> str:
    """Sends a request that must succeed and returns the text of its answer."""
    answer = await client.post("/v1/chat/completions", json=chat(parts, **options))
    assert answer.status_code == httpx.codes.OK, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


async def test_conversations_spread_and_go_on_where_they_began(client: httpx.AsyncClient) -> None:
    """Of twenty conversations on an idle pool each decoder gets some. Later turns find the earlier ones in their
    decoder's KV cache, whichever Router takes them."""
    queries = ("vllm:prefix_cache_queries_total", "decoder")
    hits = ("vllm:prefix_cache_hits_total", "decoder")
    before = await counted(client, *queries)
    first = [f"{number}: " + f"{number} is a number that I like. " * 60 for number in range(20)]
    answers = [await asked(client, [text(words)]) for words in first]
    spread = await counted(client, *queries) - before
    assert len(spread) == 2
    assert max(spread.values()) <= 6 * min(spread.values())  # by chance once in 2,500 runs
    at_prefix = []
    for words, answer in zip(first, answers, strict=True):
        body = chat([text(words)])
        for words_after, answer_before in (("Go on.", answer), ("And then?", "Yes.")):
            body["messages"].append({"role": "assistant", "content": answer_before})
            body["messages"].append({"role": "user", "content": words_after})
            found, looked = await counted(client, *hits), await counted(client, *queries)
            assert (await client.post("/v1/chat/completions", json=body)).status_code == httpx.codes.OK
            found, looked = await counted(client, *hits) - found, await counted(client, *queries) - looked
            at_prefix.append(found.total() > 0.7 * looked.total())
    assert sum(at_prefix) >= 0.9 * len(at_prefix)


async def test_both_routers_give_bare_vllms_tokens(client: httpx.AsyncClient, bare: httpx.AsyncClient) -> None:
    """A sample of the parity requests, sent through both Routers, gives the tokens of bare vLLM."""
    answered = {"name": "prism_requests_total", "pool": "router", "status": "200"}
    before = await counted(client, **answered)
    cases = list(requests())
    assert await compare(cases[:: len(cases) // NUM_COMPARED], client, bare) == []
    by_router = await counted(client, **answered) - before
    assert len(by_router) == 2, by_router


async def test_many_pictures_in_many_requests_all_end(client: httpx.AsyncClient) -> None:
    """Many concurrent requests with three to eight pictures each are all answered."""
    draw = random.Random(0)
    pictures = [image(random_png(60, 50, seed)) for seed in range(60)]
    bodies = [[*draw.sample(pictures, draw.randint(3, 8)), text("Hello")] for _ in range(3 * NUM_CONCURRENT)]
    seats = asyncio.Semaphore(NUM_CONCURRENT)

    async def ask(parts: list[Part]) -> None:
        async with seats:
            await asked(client, parts, max_tokens=1)

    await asyncio.gather(*(ask(parts) for parts in bodies))


async def test_a_picture_is_encoded_once_whoever_asks(client: httpx.AsyncClient) -> None:
    """32 concurrent requests for one new picture, more than an encoder takes, and 8 later ones cause one run. All
    answers are right."""
    before = await lookups(client, "miss")
    ask = [square("blue", 81), text("What colour is the shape?")]
    answers = await asyncio.gather(*(asked(client, ask) for _ in range(32)))
    answers += [await asked(client, ask) for _ in range(8)]
    assert set(answers) == {"blue"}
    assert sum((await lookups(client, "miss") - before).values()) == 1


async def test_pictures_are_encoded_once_under_uneven_load(client: httpx.AsyncClient) -> None:
    """Each new picture that six concurrent requests ask for is encoded once, while large pictures keep single
    encoders busy.

    The decoders then know of different work and pass over different encoders.
    """
    draw = random.Random(1)
    for number in range(8):
        sides = [draw.choice([60, 120, 400]) for _ in range(4)]
        pictures = [image(random_png(side, side, 100 * number + seed)) for seed, side in enumerate(sides)]
        asks = [[picture, text(f"{draw.random()}")] for picture in pictures for _ in range(6)]
        draw.shuffle(asks)
        before = await lookups(client, "miss")
        await asyncio.gather(*(asked(client, ask, max_tokens=1) for ask in asks))
        assert sum((await lookups(client, "miss") - before).values()) == len(pictures)


async def test_nothing_is_shared_between_salts(client: httpx.AsyncClient) -> None:
    """A picture that was sent with one ``cache_salt`` is a cache hit for that salt only."""
    ask = [square("blue", 83), text("What colour is the shape?")]
    for salt, is_new in [("one", 1), ("two", 1), ("one", 0), (None, 1), ("two", 0), (None, 0)]:
        before = await lookups(client, "miss")
        assert await asked(client, ask, **({"cache_salt": salt} if salt else {})) == "blue"
        assert sum((await lookups(client, "miss") - before).values()) == is_new


async def test_new_pictures_spread_over_the_encoders(client: httpx.AsyncClient) -> None:
    """Of 40 pictures that come one after the other each encoder gets a fair share. Asked for again, every picture is
    a cache hit."""
    before = await lookups(client, "miss")
    pictures = [image(random_png(40, 40, 1000 + seed)) for seed in range(40)]
    for picture in pictures:
        await asked(client, [picture, text("Hello")], max_tokens=1)
    new = await lookups(client, "miss") - before
    assert sum(new.values()) == 40
    assert len(new) == NUM_ENCODERS, "an encoder got no picture"
    assert min(new.values()) >= 5
    for picture in pictures:
        await asked(client, [picture, text("Hello")], max_tokens=1)
    assert await lookups(client, "miss") - before == new
