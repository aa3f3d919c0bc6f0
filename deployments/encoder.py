"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.cache import EmbeddingCache
from cluster.errors import PrismError
from cluster.metrics import PICTURES
from deployments.calls import BySize, ProcessMetrics, calling, cancelled_if_left, log_refusals_briefly

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Embedding, Picture, Pixels

    Result = TypeVar("Result")


PATCH_BYTES_PER_PIXEL: Final = 6
"""Three colours, twice: the tower reads a picture as two frames."""


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
        self._preprocess = BySize(preprocessor.preprocess)
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._works = True
        self._cache = EmbeddingCache(config.encoder.cache_bytes)

    async def encode(self, picture: Picture) -> Embedding:
        """A picture's embedding. The Router passes it on unread: the tensor goes from here to a decoder."""
        started_s = time.perf_counter()
        try:
            embedding, outcome = await self._cache.get(picture.digest, partial(self._encode, picture))
        except PrismError as error:  # which may have met another request with the same picture
            raise error.at(picture.param) from None
        if outcome == "miss":
            return embedding
        stage = "cache_hit" if outcome == "hit" else "join"
        return replace(embedding, spent={stage: time.perf_counter() - started_s})

    async def _encode(self, picture: Picture) -> Embedding:
        called_s = time.perf_counter()
        with calling("preprocessor"), cancelled_if_left(self._preprocess.of(_num_bytes(picture)).remote(picture)) as response:
            pixels = await response
        there_s = time.perf_counter()
        [embedding], ran_s = await self._in_lane(self._timed_encode, [pixels])
        PICTURES.labels("encode").inc()
        queue_s = time.perf_counter() - there_s - ran_s
        spent = {"preprocess_queue": there_s - called_s - pixels.ran_s, "preprocess": pixels.ran_s}
        return replace(embedding, spent={**spent, "encode_queue": queue_s, "encode": ran_s})

    def _timed_encode(self, batch: list[Pixels]) -> tuple[list[Embedding], float]:
        started_s = time.perf_counter()
        return self._tower.encode(batch), time.perf_counter() - started_s

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


def _num_bytes(picture: Picture) -> int:
    """Of a picture or its patches, whichever is more."""
    return max(len(picture.data), picture.num_pixels * PATCH_BYTES_PER_PIXEL)
