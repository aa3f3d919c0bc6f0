"""The preprocessor pool: each replica is one CPU process that prepares one picture at a time."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster import priority
from cluster.checkpoint import Checkpoint
from cluster.metrics import PICTURES
from cluster.scaling.work import OfferedWork
from deployments.ray_serve.calls import answering
from deployments.ray_serve.replica import ProcessMetrics, freeze_heap, log_refusals_briefly

if TYPE_CHECKING:
    from cluster.config import PrismConfig
    from cluster.messages import Picture, Pixels


class Preprocessor:
    """Turns pictures into patches. More replicas give more throughput; more threads would not, because Pillow holds
    the GIL."""

    def __init__(self, config: PrismConfig) -> None:
        log_refusals_briefly()
        import torch  # imported in the replica only: building the application needs no model code

        from cluster.preprocess import preprocess

        torch.set_num_threads(1)
        self._preprocess = preprocess
        self._settings = Checkpoint(config.model).processor
        niceness = priority.of_pictures(config.decoder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preprocess", initializer=os.nice, initargs=(niceness,))
        self._offered = OfferedWork()
        self._num_waiting_pixels = 0
        self._num_done_pixels = 0
        self._busy_s = 0.0
        freeze_heap()

    async def preprocess(self, picture: Picture) -> Pixels:
        """Decodes, resizes and cuts up one picture, in a thread."""
        self._offered.arrived(picture.num_pixels)
        self._num_waiting_pixels += picture.num_pixels
        try:
            with answering("preprocessor"):
                pixels = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, picture)
        finally:
            self._num_waiting_pixels -= picture.num_pixels
        self._num_done_pixels += picture.num_pixels
        self._busy_s += pixels.ran_s
        PICTURES.labels("preprocess").inc()
        return pixels

    def _run(self, picture: Picture) -> Pixels:
        started_s = time.perf_counter()
        pixels = self._preprocess(picture, self._settings)
        return replace(pixels, ran_s=time.perf_counter() - started_s)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells the scaling policy regularly how many pixels came, were prepared, and wait."""
        return self._offered.stats(self._num_done_pixels, self._busy_s, waiting=self._num_waiting_pixels)

    def metrics(self) -> ProcessMetrics:
        """This process's metrics as Prometheus text."""
        return ProcessMetrics.of_this_replica()
