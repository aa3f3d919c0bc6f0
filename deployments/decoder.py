"""The decoder pool: each replica holds one vLLM engine, tensor-parallel over its own devices."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cluster.checkpoint import Checkpoint
from cluster.embeddings.cache import EmbeddingCache
from cluster.errors import EmbeddingLost, PoolUnavailable
from cluster.health import StuckWatch
from cluster.messages import Begun, Elsewhere, Embedding
from cluster.metrics import ENGINE_REQUESTS
from cluster.queues import report_queue
from deployments.ray_serve.calls import BySize, answering, calling, cancelled_if_left
from deployments.ray_serve.replica import (
    ProcessMetrics,
    end_replica,
    freeze_heap,
    log_file_kept,
    log_refusals_briefly,
)
from deployments.ray_serve.request_routers import description
from deployments.ray_serve.retries import Attempts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Call, Digest, FirstPiece, Grid, Picture, Piece


class Decoder:
    """Generates answers. An engine that has died or is stuck cannot be revived: the replica ends and is replaced."""

    async def __init__(self, config: PrismConfig, encoder: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        log_refusals_briefly()
        self._encode = BySize(encoder.encode)
        self._pulls = EmbeddingCache(0)  # keeps nothing; it only lets concurrent requests share a call
        with log_file_kept():
            # Imported in the replica only: building the application needs no vLLM.
            from cluster.decode.start import start_engine

            self._engine = await start_engine(config)
        self._watch = self._watch_engine()
        self._settings = Checkpoint(config.model).processor
        freeze_heap()

    async def generate(
        self,
        call: Call,
        *pictures: Picture,
        attempts: None = None,  # noqa: ARG002 -- for the request router
    ) -> AsyncIterator[Begun | FirstPiece | Piece]:
        """Runs one call about the given pictures. A stream yields SSE text piece by piece; any other call yields its
        JSON.

        A call with pictures yields ``Begun`` when their embeddings are here. The first text is a ``FirstPiece``. If an
        embedding is lost on its way to the engine, it is pulled once more, unless the first text has been sent.
        """
        from cluster.decode.answer import generate  # imports vLLM: not before the engine has started

        has_begun, lost_before = False, False
        waiting = {picture.digest: picture for picture in pictures}
        grids = {picture.digest: self._grid(picture) for picture in pictures}
        del pictures

        async def pull(digest: Digest) -> Embedding:
            return await self._pulls.embedding_for(waiting[digest], self._encoded)

        with answering("decoder"):
            while True:
                try:
                    async with aclosing(generate(self._engine, call, grids, pull)) as pieces:
                        async for piece in pieces:
                            if not isinstance(piece, Begun):
                                has_begun = True
                                waiting.clear()  # the bytes of the pictures are not needed while tokens are made
                            yield piece
                    return
                except EmbeddingLost:
                    if has_begun or lost_before:
                        raise
                    lost_before = True

    async def _encoded(self, picture: Picture) -> Embedding:
        """The embedding that the encoders make. If one of them fails, another one is asked, once."""
        attempts = Attempts("encoder")
        while True:
            try:
                return await self._encoded_once(picture, attempts)
            except PoolUnavailable as error:
                attempts.note(error)
                if not attempts.can_retry():
                    raise

    async def _encoded_once(self, picture: Picture, attempts: Attempts) -> Embedding:
        encode = self._encode.for_size(self._num_bytes(picture))
        with calling("encoder"), cancelled_if_left(encode.remote(picture, attempts=attempts)) as response:
            embedding: Embedding | Elsewhere = await response
        attempts.answered()
        if isinstance(embedding, Elsewhere):
            elsewhere = encode.remote(picture, at=embedding.replica, attempts=attempts)
            with calling("encoder"), cancelled_if_left(elsewhere) as response:
                embedding = await response
        assert isinstance(embedding, Embedding), "nobody is sent on twice"
        return embedding

    def _num_bytes(self, picture: Picture) -> int:
        """Returns the size for the choice between calls by value and by reference: the bytes of the picture file or
        of its embedding, whichever is larger."""
        return max(len(picture.data), self._engine.embedding_shape.num_bytes(self._grid(picture)))

    def _grid(self, picture: Picture) -> Grid:
        """The grid of a picture's patches, computed from the size in its header."""
        from cluster.preprocess import smart_resize  # imports torch: not before the engine has started

        height, width = smart_resize(picture.height, picture.width, self._settings)
        return 1, height // self._settings.patch_size, width // self._settings.patch_size

    def record_replica_metadata(self) -> dict[str, Any]:
        """Tells the request routers once how pictures become patches."""
        return description(self._settings)

    def record_routing_stats(self) -> dict[str, float]:
        """Tells the request routers regularly how busy the engine is, how many tokens fit into its KV cache, and
        whether it is silent."""
        return {**self._engine.stats(), "max_held": self._engine.kv_tokens, "is_silent": self._watch.is_silent}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells the scaling policy regularly about the engine's work."""
        return self._engine.work()

    async def check_health(self) -> None:
        """Called by Serve. It has the engine generate one token, unless the engine has just ended a step.

        If the engine has died or is stuck, this process ends, and its requests fail and are sent to other decoders.
        """
        if self._engine.is_dead:
            self._give_up("its process has ended")
        await self._watch.check()

    def _watch_engine(self) -> StuckWatch:
        engine = self._engine
        return StuckWatch(
            engine.probe,
            progress_s=lambda: engine.stepped_s,
            patience_s=lambda: engine.patience_s,
            give_up=self._give_up,
        )

    def _give_up(self, reason: str) -> None:
        self._engine.kill()
        end_replica(f"the engine: {reason}")

    def metrics(self) -> ProcessMetrics:
        """This process's metrics, vLLM's included, as Prometheus text."""
        ENGINE_REQUESTS.set(self._engine.num_requests)
        report_queue(*self._engine.queue())
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[list[str]]:
        """The names of all weights of each of the engine's workers."""
        return await self._engine.parameter_names()

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.stop()
