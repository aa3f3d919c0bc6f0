"""What vLLM's scheduler said last about how busy it is. It says so with every step, and nothing while it is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats


class SchedulerLog(StatLoggerBase):  # type: ignore[misc]  # vLLM's types are not followed
    """Keeps the last step's figures: requests that run, and the share of the KV cache that they take."""

    def __init__(self) -> None:
        self.num_running = 0
        self.kv_use = 0.0

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        """Called by vLLM after each step."""
        if scheduler_stats is not None:
            self.num_running, self.kv_use = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """Called by vLLM once; there is nothing to say."""
