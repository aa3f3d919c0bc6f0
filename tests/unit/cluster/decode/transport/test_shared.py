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
    seventh = [str(number) for number in range(7)]

    async def pull(digest: str) -> Embedding:
        return dataclasses.replace(GOOD, digest=digest)

    for digest in seventh:
        async with transport.reserved("request", {digest: GOOD.grid}) as room:
            assert room.empty == [digest]
            handoff = await room.filled(pull)
            assert handoff.parts[digest]["uuid"] == digest
            assert list(handoff.fields["ec_transfer_params"]) == [digest]
    assert [transport.lacks([digest]) for digest in seventh] == [True] + [False] * 6
    with pytest.raises(TooManyPictures):
        await transport.reserved("request", dict.fromkeys(seventh, GOOD.grid)).__aenter__()
    transport.close()


async def test_a_turned_picture_keeps_its_true_grid() -> None:
    """Room is reserved by the size in the header. The engine gets the grid of the embedding, which EXIF may have
    turned."""
    transport = SharedTransport(SHAPE, 2**30)
    turned = dataclasses.replace(GOOD, grid=(1, 2, 8))

    async def pull(_: str) -> Embedding:
        return turned

    grids = {GOOD.digest: (1, 8, 2)}
    with transport.standing_in("request", grids) as judged:
        assert judged.parts[GOOD.digest]["image_embeds"] == {"image_grid_thw": [1, 8, 2]}
        assert judged.fields == {}
    for _ in range(2):
        async with transport.reserved("request", grids) as room:
            handoff = await room.filled(pull)
            assert handoff.parts[GOOD.digest]["image_embeds"] == {"image_grid_thw": [1, 2, 8]}
    transport.close()
