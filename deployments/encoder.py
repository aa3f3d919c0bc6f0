"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from ray import serve

from cluster import priority
from cluster.checkpoint import Checkpoint
from cluster.config import EncoderUserConfig
from cluster.embeddings.cache import EmbeddingCache
from cluster.embeddings.single_flight import SingleFlight
from cluster.errors import InvalidRequest, PictureLost, PoolUnavailable
from cluster.health import PATIENCE_S, StuckWatch
from cluster.messages import Embedding
from cluster.metrics import CLAIMS, PICTURES, RETRIES
from cluster.queues import report_queue
from cluster.scaling.work import OfferedWork
from deployments.ray_serve.calls import BySize, answering, calling, cancelled_if_left
from deployments.ray_serve.replica import ProcessMetrics, UserConfig, end_replica, freeze_heap, log_refusals_briefly
from deployments.ray_serve.replicas import GONE, actors_of, call, own_pool
from deployments.ray_serve.request_routers import description

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Digest, Elsewhere, Picture, Pixels, Replica

log: Final = logging.getLogger("ray.serve")

CLAIM_TIMEOUT_S: Final = 1.0
"""How long an encoder waits for the reply to a claim. Without a fault the reply takes a millisecond or two."""
SLOWER: Final = 8.0
"""A run may take so many times longer than earlier runs of as many patches: attention in a large picture grows with the
square of its patches, and others may use the cores."""
FIRST_RUN_S: Final = 60.0
"""How long a tower's first run may take, in seconds. Its speed is not known yet."""


class VisionEncoder:
    """Turns pictures into embeddings. It pulls their patches from the preprocessors."""

    def __init__(self, config: PrismConfig, preprocessor: DeploymentHandle[Any]) -> None:
        log_refusals_briefly()
        import torch  # imported in the replica only: building the application needs no model code

        from cluster.encode.batch_queue import BatchQueue
        from cluster.encode.picture_encoder import TOWER_PREFIXES, PictureEncoder

        torch.set_num_threads(config.encoder.num_threads)
        checkpoint = Checkpoint(config.model)
        self._settings = checkpoint.processor
        folder, dtype = checkpoint.path_with(TOWER_PREFIXES), config.model.dtype
        self._tower = PictureEncoder.load(folder, self._settings, dtype=dtype, device=config.encoder.device)
        self._tower.check()  # the first run may load kernels, for which no call should wait
        self._preprocess = BySize(preprocessor.preprocess)
        niceness = priority.of_pictures(config.decoder) if config.encoder.device == "cpu" else 0
        self._user_config = UserConfig(EncoderUserConfig())
        settings = self._user_config.settings
        self._queue = BatchQueue(self._tower.encode, batch_patches=settings.batch_patches, niceness=niceness)
        self._own_pool = own_pool()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._cache = EmbeddingCache(settings.cache_bytes)
        self._flight = SingleFlight(
            self._name, self._cache, ask=self._ask, is_there=lambda name: name in actors_of(self._own_pool)
        )
        self._num_patches = 0
        self._offered = OfferedWork()
        self._watch = StuckWatch(
            lambda: self._queue.run(self._tower.check),
            progress_s=lambda: self._queue.worked_at_s,
            patience_s=self._patience_s,
            give_up=lambda reason: end_replica(f"the vision tower: {reason}"),
        )
        freeze_heap()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with the ``user_config`` at the start and after each change."""
        settings = self._user_config.take(user_config)
        self._cache.resize(settings.cache_bytes)
        self._queue.batch_patches = settings.batch_patches

    async def encode(
        self,
        picture: Picture,
        *,
        home: Replica | None = None,
        at: Replica | None = None,
        attempts: None = None,  # noqa: ARG002 -- for the request router
    ) -> Embedding | Elsewhere:
        """The embedding of a picture with the times of its stages, or the replica that makes it.

        Args:
            picture: The picture.
            home: The picture's home, if this replica stands in for it. The request router fills this in.
            at: The name of this replica, if another replica has sent the caller here.
            attempts: Always None here. The request router in the caller's process reads it.
        """
        with answering("encoder"):
            return await self._flight.embedding_for(picture, self._encode, home=home, is_sent_on=at is not None)

    def claim(self, digest: Digest, asker: Replica) -> Embedding | Elsewhere | None:
        """Called by another encoder before it makes an embedding.

        Returns:
            The embedding, if it is kept here; ``Elsewhere``, if a replica makes it; None, if the asker is to make it.
        """
        return self._flight.claim(digest, asker)

    async def _ask(self, peer: Replica, picture: Picture) -> Embedding | Elsewhere | None:
        if (actor := actors_of(self._own_pool).get(peer)) is None:
            CLAIMS.labels("absent").inc()
            return None
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                reply: Embedding | Elsewhere | None = await call(actor, "claim", picture.digest, self._name)
        except (TimeoutError, *GONE) as error:
            log.warning("the encoder %s did not reply to a claim: %r", peer, error)
            CLAIMS.labels("failed").inc()
            return None
        CLAIMS.labels(_outcome(reply)).inc()
        return reply

    async def _encode(self, picture: Picture) -> Embedding:
        if not picture.data:
            raise PictureLost(
                "This answer cannot go on: no encoder holds its picture any more, and neither does the Router; "
                "send the request again."
            )
        started_s = time.perf_counter()
        num_patches = self._settings.num_patches(picture.num_pixels)
        with self._busy_with(num_patches):
            # A picture that cannot be decoded is no work for the tower.
            with self._queue.coming(), self._offered.expecting(num_patches, unless=InvalidRequest):
                pixels = await self._preprocessed(picture)
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

    async def _preprocessed(self, picture: Picture) -> Pixels:
        """The pixels that the preprocessors make. If one of them fails, the pool is asked once more."""
        preprocess = self._preprocess.for_size(self._num_bytes(picture))
        try:
            with calling("preprocessor"), cancelled_if_left(preprocess.remote(picture)) as response:
                return cast("Pixels", await response)
        except PoolUnavailable:
            RETRIES.labels("preprocessor").inc()
        with calling("preprocessor"), cancelled_if_left(preprocess.remote(picture)) as response:
            return cast("Pixels", await response)

    def _num_bytes(self, picture: Picture) -> int:
        """The bytes of a picture or of its patches, whichever is more."""
        return max(len(picture.data), self._settings.num_patches(picture.num_pixels) * self._settings.patch_bytes)

    def record_replica_metadata(self) -> dict[str, Any]:
        """Tells the request routers once how pictures become patches."""
        return description(self._settings)

    def record_routing_stats(self) -> dict[str, float]:
        """Tells the request routers regularly how many patches wait or run here, and for how many patches embeddings
        are kept, and whether the tower is silent. A picture counts once."""
        max_held = self._user_config.settings.cache_bytes / self._tower.bytes_per_patch
        return {"patches": self._num_patches, "max_held": max_held, "is_silent": self._watch.is_silent}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells the scaling policy regularly how many patches came, were encoded, and wait for the tower or run in
        it. Patches that are still with the preprocessors do not wait here."""
        queue = self._queue
        return self._offered.stats(queue.num_run_patches, queue.run_s, waiting=queue.num_waiting_patches)

    @contextmanager
    def _busy_with(self, num_patches: int) -> Iterator[None]:
        self._num_patches += num_patches
        try:
            yield
        finally:
            self._num_patches -= num_patches

    async def check_health(self) -> None:
        """Called by Serve. It runs the vision tower on the smallest picture, unless a run has just ended.

        If the tower is stuck, this process ends, and its requests fail and are sent to other encoders.

        Raises:
            Exception: The error of the vision tower. Serve replaces the replica after three in a row.
        """
        await self._watch.check()

    def _patience_s(self) -> float:
        """The seconds without a finished run after which the tower is stuck."""
        expected_s = self._queue.expected_s
        return FIRST_RUN_S if expected_s is None else PATIENCE_S + SLOWER * expected_s

    def metrics(self) -> ProcessMetrics:
        """This process's metrics as Prometheus text."""
        report_queue(self._queue.num_waiting, self._queue.oldest_s)
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[str]:
        """The names of all weights of the vision tower."""
        return self._tower.parameter_names


def _outcome(reply: Embedding | Elsewhere | None) -> str:
    if reply is None:
        return "granted"
    return "lent" if isinstance(reply, Embedding) else "elsewhere"
