"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.cache import EmbeddingCache
from cluster.errors import PrismError
from cluster.metrics import PICTURES
from deployments.calls import ProcessMetrics, calling, cancelled_if_left, log_refusals_briefly

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Embedding, Picture


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
        self._lane = encode.Lane(self._tower.encode, batch_patches=config.encoder.batch_patches)
        self._cache = EmbeddingCache(config.encoder.cache_bytes)

    async def encode(self, picture: Picture) -> Embedding:
        """A picture's embedding. The Router passes it on unread: the tensor goes from here to a decoder."""
        try:
            return await self._cache.get(picture.digest, partial(self._encode, picture))
        except PrismError as error:  # which may have met another request with the same picture
            raise error.at(picture.param) from None

    async def _encode(self, picture: Picture) -> Embedding:
        with (
            self._lane.coming(),
            calling("preprocessor"),
            cancelled_if_left(self._preprocessor.preprocess.remote(picture)) as response,
        ):
            pixels = await response
        encoded = await self._lane.encode(pixels)
        PICTURES.labels("encode").inc()
        return encoded.embedding

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose tower fails on the smallest picture or does not come to it."""
        await self._lane.run(self._tower.check)

    async def ready(self) -> bool:
        """Whether this replica can serve: its last run went well."""
        return self._lane.works

    async def metrics(self) -> ProcessMetrics:
        """This process's metrics, as Prometheus text."""
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[str]:
        """Every weight that this replica holds, by its name in the tower."""
        return self._tower.parameter_names
