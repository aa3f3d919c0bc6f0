"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.cache import EmbeddingCache
from cluster.errors import PrismError
from cluster.metrics import PICTURES
from deployments.calls import ProcessMetrics, calling, cancelled_if_left, log_refusals_briefly
from deployments.routing import description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Embedding, Picture

    Result = TypeVar("Result")


class VisionEncoder:
    """Turns pictures into embeddings, pulling their pixels from the preprocessors."""

    def __init__(self, config: PrismConfig, preprocessor: DeploymentHandle[Any]) -> None:
        log_refusals_briefly()
        import torch  # only in the replica: whoever builds the application needs no model code

        from cluster import encode

        torch.set_num_threads(config.encoder.num_threads)
        model = config.model
        checkpoint = model.path_with(encode.TOWER_PREFIXES)
        self._tower = encode.VisionEncoder.load(checkpoint, model.processor, dtype=model.dtype, device=config.encoder.device)
        self._preprocessor = preprocessor
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._works = True
        self._cache = EmbeddingCache(config.encoder.cache_bytes)
        self._description = description(model.processor, config.encoder.cache_bytes / self._tower.bytes_per_patch)
        self._settings = model.processor
        self._num_patches = 0

    async def encode(self, picture: Picture) -> Embedding:
        """A picture's embedding. The Router passes it on unread: the tensor goes from here to a decoder."""
        try:
            return await self._cache.get(picture.digest, partial(self._encode, picture))
        except PrismError as error:  # which may have met another request with the same picture
            raise error.at(picture.param) from None

    async def _encode(self, picture: Picture) -> Embedding:
        with self._busy_with(self._settings.num_patches(picture.width * picture.height)):
            with calling("preprocessor"), cancelled_if_left(self._preprocessor.preprocess.remote(picture)) as response:
                pixels = await response
            [embedding] = await self._in_lane(self._tower.encode, [pixels])
        PICTURES.labels("encode").inc()
        return embedding

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
        """Called by Serve, which replaces a replica whose tower fails on the smallest picture or does not come to it."""
        await self._in_lane(self._tower.check)

    async def ready(self) -> bool:
        """Whether this replica can serve: its last run went well."""
        return self._works

    async def _in_lane(self, run: Callable[..., Result], *arguments: Any) -> Result:
        """Runs the tower off the event loop, after those that came before."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._lane, run, *arguments)
        except Exception:
            self._works = False
            raise
        self._works = True
        return result

    async def metrics(self) -> ProcessMetrics:
        """This process's metrics, as Prometheus text."""
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[str]:
        """Every weight that this replica holds, by its name in the tower."""
        return self._tower.parameter_names
