"""The interface of both transports for embeddings: within the request, or by shared memory.

*inline*: the chat layer puts the tensor into the request, and vLLM carries it to its workers. *shared*: the request
    names a segment of shared memory, and every worker maps it (``shared.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from cluster.messages import Digest, Embedding, Grid

    Grids = Mapping[Digest, Grid]
    """The grid of each picture of a request, computed from the size in its header. The orientation that EXIF gives to
    the picture may turn the true grid, which has the same number of tokens."""
    Pull = Callable[[Digest], Awaitable[Embedding]]
    """Gets the embedding of a picture from the encoders."""


MEDIA_CONNECTOR: Final = "prism"
"""The name under which ``inline.py`` registers the media connector that vLLM uses."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """The way in which a request names its embeddings to vLLM: a content part for each, and fields next to
    ``messages``."""

    parts: Mapping[Digest, dict[str, Any]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Reservation(Protocol):
    """The room that a request has in a transport."""

    @property
    def empty(self) -> list[Digest]:
        """The pictures whose embeddings must be pulled."""

    async def filled(self, pull: Pull) -> Handoff:
        """Pulls what is missing, and puts it where vLLM finds it.

        Raises:
            InternalError: An embedding is not what the engine expects.
            Overloaded: The machine has no memory left for an embedding.
            PrismError: The error that ``pull`` raised.
        """


class Transport(Protocol):
    """One way in which embeddings reach the engine."""

    def reserved(self, request_id: str, grids: Grids) -> AbstractAsyncContextManager[Reservation]:
        """Reserves room for the embeddings of a request, until the request has ended.

        Raises:
            TooManyPictures: The embeddings can never be held at the same time.
        """

    def lacks(self, digests: Iterable[Digest]) -> bool:
        """Returns True if a request with these pictures would have to pull an embedding now."""

    def standing_in(self, request_id: str, grids: Grids) -> AbstractContextManager[Handoff]:
        """Gives a handoff without embeddings, by which vLLM can count a request's tokens and check its fields. Such a
        request must not reach the engine."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room for their embeddings. The engine does not know of them yet."""

    def is_lost(self, request_id: str) -> bool:
        """Returns True if the engine has ended a request because one of its embeddings was gone."""

    def close(self) -> None:
        """Releases everything. Call it after the engine has ended."""


def image_part(digest: Digest, grid: Grid, **tensor: str) -> dict[str, Any]:
    """vLLM's content part for an embedding. ``uuid`` is the embedding's name in vLLM's caches."""
    payload = {"image_grid_thw": list(grid), **tensor}
    return {"type": "image_embeds", "uuid": digest, "image_embeds": payload}
