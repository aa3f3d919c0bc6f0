"""The encoder pool: each replica holds one vision tower."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from deployments.calls import ProcessMetrics, calling, log_refusals_briefly

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
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def encode(self, picture: Picture) -> Embedding:
        """Encodes one picture. The Router passes the result on unread: the tensor goes from here to a decoder."""
        with calling("preprocessor"):
            pixels = await self._preprocessor.preprocess.remote(picture)
        [embedding] = await asyncio.get_running_loop().run_in_executor(self._lane, self._tower.encode, [pixels])
        return embedding

    async def ready(self) -> bool:
        """Whether this replica can serve."""
        return True

    async def metrics(self) -> ProcessMetrics:
        """This process's metrics, as Prometheus text."""
        return ProcessMetrics.of_this_replica()

    async def parameter_names(self) -> list[str]:
        """Every weight that this replica holds, by its name in the tower."""
        return self._tower.parameter_names
