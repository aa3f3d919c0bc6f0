"""The inline transport for embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.decode.transport.inline import InlineTransport, TableConnector
from cluster.decode.transport.shape import EmbeddingShape
from cluster.messages import Embedding

SHAPE = EmbeddingShape(hidden_size=6, merge_size=2, dtype="float32")
GOOD = Embedding("d" * 64, np.arange(4 * 6, dtype=np.float32).reshape(4, 6).view(np.uint8), "float32", (1, 4, 4))


async def test_references_live_as_long_as_they_are_offered() -> None:
    """A reference leads to its tensor while its request runs, and is unknown afterwards."""
    connector = TableConnector(media_io_kwargs={}, allowed_media_domains=["*"])

    async def pull(_: str) -> Embedding:
        return GOOD

    async with InlineTransport(SHAPE).reserved("request", {GOOD.digest: GOOD.grid}) as room:
        handoff = await room.filled(pull)
        reference = handoff.parts[GOOD.digest]["image_embeds"]["image_embeds"]
        assert np.array_equal(connector.fetch_image_embedding(reference).numpy(), GOOD.rows.view(np.float32))
    with pytest.raises(ValueError, match="not accepted"):
        connector.fetch_image_embedding(reference)


def test_a_stand_in_has_the_shape_of_the_embedding_and_no_memory() -> None:
    """To judge a request, vLLM reads a tensor of the right shape, however large it would be."""
    connector, grid = TableConnector(), (1, 2 * 10**5, 2 * 10**5)
    with InlineTransport(SHAPE).standing_in("request", {GOOD.digest: grid}) as handoff:
        reference = handoff.parts[GOOD.digest]["image_embeds"]["image_embeds"]
        assert connector.fetch_image_embedding(reference).shape == (10**10, 6)
    with pytest.raises(ValueError, match="not accepted"):
        connector.fetch_image_embedding(reference)


@pytest.mark.parametrize(
    "method", ["fetch_image", "fetch_image_async", "load_from_url", "fetch_video", "fetch_audio_async"]
)
def test_the_engine_fetches_nothing(method: str) -> None:
    """Every function by which vLLM would fetch a URL raises a refusal."""
    with pytest.raises(ValueError, match="fetches no media"):
        getattr(TableConnector(), method)("https://127.0.0.1/")
