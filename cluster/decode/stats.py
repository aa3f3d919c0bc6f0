"""vLLM's statistics: the times of one request, read at its first output, and how busy the scheduler was in its last
step."""

from __future__ import annotations

import time
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vllm.outputs import RequestOutput
    from vllm.v1.metrics.stats import SchedulerStats

    from cluster.messages import Spent


@dataclass(slots=True)
class EngineTimes:
    """Points in time of one call, in seconds of this machine's monotonic clock, which the engine's process shares."""

    started_s: float = field(default_factory=time.monotonic)
    stats: Any = None
    """vLLM's ``RequestStateStats``, once there is an output; it goes on changing."""

    def note(self, stats: Any) -> None:
        """Of several prompts in one call, the one counts that is not done yet."""
        if self.stats is None or (stats is not None and stats.last_token_ts > self.stats.last_token_ts):
            self.stats = stats

    def spent(self, *, streams: bool) -> Spent:
        """The stages of the decoder, from its start on the call until now: a stream's first piece, or a whole answer."""
        now_s = time.monotonic()
        stats = self.stats
        if stats is None or not stats.first_token_ts:  # a call for tokens alone never reaches the engine
            return {"render": now_s - self.started_s}
        stream_s = 0.0 if streams else stats.last_token_ts - stats.first_token_ts
        return {
            "render": stats.queued_ts - self.started_s,
            "decode_queue": stats.scheduled_ts - stats.queued_ts,
            "prefill": stats.first_token_ts - stats.scheduled_ts,
            "first_token": now_s - stats.first_token_ts - stream_s,
            "stream": stream_s,
        }


_times: Final[ContextVar[EngineTimes | None]] = ContextVar("prism_engine_times", default=None)


def watch() -> EngineTimes:
    """Has the next outputs of the engine in this task noted."""
    times = EngineTimes()
    _times.set(times)
    return times


class TimedLLM(AsyncLLM):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's engine client, which tells ``watch`` about first outputs."""

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput]:
        """See ``AsyncLLM.generate``."""
        outputs = super().generate(*args, **kwargs)
        times = _times.get()
        return outputs if times is None else _noted(outputs, times)


async def _noted(outputs: AsyncGenerator[RequestOutput], times: EngineTimes) -> AsyncGenerator[RequestOutput]:
    async with aclosing(outputs):
        async for output in outputs:
            times.note(output.metrics)
            yield output


class SchedulerLog(StatLoggerBase):  # type: ignore[misc]  # vLLM's types are not followed
    """Keeps the last step's figures: requests that run, and the used share of the KV cache. An idle engine reports
    nothing."""

    def __init__(self) -> None:
        self.num_running = 0
        self.kv_use = 0.0

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        """Called by vLLM after each step."""
        if scheduler_stats is not None:
            self.num_running, self.kv_use = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """Called by vLLM once; there is nothing to say."""
