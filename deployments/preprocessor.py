"""The preprocessor pool: each replica prepares one picture at a time, in a child process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster import priority
from cluster.checkpoint import Checkpoint
from cluster.isolation.children import Children
from cluster.metrics import PICTURES
from cluster.scaling.work import OfferedWork
from deployments.ray_serve.calls import answering
from deployments.ray_serve.replica import ProcessMetrics, freeze_heap, log_refusals_briefly

if TYPE_CHECKING:
    from cluster.config import PrismConfig
    from cluster.messages import Picture, Pixels


class Preprocessor:
    """Turns pictures into patches. More replicas give more throughput."""

    async def __init__(self, config: PrismConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        log_refusals_briefly()
        settings = Checkpoint(config.model).processor
        self._children = Children(settings, priority.of_pictures(config.decoder))
        await self._children.start()
        self._offered = OfferedWork()
        self._num_waiting_pixels = 0
        self._num_done_pixels = 0
        self._busy_s = 0.0
        freeze_heap()

    async def preprocess(self, picture: Picture) -> Pixels:
        """Decodes, resizes and cuts up one picture, in a child process."""
        self._offered.arrived(picture.num_pixels)
        self._num_waiting_pixels += picture.num_pixels
        try:
            with answering("preprocessor"):
                pixels = await self._children.prepare(picture)
        finally:
            self._num_waiting_pixels -= picture.num_pixels
        self._num_done_pixels += picture.num_pixels
        self._busy_s += pixels.ran_s
        PICTURES.labels("preprocess").inc()
        return pixels

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells the scaling policy regularly how many pixels came, were prepared, and wait."""
        return self._offered.stats(self._num_done_pixels, self._busy_s, waiting=self._num_waiting_pixels)

    async def check_health(self) -> None:
        """Prepares the smallest picture, unless a child has worked in the last seconds.

        Serve replaces a replica whose check fails or takes too long.

        Raises:
            TimeoutError: No child has worked in time.
        """
        await self._children.check()

    def metrics(self) -> ProcessMetrics:
        """This process's metrics as Prometheus text."""
        return ProcessMetrics.of_this_replica()
