"""The preprocessor pool: each replica prepares one picture at a time, in a child process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster import priority
from cluster.checkpoint import Checkpoint
from cluster.health import PATIENCE_S, StuckWatch
from cluster.isolation.children import Children
from cluster.metrics import PICTURES
from cluster.queues import report_queue
from cluster.scaling.work import OfferedWork
from deployments.ray_serve.calls import answering
from deployments.ray_serve.replica import ProcessMetrics, end_replica, freeze_heap, log_refusals_briefly

if TYPE_CHECKING:
    from cluster.config import PrismConfig
    from cluster.messages import Picture, Pixels

TEMPLATE_START_S: Final = 60.0
"""How long a template may take to start, in seconds. It imports torch, which takes ten seconds on a busy machine."""


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
        self._watch = StuckWatch(
            self._children.probe,
            progress_s=lambda: self._children.worked_at_s,
            patience_s=lambda: PATIENCE_S if self._children.is_warm else TEMPLATE_START_S,
            give_up=lambda reason: end_replica(f"the child processes: {reason}"),
        )
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
        """Called by Serve. It prepares the smallest picture, unless a child has just worked.

        A child that is stuck is replaced. If no child works at all, this process ends and is replaced.

        Raises:
            Exception: The smallest picture could not be prepared. Serve replaces the replica after three in a row.
        """
        await self._watch.check()

    def metrics(self) -> ProcessMetrics:
        """This process's metrics as Prometheus text."""
        report_queue(len(self._children.waiting), self._children.waiting.oldest_s)
        return ProcessMetrics.of_this_replica()
