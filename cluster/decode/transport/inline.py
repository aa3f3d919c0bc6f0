"""The inline transport: a table of tensors in this process, and the media connector by which vLLM reads it.

vLLM resolves every media reference of a request through the class that ``VLLM_MEDIA_CONNECTOR`` names. This one knows
keys of the table and refuses everything else, so the engine can never fetch a URL.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from cluster.decode.transport.handoff import MEDIA_CONNECTOR, Handoff, image_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from torch import Tensor

    from cluster.decode.transport.shape import EmbeddingShape
    from cluster.messages import Digest, Embedding

_table: dict[str, Tensor] = {}


class InlineTransport:
    """Sends embeddings within their request. It is the oracle for the shared way, and the fallback without shared
    memory."""

    def __init__(self, shape: EmbeddingShape) -> None:
        self._shape = shape

    @asynccontextmanager
    async def offered(self, request_id: str, embeddings: Mapping[Digest, Embedding]) -> AsyncIterator[Handoff]:
        """Keeps the tensors in the table while the request runs; see ``Transport``."""
        loop = asyncio.get_running_loop()
        references = {digest: f"prism:{request_id}:{digest}" for digest in embeddings}
        try:
            for digest, reference in references.items():
                _table[reference] = await loop.run_in_executor(None, self._shape.tensor, embeddings[digest])
            yield Handoff(
                {digest: image_part(embeddings[digest], image_embeds=ref) for digest, ref in references.items()}
            )
        finally:
            for reference in references.values():
                _table.pop(reference, None)

    def find(self, digest: Digest) -> Embedding | None:
        """Finds no embedding, because this transport keeps none after a request."""
        del digest
        return None

    @property
    def num_waiting(self) -> int:
        """0, because no request waits: each carries its own tensors."""
        return 0

    def is_lost(self, request_id: str) -> bool:
        """False, because a request carries its tensors itself."""
        del request_id
        return False

    def close(self) -> None:
        """Does nothing: the table is empty when no request runs."""


@MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)
class TableConnector:
    """vLLM's view of the table. vLLM makes one for each request, and passes arguments that are not needed here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def fetch_image_embedding(self, reference: str) -> Tensor:
        """The tensor behind a reference: [num_tokens, hidden_size].

        Raises:
            ValueError: The reference is not a key of the table.
        """
        if reference not in _table:
            raise ValueError("Embeddings are not accepted from clients.")
        return _table[reference]

    async def fetch_image_embedding_async(self, reference: str) -> Tensor:
        await asyncio.sleep(0)
        return self.fetch_image_embedding(reference)

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"The engine fetches no media by itself ({name}); pictures come through the Router.")
