"""Decode stage: what may reach the engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from cluster.decode.embeddings import EmbeddingShape, TableConnector, offered
from cluster.errors import InternalError
from cluster.messages import Embedding

SHAPE = EmbeddingShape(hidden_size=6, merge_size=2, dtype="float32")
GOOD = Embedding("d" * 64, np.arange(4 * 6, dtype=np.float32).reshape(4, 6).view(np.uint8), "float32", (1, 4, 4))


def with_number(value: float) -> np.ndarray:
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
        SHAPE.tensor(dataclasses.replace(GOOD, **change))


def test_references_live_as_long_as_they_are_offered() -> None:
    """A reference leads to its tensor while a request is rendered, and nowhere after."""
    tensor = SHAPE.tensor(GOOD)
    connector = TableConnector(media_io_kwargs={}, allowed_media_domains=["*"])
    with offered("request", {GOOD.digest: tensor}) as references:
        assert connector.fetch_image_embedding(references[GOOD.digest]) is tensor
    with pytest.raises(ValueError, match="not accepted"):
        connector.fetch_image_embedding(references[GOOD.digest])


@pytest.mark.parametrize("method", ["fetch_image", "fetch_image_async", "load_from_url", "fetch_video", "fetch_audio_async"])
def test_the_engine_fetches_nothing(method: str) -> None:
    """Every road by which vLLM would fetch a URL ends in a refusal."""
    with pytest.raises(ValueError, match="fetches no media"):
        getattr(TableConnector(), method)("https://127.0.0.1/")
