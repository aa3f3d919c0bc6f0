"""The decoder pool: each replica holds one vLLM engine, tensor-parallel over its own bundle of devices."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cluster.metrics import ENGINE_REQUESTS
from deployments.calls import ProcessMetrics, log_refusals_briefly
from deployments.routing import description

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.config import PrismConfig
    from cluster.messages import Call, Embedding


class Decoder:
    """Generates answers. An engine that dies cannot be revived in place: the replica fails its health check and is replaced."""

    async def __init__(self, config: PrismConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        from cluster.decode.engine import Engine  # only in the replica: whoever builds the application needs no vLLM

        log_refusals_briefly()
        self._engine = await Engine.start(config)
        self._description = description(config.model.processor, self._engine.kv_tokens)

    async def generate(self, call: Call, *embeddings: Embedding) -> AsyncIterator[str]:
        """Runs one call on the embeddings of its pictures: SSE text for a stream, its JSON once for anything else."""
        answer = self._engine.answer(call, {embedding.digest: embedding for embedding in embeddings})
        async with aclosing(answer) as texts:
            async for text in texts:
                yield text

    def record_replica_metadata(self) -> dict[str, Any]:
        """For the request routers, once: how pictures come to patches, and how many tokens the KV cache takes."""
        return self._description

    def record_routing_stats(self) -> dict[str, float]:
        """For the request routers, time and again: what the engine has to do."""
        return self._engine.load()

    async def check_health(self) -> None:
        """Called by Serve; raises once the engine is gone."""
        await self._engine.check_health()

    async def ready(self) -> bool:
        """Whether this replica can serve."""
        await self._engine.check_health()
        return True

    async def metrics(self) -> ProcessMetrics:
        """This process's metrics, vLLM's own among them, as Prometheus text."""
        ENGINE_REQUESTS.set(self._engine.num_requests)
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[list[str]]:
        """Every weight that this replica holds, by its name in the model, for each of the engine's workers."""
        return await self._engine.parameter_names()

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.stop()
