"""The inline way in for embeddings: a table in this process, and the media connector through which vLLM reads it.

vLLM resolves every media reference of a request through the class named by ``VLLM_MEDIA_CONNECTOR``. Ours knows one kind of
reference, a key of the table, and refuses everything else, so that no URL can ever be fetched from within the engine.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from cluster.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from cluster.messages import Digest, Embedding

CONNECTOR = "prism"

_table: dict[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """What the language model accepts: rows of ``hidden_size`` numbers, one per ``merge_size``² patches."""

    hidden_size: int
    merge_size: int
    dtype: str

    def tensor(self, embedding: Embedding) -> Tensor:
        """Checks an embedding and gives it as a [num_tokens, hidden_size] tensor.

        A malformed tensor would not fail a request but end the engine, and with it every request in flight.

        Raises:
            InternalError: Its grid, dtype, number or width of rows are not what the engine expects, or a number is not finite.
        """
        time, height, width = embedding.grid
        if time != 1 or height < 1 or width < 1 or height % self.merge_size or width % self.merge_size:
            self._refuse(embedding, f"grid {embedding.grid} is not one frame of whole merge blocks")
        if embedding.dtype != self.dtype:
            self._refuse(embedding, f"dtype is {embedding.dtype}, the engine runs {self.dtype}")
        dtype: torch.dtype = getattr(torch, self.dtype)
        expected = (height * width // self.merge_size**2, self.hidden_size * dtype.itemsize)
        if embedding.rows.shape != expected or embedding.rows.dtype != "uint8":
            self._refuse(embedding, f"raw shape is {embedding.rows.shape}, grid {embedding.grid} implies {expected}")
        tensor = torch.from_numpy(embedding.rows.copy()).view(dtype)
        if not torch.isfinite(tensor).all():
            self._refuse(embedding, "it holds numbers that are not finite")
        return tensor

    def _refuse(self, embedding: Embedding, fault: str) -> NoReturn:
        raise InternalError(f"The embedding of picture {embedding.digest[:12]} cannot be used: {fault}.")


@contextmanager
def offered(request_id: str, tensors: Mapping[Digest, Tensor]) -> Iterator[dict[Digest, str]]:
    """Puts tensors into the table while vLLM renders a request; gives the reference that stands for each."""
    references = {digest: f"prism:{request_id}:{digest}" for digest in tensors}
    _table.update((references[digest], tensor) for digest, tensor in tensors.items())
    try:
        yield references
    finally:
        for reference in references.values():
            del _table[reference]


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
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
