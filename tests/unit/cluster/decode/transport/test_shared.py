"""The shared transport for embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cluster.decode.transport.shape import EmbeddingShape
from cluster.decode.transport.shared import SharedTransport
from cluster.errors import TooManyPictures
from cluster.messages import Embedding

SHAPE = EmbeddingShape(hidden_size=6, merge_size=2, dtype="float32")
GOOD = Embedding("d" * 64, np.arange(4 * 6, dtype=np.float32).reshape(4, 6).view(np.uint8), "float32", (1, 4, 4))


async def test_no_more_is_held_than_there_are_files_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open twelve files holds six segments. The seventh picture replaces the first."""
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
