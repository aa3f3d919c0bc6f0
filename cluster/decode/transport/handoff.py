"""The interface of both transports for embeddings: within the request, or by shared memory.

*inline*: the chat layer puts the tensor into the request, and vLLM carries it to its workers. *shared*: the request
    names a segment of shared memory, and every worker maps it (``shared.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from cluster.messages import Digest, Embedding


MEDIA_CONNECTOR: Final = "prism"
"""The name under which ``inline.py`` registers the media connector that vLLM uses."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """The way in which a request names its embeddings to vLLM: a content part for each, and fields next to
    ``messages``."""

    parts: Mapping[Digest, dict[str, Any]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Transport(Protocol):
    """One way in which embeddings reach the engine."""

    def offered(self, request_id: str, embeddings: Mapping[Digest, Embedding]) -> AbstractAsyncContextManager[Handoff]:
        """Keeps the embeddings of a request where vLLM finds them, until the request has ended.

        Raises:
            InternalError: An embedding is not what the engine expects.
            TooManyPictures: The embeddings can never be held at the same time.
            Overloaded: The machine has no memory left for them.
        """

    def find(self, digest: Digest) -> Embedding | None:
        """The embedding of a picture, if it is still held from an earlier request."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room for their embeddings. The engine does not know of them yet."""

    def is_lost(self, request_id: str) -> bool:
        """Returns True if the engine has ended a request because one of its embeddings was gone."""

    def close(self) -> None:
        """Releases everything. Call it after the engine has ended."""


def image_part(embedding: Embedding, **tensor: str) -> dict[str, Any]:
    """vLLM's content part for an embedding. ``uuid`` is the embedding's name in vLLM's caches."""
    payload = {"image_grid_thw": list(embedding.grid), **tensor}
    return {"type": "image_embeds", "uuid": embedding.digest, "image_embeds": payload}
