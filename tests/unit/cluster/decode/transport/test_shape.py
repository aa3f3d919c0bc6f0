"""The check of embeddings before they reach the engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cluster.decode.transport.shape import EmbeddingShape
from cluster.errors import InternalError
from cluster.messages import Embedding

SHAPE = EmbeddingShape(hidden_size=6, merge_size=2, dtype="float32")
GOOD = Embedding("d" * 64, np.arange(4 * 6, dtype=np.float32).reshape(4, 6).view(np.uint8), "float32", (1, 4, 4))


def with_number(value: float | np.floating[Any]) -> np.ndarray:
    """Returns the rows of a valid embedding in which one number is replaced."""
    rows = GOOD.rows.view(np.float32).copy()
    rows[2, 3] = value
    return rows.view(np.uint8)


def test_a_good_embedding_becomes_the_tensor_it_was() -> None:
    """The raw bytes of an embedding become the same [num_tokens, hidden_size] numbers again."""
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
    """An embedding with wrong rows, width, dtype or grid, or with a number that is not finite, fails its request.
    The engine would end on it."""
    with pytest.raises(InternalError, match="cannot be used"):
        SHAPE.check(dataclasses.replace(GOOD, **change))


def test_every_number_that_is_finite_is_taken() -> None:
    """The extreme numbers of a dtype and negative zero are accepted."""
    for value in (np.finfo(np.float32).max, np.finfo(np.float32).min, np.finfo(np.float32).smallest_subnormal, -0.0):
        SHAPE.check(dataclasses.replace(GOOD, rows=with_number(value)))


def test_finite_in_bfloat16_is_what_torch_calls_so() -> None:
    """The check of finite numbers agrees with torch for each of the 65,536 bit patterns of bfloat16."""
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
