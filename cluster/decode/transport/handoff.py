"""The two ways in for embeddings, behind one interface: through the request, or by shared memory.

*inline*: the chat layer puts the tensor into the request, and vLLM carries it to its workers. *shared*: the request
names a segment of shared memory, and every worker maps it; see ``shared.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from cluster.messages import Digest, Embedding


MEDIA_CONNECTOR: Final = "prism"
"""The name under which ``inline.py`` registers the media connector that vLLM is to use."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """How a request names its embeddings to vLLM: a content part for each, and fields beside its messages."""

    parts: Mapping[Digest, dict[str, Any]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Transport(Protocol):
    """A way in."""

    def offered(self, request_id: str, embeddings: Mapping[Digest, Embedding]) -> AbstractAsyncContextManager[Handoff]:
        """Keeps embeddings where vLLM finds them, until the request has ended.

        Raises:
            InternalError: One is not what the engine expects.
            TooManyPictures: They can never be held together.
            Overloaded: This machine has no memory left for them.
        """

    def find(self, digest: Digest) -> Embedding | None:
        """An embedding that is still held from before."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room for their embeddings; the engine has not heard of them yet."""

    def is_lost(self, request_id: str) -> bool:
        """Whether the engine has ended a request because an embedding of its could not be had any more."""

    def close(self) -> None:
        """Gives back everything; the engine has ended."""


def image_part(embedding: Embedding, **tensor: str) -> dict[str, Any]:
    """vLLM's content part for an embedding; ``uuid`` is its name in vLLM's caches."""
    payload = {"image_grid_thw": list(embedding.grid), **tensor}
    return {"type": "image_embeds", "uuid": embedding.digest, "image_embeds": payload}
