"""The split changes no answer: the cluster's tokens equal those of bare vLLM given the same raw pictures."""

from __future__ import annotations

import asyncio
import io
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.helpers.ask import chat, image, random_png, text
from tests.helpers.pictures import SAMPLES, encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.helpers.ask import Part

CONCURRENCY = 6
NUM_TOKENS = 12
LOGPROB_TOLERANCE = 1e-3
"""Both compute in float32, vLLM's tower and the library's in another order."""
SIZES = [
    (28, 28),
    (29, 31),
    (56, 84),
    (112, 112),
    (224, 168),
    (168, 224),
    (300, 300),
    (640, 480),
    (1024, 1024),
    (560, 28),
    (28, 560),
    (1200, 60),
]
WORDS = [
    "What colour is the shape?",
    "How many shapes are there?",
    "Which digit is it?",
    "hello",
    "What shape is it, please?",
]


def requests() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Returns over 200 named requests, each in the form for Prism and in the form for bare vLLM."""
    draw = random.Random(0)
    for number in range(30):
        yield same(f"text {number}", chat([text(f"{draw.choice(WORDS)} {number}")]))
    for sample in SAMPLES.values():
        question = text(draw.choice(WORDS))
        # Where vLLM reads the same pixels it gets the same file; of formats that it misreads, the pixels that were
        # meant.
        raw = sample.data if sample.tolerance else encoded(sample.rgb, "PNG")
        yield f"format {sample.name}", chat([image(sample.data), question]), chat([image(raw), question])
    for width, height in SIZES:
        for seed in range(3):
            part = image(random_png(width, height, seed=seed))
            words = text(draw.choice(WORDS))
            yield same(f"size {width}x{height} {seed}", chat([part, words] if seed else [words, part]))
    for count in (2, 4, 8):
        for number in range(18):
            yield same(f"{count} pictures {number}", chat(interleaved(draw, count)))
    for number in range(45):
        yield same(f"turns {number}", turns(draw))


def same(name: str, body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns a request that both servers get in the same form."""
    return name, body, body


def some_picture(draw: random.Random) -> Part:
    """Returns a small picture of a random size."""
    return image(random_png(draw.randint(28, 320), draw.randint(28, 320), seed=draw.randint(0, 40)))


def interleaved(draw: random.Random, count: int) -> list[Part]:
    """Returns a turn of pictures and words in random order."""
    parts = [some_picture(draw) for _ in range(count)]
    for _ in range(draw.randint(1, 4)):
        parts.insert(draw.randint(0, len(parts)), text(draw.choice(WORDS)))
    return parts


def turns(draw: random.Random) -> dict[str, Any]:
    """Returns a conversation with pictures in the system message, in the first turn, or in a later one."""
    system, first, later = (draw.random() < chance for chance in (0.5, 0.6, 0.6))
    messages = [
        {"role": "system", "content": [text("Look closely."), some_picture(draw)] if system else "You are helpful."},
        {"role": "user", "content": interleaved(draw, 1) if first else "hello"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": interleaved(draw, 2) if later else [text(draw.choice(WORDS))]},
    ]
    return {**chat([]), "messages": messages}


async def test_answers_equal_bare_vllm_token_for_token(prism: httpx.AsyncClient, bare: httpx.AsyncClient) -> None:
    """Over 200 mixed requests give the same prompt tokens and the same greedy tokens on both servers, with the same
    log-probabilities."""
    cases = list(requests())
    assert len(cases) >= 200
    differing = await compare(cases, prism, bare)
    assert differing == []


async def test_the_comparison_notices_a_picture_that_changed(prism: httpx.AsyncClient, bare: httpx.AsyncClient) -> None:
    """A picture whose levels differ by a few gives other log-probabilities, so the comparison would find a slightly
    wrong embedding."""
    original, changed = random_png(224, 168, seed=1), io.BytesIO()
    Image.open(io.BytesIO(original)).point(lambda level: min(255, level + 3)).save(changed, "PNG")
    question = text("What colour is the shape?")
    case = (
        "a changed picture",
        chat([image(random_png(224, 168, seed=1)), question]),
        chat([image(changed.getvalue()), question]),
    )
    assert len(await compare([case], prism, bare)) == 1


async def compare(
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]], prism: httpx.AsyncClient, bare: httpx.AsyncClient
) -> list[str]:
    """Returns the names of the requests whose tokens differ between the servers, with both answers."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def differs(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
        async with gate:
            one, other = await asyncio.gather(tokens(prism, ours), tokens(bare, theirs))
        return None if one.equals(other) else f"{name}: {one} is not {other}"

    return [fault for fault in await asyncio.gather(*(differs(*case) for case in cases)) if fault]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one prompt and of its greedy answer, with their log-probabilities, as one server gives them."""

    prompt: list[int]
    answer: list[int]
    logprobs: list[float]

    def equals(self, other: Tokens) -> bool:
        """True if the tokens are equal and the log-probabilities differ by rounding only."""
        if (self.prompt, self.answer) != (other.prompt, other.answer):
            return False
        return all(abs(one - two) <= LOGPROB_TOLERANCE for one, two in zip(self.logprobs, other.logprobs, strict=True))


async def tokens(client: httpx.AsyncClient, body: dict[str, Any]) -> Tokens:
    """Sends a request and returns its tokens. It asks for more tokens than the answer has: the tokens after the
    answer's end depend on the whole prompt as well."""
    body = {**body, "return_token_ids": True, "ignore_eos": True, "max_tokens": NUM_TOKENS, "logprobs": True}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    choice = answer["choices"][0]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    assert len(choice["token_ids"]) == len(logprobs) == NUM_TOKENS
    return Tokens(answer["prompt_token_ids"], choice["token_ids"], logprobs)
