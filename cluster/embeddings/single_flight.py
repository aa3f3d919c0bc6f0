"""Makes each embedding only once in the whole encoder pool: a replica asks one other replica before it encodes.

``EmbeddingCache`` already lets the callers of one replica share a run. This module does the same between replicas.

Each picture has a home: one replica that the digest alone determines (``cluster.routing.pictures.home``). Callers
normally send the picture to its home, and the home encodes it without asking anyone.

A caller that believes the home is overloaded sends the picture to another replica; other callers may disagree. That
replica is told which replica is the home and claims the picture there before encoding it (``SingleFlight.claim``). The
reply of the home depends on what it knows:

    the home                                   its reply                     the replica that asked
    has the embedding                          the embedding                 keeps a copy and returns it
    is making it, or granted another's claim   ``Elsewhere`` with a replica  tells its caller to ask that replica
    knows nothing of the picture               None: the claim is granted    encodes the picture

The first reply also spreads a popular picture over the pool. A caller that follows an ``Elsewhere`` gets the embedding
from that replica's cache or run. After a grant, the home remembers the replica that makes the embedding. If a caller
then sends the picture to the home, the home claims it at that replica by the same rules.

The calls cannot go in a circle: ``claim`` replies at once without waiting for a run, and a caller is sent elsewhere at
most once.

A picture may still be encoded twice, but every call gets a result. A second run is possible in three cases: a claim
fails or times out; callers see different pools and so name different homes; or the embedding was evicted after its
claim was granted.
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
"""The most granted claims that one replica remembers. They take about 20 MB."""


class SingleFlight:
    """One replica's part in making each embedding once: its cache, and the claims that it has granted to others.

    Args:
        name: The name of this replica.
        cache: The embeddings that this replica has or is making.
        ask: Calls ``claim`` of another replica, for this replica, and returns its reply. It returns None if the other
            replica is gone or does not reply in time.
        is_there: Whether the pool has a replica of that name.
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
        """The embedding of a picture, or the replica that the caller must ask for it.

        The embedding comes from this replica's cache, from a run under way here, from the replica that was asked, or
        from a new run here.

        Args:
            picture: The picture.
            make: Makes the embedding on this replica.
            home: The picture's home, or None if this replica is the home.
            is_sent_on: Whether another replica sent the caller here by ``Elsewhere``. The result is then always the
                embedding, even if it has to be made here.

        Raises:
            Exception: The error of the run.
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
                # A copy, because the rows lie in Ray's shared memory. Ray could not free it as long as they are kept.
                lent = replace(reply, rows=reply.rows.copy(), spent={})
                self._cache.keep(lent)
                return replace(lent, spent={"cache_hit": perf_counter() - started_s})
        self._claims.pop(digest, None)
        return await self._cache.embedding_for(picture, make)

    def claim(self, digest: Digest, asker: Replica) -> Embedding | Elsewhere | None:
        """Replies to another replica that is about to encode a picture.

        Args:
            digest: The picture's digest.
            asker: The replica that asks.

        Returns:
            The embedding, if this replica has it. ``Elsewhere``, if this or a third replica makes it. None, if nobody
            is known to make it: the claim is then granted, and the asker makes the embedding.
        """
        if (kept := self._cache.find(digest)) is not None:
            return kept
        if digest in self._cache:
            return Elsewhere(self._name)
        holder = self._claims.get(digest)
        if holder is None and digest in self._asking:
            # This replica's own claim is still unanswered. The asker is the home: it granted that claim, and the grant
            # is on its way here.
            return Elsewhere(self._name)
        if holder not in (None, asker) and self._is_there(holder):
            return Elsewhere(holder)
        self._claims.pop(digest, None)
        self._claims[digest] = asker
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)
        return None
