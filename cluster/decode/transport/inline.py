"""The inline way in for embeddings: a table in this process, and the media connector through which vLLM reads it.

vLLM resolves every media reference of a request through the class named by ``VLLM_MEDIA_CONNECTOR``. Ours knows one
kind of reference, a key of the table, and refuses everything else, so that no URL can ever be fetched from within the
engine.
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
    """Embeddings travel within their request; the oracle for the other way, and what is left without shared memory."""

    def __init__(self, shape: EmbeddingShape) -> None:
        self._shape = shape

    @asynccontextmanager
    async def offered(self, request_id: str, embeddings: Mapping[Digest, Embedding]) -> AsyncIterator[Handoff]:
        """Puts the tensors into the table, for as long as the request takes; see ``Transport``."""
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
        """None: the engine keeps what it was given to itself."""
        del digest
        return None

    @property
    def num_waiting(self) -> int:
        """None: a request's tensors are its own."""
        return 0

    def is_lost(self, request_id: str) -> bool:
        """Never: the request itself carries what it needs."""
        del request_id
        return False

    def close(self) -> None:
        """There is nothing to give back."""


@MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)
class TableConnector:
    """vLLM's view of the table. It is made anew for each request and takes whatever vLLM passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def fetch_image_embedding(self, reference: str) -> Tensor:
        """The tensor behind a reference.

        Raises:
            ValueError: The reference is not one of this process's.
        """
        if reference not in _table:
            raise ValueError("Embeddings are not accepted from clients.")
        return _table[reference]

    async def fetch_image_embedding_async(self, reference: str) -> Tensor:
        await asyncio.sleep(0)
        return self.fetch_image_embedding(reference)

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"The engine fetches no media by itself ({name}); pictures come through the Router.")
