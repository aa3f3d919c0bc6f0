"""Decode stage: what may reach the engine."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from cluster.decode.bounds import MAX_ANSWERS, check_bounds
from cluster.decode.transport.inline import InlineTransport, TableConnector
from cluster.decode.transport.shape import EmbeddingShape
from cluster.decode.transport.shared import SharedTransport
from cluster.errors import InternalError, InvalidField, TooManyPictures
from cluster.messages import Embedding

SHAPE = EmbeddingShape(hidden_size=6, merge_size=2, dtype="float32")
GOOD = Embedding("d" * 64, np.arange(4 * 6, dtype=np.float32).reshape(4, 6).view(np.uint8), "float32", (1, 4, 4))


def with_number(value: float | np.floating[Any]) -> np.ndarray:
    """The good rows with one number replaced."""
    rows = GOOD.rows.view(np.float32).copy()
    rows[2, 3] = value
    return rows.view(np.uint8)


def test_a_good_embedding_becomes_the_tensor_it_was() -> None:
    """The raw bytes come back as [num_tokens, hidden_size] numbers."""
    tensor = SHAPE.tensor(GOOD)
    assert tensor.shape == (4, 6)
    assert np.array_equal(tensor.numpy(), GOOD.rows.view(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": GOOD.rows[:3]},
        {"rows": np.concatenate([GOOD.rows, GOOD.rows[:1]])},
        {"rows": GOOD.rows[:, :20]},
        {"rows": GOOD.rows.view(np.float32)},
        {"rows": with_number(np.nan)},
        {"rows": with_number(np.inf)},
        {"dtype": "bfloat16"},
        {"grid": (2, 4, 4)},
        {"grid": (1, 4, 6)},
        {"grid": (1, 3, 4)},
        {"grid": (1, 0, 4)},
        {"grid": (1, -4, -4)},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_a_malformed_embedding_never_reaches_the_engine(change: dict[str, Any]) -> None:
    """Rows, width, dtype, grid and finiteness are checked; what would end the engine fails one request."""
    with pytest.raises(InternalError, match="cannot be used"):
        SHAPE.check(dataclasses.replace(GOOD, **change))


def test_every_number_that_is_finite_is_taken() -> None:
    """The extremes of a dtype are numbers too, and so is a negative zero."""
    for value in (np.finfo(np.float32).max, np.finfo(np.float32).min, np.finfo(np.float32).smallest_subnormal, -0.0):
        SHAPE.check(dataclasses.replace(GOOD, rows=with_number(value)))


def test_finite_in_bfloat16_is_what_torch_calls_so() -> None:
    """For each of the 65536 patterns of bits the check agrees with torch."""
    shape = EmbeddingShape(hidden_size=1, merge_size=2, dtype="bfloat16")
    for pattern in range(2**16):
        rows = np.array([[pattern]], dtype=np.uint16).view(np.uint8)
        embedding = Embedding("d" * 64, rows, "bfloat16", (1, 2, 2))
        try:
            shape.check(embedding)
        except InternalError:
            taken = False
        else:
            taken = True
        assert taken == bool(torch.isfinite(torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)).all()), pattern


async def test_references_live_as_long_as_they_are_offered() -> None:
    """A reference leads to its tensor while its request takes, and nowhere after."""
    connector = TableConnector(media_io_kwargs={}, allowed_media_domains=["*"])
    async with InlineTransport(SHAPE).offered("request", {GOOD.digest: GOOD}) as handoff:
        reference = handoff.parts[GOOD.digest]["image_embeds"]["image_embeds"]
        assert np.array_equal(connector.fetch_image_embedding(reference).numpy(), GOOD.rows.view(np.float32))
    with pytest.raises(ValueError, match="not accepted"):
        connector.fetch_image_embedding(reference)


async def test_no_more_is_held_than_there_are_files_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process may open twelve files, six segments are held at a time; the seventh picture takes the first's
    place."""
    monkeypatch.setattr("cluster.decode.transport.shared.allow_many_files", lambda: 12)
    transport = SharedTransport(SHAPE, 2**30)
    seventh = {str(number): dataclasses.replace(GOOD, digest=str(number)) for number in range(7)}
    for digest, embedding in seventh.items():
        async with transport.offered("request", {digest: embedding}):
            pass
    assert [transport.find(digest) is not None for digest in seventh] == [False] + [True] * 6
    with pytest.raises(TooManyPictures):
        await transport.offered("request", seventh).__aenter__()
    transport.close()


@pytest.mark.parametrize(
    "method", ["fetch_image", "fetch_image_async", "load_from_url", "fetch_video", "fetch_audio_async"]
)
def test_the_engine_fetches_nothing(method: str) -> None:
    """Every road by which vLLM would fetch a URL ends in a refusal."""
    with pytest.raises(ValueError, match="fetches no media"):
        getattr(TableConnector(), method)("https://127.0.0.1/")


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("top_k", {"top_k": 2**63}),
        ("top_k", {"top_k": str(2**70)}),
        ("min_tokens", {"min_tokens": -(2**63) - 1}),
        ("temperature", {"temperature": math.inf}),
        ("stream_interval", {"stream_interval": 10**30}),
        ("temperature", {"temperature": "nan"}),
        ("logit_bias.5", {"logit_bias": {"5": "inf"}}),
        ("repetition_detection.min_count", {"repetition_detection": {"max_pattern_size": 4, "min_count": 10**30}}),
        ("n", {"n": MAX_ANSWERS + 1}),
        ("n", {"n": str(MAX_ANSWERS + 1)}),
        ("n", {"n": float(MAX_ANSWERS + 1)}),
    ],
    ids=str,
)
def test_what_the_engine_could_not_bear_is_refused(param: str, fields: dict[str, Any]) -> None:
    """A number is judged as vLLM reads it, also where it came as text or with a point."""
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "a"}], **fields})
    with pytest.raises(InvalidField) as refused:
        check_bounds(request)
    assert refused.value.param == param


def test_answers_are_bounded_over_all_prompts() -> None:
    """``n`` answers to each prompt are as many as they are together; a batch of prompts is left to vLLM."""
    for fits in (
        {"n": MAX_ANSWERS},
        {"prompt": ["a"] * 1000},
        {"prompt": ["a"] * 1000, "n": 1},
        {"prompt": [5] * 1000, "n": 2},
    ):
        check_bounds(CompletionRequest.model_validate({"prompt": "a", **fits}))
    half = MAX_ANSWERS // 2
    for prompt in (["a"] * half, [[5]] * half):
        with pytest.raises(InvalidField) as refused:
            check_bounds(CompletionRequest.model_validate({"prompt": prompt, "n": 3}))
        assert (refused.value.param, refused.value.figures) == ("n", {"asked": 3 * half, "limit": MAX_ANSWERS})
