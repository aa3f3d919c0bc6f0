"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ray import serve

from cluster import priority
from cluster.checkpoint import Checkpoint
from cluster.embeddings.cache import EmbeddingCache
from cluster.embeddings.single_flight import SingleFlight
from cluster.metrics import PICTURES
from deployments.ray_serve.calls import BySize, answering, calling, cancelled_if_left
from deployments.ray_serve.replica import ProcessMetrics, freeze_heap, log_refusals_briefly
from deployments.ray_serve.replicas import GONE, actors_of, call, own_pool
from deployments.ray_serve.request_routers import description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Digest, Elsewhere, Embedding, Picture, Replica

log: Final = logging.getLogger("ray.serve")

CLAIM_TIMEOUT_S: Final = 1.0
"""How long an encoder waits for another's word, which takes a millisecond or two unless the other is gone."""
PROVEN_S: Final = 5.0
"""For so long a run that went well says that the tower works."""


class VisionEncoder:
    """Turns pictures into embeddings, pulling their pixels from the preprocessors."""

    def __init__(self, config: PrismConfig, preprocessor: DeploymentHandle[Any]) -> None:
        log_refusals_briefly()
        import torch  # only in the replica: whoever builds the application needs no model code

        from cluster.encode.batch_queue import BatchQueue
        from cluster.encode.picture_encoder import TOWER_PREFIXES, PictureEncoder

        torch.set_num_threads(config.encoder.num_threads)
        checkpoint = Checkpoint(config.model)
        self._settings = checkpoint.processor
        folder, dtype = checkpoint.path_with(TOWER_PREFIXES), config.model.dtype
        self._tower = PictureEncoder.load(folder, self._settings, dtype=dtype, device=config.encoder.device)
        self._preprocess = BySize(preprocessor.preprocess)
        niceness = priority.of_pictures(config.decoder) if config.encoder.device == "cpu" else 0
        self._queue = BatchQueue(self._tower.encode, batch_patches=config.encoder.batch_patches, niceness=niceness)
        self._own_pool = own_pool()
        self._name = serve.get_replica_context().replica_id.unique_id
        cache = EmbeddingCache(config.encoder.cache_bytes)
        self._flight = SingleFlight(
            self._name, cache, ask=self._ask, is_there=lambda name: name in actors_of(self._own_pool)
        )
        self._description = description(self._settings, config.encoder.cache_bytes / self._tower.bytes_per_patch)
        self._num_patches = 0
        self._check: asyncio.Task[None] | None = None
        freeze_heap()

    async def encode(
        self, picture: Picture, *, home: Replica | None = None, at: Replica | None = None
    ) -> Embedding | Elsewhere:
        """A picture's embedding, and where its time went; or the replica to ask for it.

        Args:
            picture: It.
            home: The picture's home, which the request router fills in where it passed that over.
            at: Whom another replica named, and the request router found.
        """
        with answering("encoder"):
            return await self._flight.embedding_for(picture, self._encode, home=home, is_sent_on=at is not None)

    def claim(self, digest: Digest, asker: Replica) -> Embedding | Elsewhere | None:
        """Called by another encoder: who has a picture or makes it, by what this one knows; if nobody, the asker makes
        it."""
        return self._flight.claim(digest, asker)

    async def _ask(self, peer: Replica, picture: Picture) -> Embedding | Elsewhere | None:
        if (actor := actors_of(self._own_pool).get(peer)) is None:
            return None
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                reply: Embedding | Elsewhere | None = await call(actor, "claim", picture.digest, self._name)
        except (TimeoutError, *GONE) as error:
            log.warning("the encoder %s did not say who makes a picture: %r", peer, error)
            return None
        return reply

    async def _encode(self, picture: Picture) -> Embedding:
        started_s = time.perf_counter()
        preprocess = self._preprocess.for_size(self._num_bytes(picture))
        with self._busy_with(self._settings.num_patches(picture.num_pixels)):
            with (
                self._queue.coming(),
                calling("preprocessor"),
                cancelled_if_left(preprocess.remote(picture)) as response,
            ):
                pixels = await response
            away_s = time.perf_counter() - started_s
            encoded = await self._queue.encode(pixels)
        PICTURES.labels("encode").inc()
        spent = {
            "preprocess_queue": away_s - pixels.ran_s,
            "preprocess": pixels.ran_s,
            "encode_queue": encoded.waited_s,
            "encode": encoded.ran_s,
        }
        return replace(encoded.embedding, spent=spent)

    def _num_bytes(self, picture: Picture) -> int:
        """Of a picture or its patches, whichever is more."""
        return max(len(picture.data), self._settings.num_patches(picture.num_pixels) * self._settings.patch_bytes)

    def record_replica_metadata(self) -> dict[str, Any]:
        """For the request routers, once: how pictures come to patches here, and of how many the embeddings are kept."""
        return self._description

    def record_routing_stats(self) -> dict[str, int]:
        """For the request routers, time and again: patches that wait or run here, each picture's once."""
        return {"patches": self._num_patches}

    @contextmanager
    def _busy_with(self, num_patches: int) -> Iterator[None]:
        self._num_patches += num_patches
        try:
            yield
        finally:
            self._num_patches -= num_patches

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose tower fails on the smallest picture or does not come to it.

        A tower that works is not kept from it, and those who ask together share one answer.
        """
        if time.perf_counter() - self._queue.worked_at_s > PROVEN_S:
            if self._check is None or self._check.done():
                self._check = asyncio.create_task(self._queue.run(self._tower.check), context=Context())
            await asyncio.shield(self._check)

    def metrics(self) -> ProcessMetrics:
        """This process's metrics, as Prometheus text."""
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[str]:
        """Every weight that this replica holds, by its name in the tower."""
        return self._tower.parameter_names
