"""One run per picture in a whole pool of encoders: who is not a picture's home asks there before it makes one.

A picture's home is the replica that rendezvous hashing gives it, and most pictures are sent there. A caller passes the
home over when it takes it for busy, and may be alone with that view. So the replica that is given the picture instead,
and is told of the home, claims it there; from then on the home knows who makes it:

    the home has the embedding          it lends it, and the other keeps it too: a picture in demand spreads
    the home or another makes it        ``Elsewhere``: the caller asks there, and joins the run
    nobody does                         the claim is granted

The home, given the picture itself, asks whoever claimed it in the same way. No question waits for a run, and a caller
is sent elsewhere once at the most: there can be no circle.

There are two runs, and never none, where a question fails or takes too long, where callers that see different pools
name different homes, and perhaps where an embedding that was claimed has been evicted meanwhile.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Final

from cluster.messages import Elsewhere, Embedding
from cluster.metrics import CACHE_LOOKUPS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from cluster.embeddings.cache import EmbeddingCache
    from cluster.messages import Digest, Picture, Replica

MAX_CLAIMS: Final = 65_536
"""Claims that a home remembers, in about 20 MB."""


class SingleFlight:
    """What one replica has, makes, and knows of others' making.

    Args:
        name: The replica's own.
        cache: What it has and makes.
        ask: Calls ``claim`` of the replica of a name, about a picture.
        is_there: Whether the pool has a replica of a name.
    """

    def __init__(
        self,
        name: Replica,
        cache: EmbeddingCache,
        *,
        ask: Callable[[Replica, Picture], Awaitable[Embedding | Elsewhere | None]],
        is_there: Callable[[Replica], bool],
    ) -> None:
        self._name: Final = name
        self._cache: Final = cache
        self._ask: Final = ask
        self._is_there: Final = is_there
        self._asking: Final[Counter[Digest]] = Counter()
        self._claims: Final[OrderedDict[Digest, Replica]] = OrderedDict()

    async def embedding_for(
        self,
        picture: Picture,
        make: Callable[[Picture], Coroutine[Any, Any, Embedding]],
        *,
        home: Replica | None,
        is_sent_on: bool,
    ) -> Embedding | Elsewhere:
        """A picture's embedding, kept, joined, lent or made; or who makes it.

        Args:
            picture: It.
            make: Makes the embedding here.
            home: The picture's, if that is another.
            is_sent_on: Whether the caller was told to ask here: then it gets the embedding, whatever it takes.

        Raises:
            Exception: What ``make`` raised.
        """
        digest = picture.digest
        if digest not in self._cache and not is_sent_on and (peer := home or self._claims.get(digest)):
            started_s = perf_counter()
            self._asking[digest] += 1
            try:
                reply = await self._ask(peer, picture)
            finally:
                self._asking[digest] -= 1
                if not self._asking[digest]:
                    del self._asking[digest]
            if isinstance(reply, Elsewhere) and reply.replica != self._name:
                return reply
            if isinstance(reply, Embedding):
                CACHE_LOOKUPS.labels("lent").inc()
                lent = replace(reply, rows=reply.rows.copy(), spent={})  # or, kept, it would keep Ray's memory
                self._cache.keep(lent)
                return replace(lent, spent={"cache_hit": perf_counter() - started_s})
        self._claims.pop(digest, None)
        return await self._cache.embedding_for(picture, make)

    def claim(self, digest: Digest, asker: Replica) -> Embedding | Elsewhere | None:
        """The embedding of a picture; or who makes it; or nothing, and then the one who asks is to make it."""
        if (kept := self._cache.find(digest)) is not None:
            return kept
        if digest in self._cache:
            return Elsewhere(self._name)
        holder = self._claims.get(digest)
        if holder is None and digest in self._asking:  # of its home, which sent the asker here: a grant is on its way
            return Elsewhere(self._name)
        if holder not in (None, asker) and self._is_there(holder):
            return Elsewhere(holder)
        self._claims.pop(digest, None)
        self._claims[digest] = asker
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)
        return None
