"""Streams that go on after each of their pieces, on a real engine."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from vllm.sampling_params import SamplingParams

from cluster.decode.answer import generate
from cluster.decode.steps import StepLog, follow
from cluster.errors import ContinuationNotExact
from cluster.messages import Begun, Call, Replay
from tests.helpers.engines import started
from tests.helpers.stories import story_of
from tests.serve.test_transport import embedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.decode.engine import Engine
    from cluster.messages import Endpoint, FirstPiece, Piece

# vLLM's engine runs in this process, and its chat layer reads fields that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"word": {"enum": ["left", "right"]}, "bits": {"type": "array", "items": {"type": "boolean"}}},
    "required": ["word", "bits"],
    "additionalProperties": False,
}
SCHEMA["properties"]["bits"] |= {"minItems": 3, "maxItems": 3}
DENSE = r'\{"word":"(left|right)","bits":\[(true|false)(,(true|false)){2}\]\}'
"""``SCHEMA`` without blanks. The demo's model fills any JSON with blanks up to its limit."""
TOOL = {"name": "look", "parameters": SCHEMA}
LIKELIEST = {"temperature": 1.0, "top_k": 1}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
CHATS: dict[str, dict[str, Any]] = {
    "greedy": USAGE,
    "to its end": {"ignore_eos": False},
    "stop strings": {"stop": ["!Q", "!!!!!!", " the"], "min_tokens": 4, **USAGE},
    "stop strings that are shown": {"stop": ["you", "!Q"], "include_stop_str_in_output": True, "min_tokens": 9},
    "stop tokens": {"stop_token_ids": list(range(30, 60)), "min_tokens": 4},
    "logprobs": {"logprobs": True, "top_logprobs": 3, "return_token_ids": True},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, **USAGE},
    "regular expression": {"structured_outputs": {"regex": DENSE}, **USAGE},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0},
    "repetition penalty": {"repetition_penalty": 1.4},
    "seed": {"temperature": 1.0, "seed": 7},
    "bad words": {"bad_words": ["Hello", "you", "e"]},
    "biases": {"logit_bias": {"40": 5.0}},
    "tools": {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
    "tools if the model wants": {"tools": [{"type": "function", "function": TOOL}]},
    "several answers": {"n": 2, "logprobs": True, **LIKELIEST, **USAGE},
    "several answers with a seed": {"n": 2, "temperature": 1.0, "seed": 3, "return_token_ids": True},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "one prompt": {"prompt": "Once upon a time", **USAGE},
    "prompts": {"prompt": ["One", "Two three", "A"], "n": 2, "logprobs": 2, **LIKELIEST, "stop": ["!!!"], **USAGE},
    "prompts with a seed": {"prompt": ["One", "Two three"], "temperature": 1.0, "seed": 5},
    "echo": {"prompt": ["One", "Two three"], "echo": True, "logprobs": 1},
    "bytes": {"prompt": "日", "logit_bias": {str(token): 30 for token in range(160, 256)}, **LIKELIEST, "logprobs": 1},
}
GRAMMARS = {"schema", "tools", "regular expression"}


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    """An engine for all tests of this module."""
    async with started() as engine:
        yield engine


async def pieces_of(
    engine: Engine, endpoint: Endpoint, body: dict[str, Any], replay: Replay | None = None, *, seed: int | None = None
) -> list[FirstPiece | Piece]:
    """Runs a stream, or what is left of it. With a ``seed`` the prompt has a picture."""
    picture = None if seed is None else embedding(engine, seed)
    grids = {picture.digest: picture.grid} if picture else {}

    async def pull(_: str) -> Any:
        return picture

    body = {"model": "prism-demo", "temperature": 0, "max_tokens": 20, "ignore_eos": True, "stream": True, **body}
    call = Call(endpoint, "stream", body, {}, replay)
    return [piece async for piece in generate(engine, call, grids, pull) if not isinstance(piece, Begun)]


def replay_of(head: list[FirstPiece | Piece]) -> Replay:
    """What a Router knows after these pieces."""
    num_chars = 0
    for piece in head:
        num_chars = 0 if piece.num_events else num_chars + len(piece.text)
    first: Any = head[0]
    num_events = sum(piece.num_events for piece in head)
    return Replay(first.created, num_events, num_chars, b"".join(piece.steps for piece in head))


def text_of(pieces: list[FirstPiece | Piece]) -> str:
    """The text of all pieces."""
    return "".join(piece.text for piece in pieces)


async def check_each_piece(
    engine: Engine, endpoint: Endpoint, body: dict[str, Any], *, every: int = 1, seed: int | None = None
) -> str:
    """Ends a stream after its pieces, one after the other, and has it go on. Returns the text of the whole stream."""
    whole = await pieces_of(engine, endpoint, body, seed=seed)
    text = text_of(whole)
    undisturbed = story_of(text)
    assert undisturbed.is_whole
    for num_sent in {*range(1, len(whole) + 1, every), len(whole)}:
        head = whole[:num_sent]
        rest = await pieces_of(engine, endpoint, body, replay_of(head), seed=seed)
        assert story_of(text_of(head) + text_of(rest)) == undisturbed, num_sent
    assert not engine.num_requests
    return text


@pytest.mark.parametrize("kind", CHATS)
async def test_a_chat_goes_on_after_any_piece(engine: Engine, kind: str) -> None:
    """Wherever a chat breaks off, the client is told what the undisturbed chat tells, once, and its JSON is valid."""
    words = "Count to thirty, then say naïve café 日本語 🎉."
    body = {"messages": [{"role": "user", "content": words}], **CHATS[kind]}
    options = {"max_tokens": 40, "ignore_eos": False} if kind in GRAMMARS else {}
    story = story_of(await check_each_piece(engine, "chat", {**body, **options}, every=7 if kind in GRAMMARS else 1))
    if kind == "regular expression":
        assert set(json.loads(story.told[0].text)) == {"word", "bits"}


@pytest.mark.parametrize("kind", COMPLETIONS)
async def test_completions_go_on_after_any_piece(engine: Engine, kind: str) -> None:
    """Wherever the answers to several prompts break off, all of them go on, and no event comes twice."""
    await check_each_piece(engine, "completions", COMPLETIONS[kind])


async def test_a_chat_about_a_picture_goes_on(engine: Engine) -> None:
    """A chat about a picture goes on after any piece, also with forced tokens."""
    from cluster.messages import picture_part

    digest = embedding(engine, 5).digest
    messages = [{"role": "user", "content": [picture_part(digest), {"type": "text", "text": "What is it?"}]}]
    for options in ({}, {"presence_penalty": 1.0}, {"n": 2, **LIKELIEST}):
        await check_each_piece(engine, "chat", {"messages": messages, **options}, every=3, seed=5)


async def test_a_stream_goes_on_twice(engine: Engine) -> None:
    """A stream that has gone on can go on again, and the part of an event that was sent is not sent again."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 1.0, "seed": 11, **USAGE}
    whole = await pieces_of(engine, "chat", body)
    head = whole[:4]
    more = (await pieces_of(engine, "chat", body, replay_of(head)))[:5]
    sent = replay_of(head + more)
    rest = await pieces_of(engine, "chat", body, sent)
    assert story_of(text_of(head + more + rest)) == story_of(text_of(whole))
    cut = Replay(sent.created, sent.num_events, 33, sent.steps)
    assert text_of(await pieces_of(engine, "chat", body, cut)).startswith(text_of(rest)[33:200])


async def test_what_cannot_be_exact_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without the logits processor refuses to go on with a seed, and goes on with a greedy stream."""
    monkeypatch.setattr(engine._llm.vllm_config.model_config, "logits_processors", None)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    sampled = {**body, "temperature": 1.0, "seed": 1}
    head = (await pieces_of(engine, "chat", sampled))[:3]
    with pytest.raises(ContinuationNotExact, match="can go on exactly with a grammar"):
        await pieces_of(engine, "chat", sampled, replay_of(head))
    head = (await pieces_of(engine, "chat", body))[: random.Random(1).randrange(1, 9)]
    assert await pieces_of(engine, "chat", body, replay_of(head))


async def test_a_stream_that_is_never_read_leaves_nothing(engine: Engine) -> None:
    """A continuation whose outputs nobody reads leaves no steps in the engine client."""
    head = await pieces_of(engine, "completions", {"prompt": "Once"})
    follow(StepLog(replay_of(head[:3])))
    try:
        outputs = engine._llm.generate({"prompt_token_ids": [1]}, SamplingParams(max_tokens=9), "unread")
    finally:
        follow(None)
    await outputs.aclose()
    assert not engine._llm._replays.steps
