"""The inline transport: a table of tensors in this process, and the media connector by which vLLM reads it.

vLLM resolves every media reference of a request through the class that ``VLLM_MEDIA_CONNECTOR`` names. This one knows
keys of the table and refuses everything else, so the engine can never fetch a URL.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from cluster.concurrency import all_or_first_error
from cluster.decode.transport.handoff import MEDIA_CONNECTOR, Handoff, image_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from torch import Tensor

    from cluster.decode.transport.handoff import Grids, Pull
    from cluster.decode.transport.shape import EmbeddingShape
    from cluster.messages import Digest

_table: dict[str, Tensor] = {}


class InlineTransport:
    """Sends embeddings within their request. It is the oracle for the shared way, and the fallback without shared
    memory."""

    def __init__(self, shape: EmbeddingShape) -> None:
        self._shape = shape

    @asynccontextmanager
    async def reserved(self, request_id: str, grids: Grids) -> AsyncIterator[InlineRoom]:
        """Keeps what is put into the table while the request runs; see ``Transport``. The table has no bound."""
        room = InlineRoom(request_id, list(grids), self._shape)
        try:
            yield room
        finally:
            room.close()

    def lacks(self, digests: Iterable[Digest]) -> bool:
        """Returns True for any picture, because this transport keeps no embedding after a request."""
        return any(True for _ in digests)

    @contextmanager
    def standing_in(self, request_id: str, grids: Grids) -> Iterator[Handoff]:
        """Puts tensors of the right shapes into the table, which take no memory; see ``Transport``."""
        references = {digest: f"prism:{request_id}:{digest}" for digest in grids}
        zero = torch.zeros((1, self._shape.hidden_size), dtype=getattr(torch, self._shape.dtype))
        try:
            for digest, grid in grids.items():
                _table[references[digest]] = zero.expand(self._shape.num_tokens(grid), -1)
            yield Handoff({name: image_part(name, grid, image_embeds=references[name]) for name, grid in grids.items()})
        finally:
            for reference in references.values():
                _table.pop(reference, None)

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


class InlineRoom:
    """The entries of a request in the table.

    Args:
        request_id: Prism's name of the request.
        digests: The pictures of the request.
        shape: What the language model accepts as an embedding.
    """

    def __init__(self, request_id: str, digests: Sequence[Digest], shape: EmbeddingShape) -> None:
        self._references = {digest: f"prism:{request_id}:{digest}" for digest in digests}
        self._shape = shape

    @property
    def empty(self) -> list[Digest]:
        """All pictures."""
        return list(self._references)

    async def filled(self, pull: Pull) -> Handoff:
        """Pulls all embeddings and puts their tensors into the table; see ``Reservation``."""
        parts = await all_or_first_error(self._part(digest, pull) for digest in self._references)
        return Handoff(dict(zip(self._references, parts, strict=True)))

    async def _part(self, digest: Digest, pull: Pull) -> dict[str, Any]:
        embedding, reference = await pull(digest), self._references[digest]
        _table[reference] = await asyncio.get_running_loop().run_in_executor(None, self._shape.tensor, embedding)
        return image_part(digest, embedding.grid, image_embeds=reference)

    def close(self) -> None:
        """Removes the entries."""
        for reference in self._references.values():
            _table.pop(reference, None)


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
