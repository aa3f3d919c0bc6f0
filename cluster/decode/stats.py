"""The engine client of vLLM, which notes times and prefills, takes probes, and judges requests without running them."""

from __future__ import annotations

import time
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from cluster.decode.prefills import PrefillLog
from cluster.decode.replay import ReplayedOutputs, ReplayProcessor, must_force
from cluster.decode.steps import followed
from cluster.errors import ContinuationNotExact
from cluster.tracing import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from vllm.outputs import RequestOutput
    from vllm.v1.metrics.stats import SchedulerStats

    from cluster.decode.steps import StepLog
    from cluster.messages import Spent


PROBE_TOKEN: Final = 0
"""The token of which the prompts of probes consist. Every vocabulary has it."""


@dataclass(slots=True)
class EngineTimes:
    """The times of one call, in seconds of the machine's monotonic clock. The engine's process uses the same clock."""

    traceparent: str | None = None
    """The span that vLLM's own span of the call belongs to."""
    started_s: float = field(default_factory=time.monotonic)
    stats: Any = None
    """vLLM's ``RequestStateStats``, set at the first output. vLLM goes on changing it."""
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    def note(self, stats: Any) -> None:
        """Keeps the statistics of an output, unless those that are kept have a newer token. A call with several prompts
        has several statistics."""
        if self.stats is None or (stats is not None and stats.last_token_ts > self.stats.last_token_ts):
            self.stats = stats

    def spent(self, *, is_stream: bool) -> Spent:
        """Seconds by stage, from the decoder's start on the call until now.

        Args:
            is_stream: True if now is the first piece of a stream, false if now is the end of a whole answer.
        """
        now_s = time.monotonic()
        stats = self.stats
        if stats is None or not stats.first_token_ts:  # /tokenize and /detokenize never reach the engine
            return {"render": now_s - self.started_s}
        stream_s = 0.0 if is_stream else stats.last_token_ts - stats.first_token_ts
        return {
            "render": stats.queued_ts - self.started_s,
            "decode_queue": stats.scheduled_ts - stats.queued_ts,
            "prefill": stats.first_token_ts - stats.scheduled_ts,
            "first_token": now_s - stats.first_token_ts - stream_s,
            "stream": stream_s,
        }


SET_LATER: Final = frozenset({"prompt_text", "reasoning_ended", "reasoning_parser_kwargs"})
"""Arguments of ``AsyncLLM.add_request`` that are not for ``process_inputs``."""

_times: Final[ContextVar[EngineTimes | None]] = ContextVar("prism_engine_times", default=None)


def watch(traceparent: str | None = None) -> EngineTimes:
    """Starts taking down the times of the engine's outputs in the current task."""
    times = EngineTimes(traceparent)
    _times.set(times)
    return times


_judging: Final[ContextVar[bool]] = ContextVar("prism_judging", default=False)


class Accepted(BaseException):
    """vLLM has found nothing wrong with a request that was only to be judged. It is no ``Exception``, so that vLLM does
    not take it for an error of its own."""


@contextmanager
def judging() -> Iterator[None]:
    """In this block a request of the current task goes through all of vLLM's checks, and ends in ``Accepted`` where
    it would be sent to the engine."""
    _judging.set(True)
    try:
        yield
    finally:
        _judging.set(False)


class TimedLLM(AsyncLLM):  # type: ignore[misc]  # vLLM's types are not followed
    """vLLM's engine client. It notes each output for the asyncio task that has called ``watch`` or ``follow``, and each
    prompt in ``prefills``. Requests inside of ``judging`` are checked and not sent. The earlier steps of a stream that
    another decoder has begun are repeated before the engine's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.output_processor: Any
        super().__init__(*args, **kwargs)
        self.prefills = PrefillLog()
        self.num_probes = 0
        """The probes that the engine has not answered yet: one or none."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput]:
        """See ``AsyncLLM.generate``.

        Raises:
            ContinuationNotExact: Another decoder has begun this stream, and this engine cannot go on exactly.
        """
        if (times := _times.get()) is not None and times.traceparent is not None:
            options["trace_headers"] = {TRACEPARENT: times.traceparent}
        outputs: AsyncGenerator[RequestOutput] = super().generate(prompt, sampling_params, request_id, **options)
        if _judging.get():
            return outputs
        if times is not None:
            times.num_prompt_tokens += _num_tokens(prompt)
        progress = followed()
        if progress is None:
            return self._noted(prompt, outputs, times)
        number = progress.enter()
        can_force = self.vllm_config.model_config.logits_processors
        if progress.steps_of(number) and must_force(sampling_params) and not can_force:
            raise ContinuationNotExact(
                "The decoder of this answer failed, and no other can go on exactly with a grammar, a penalty, a seed, "
                "bad_words, thinking_token_budget or repetition_detection; send the request again."
            )
        return self._followed(self._noted(prompt, outputs, times), progress, number, request_id)

    async def probe(self, num_tokens: int = 1) -> None:
        """Generates one token from a prompt of so many tokens, and notes nothing of it.

        It does not look into the prefix cache. A prompt of one token leaves nothing there, because it fills no block.
        vLLM's own metrics count it as a request. There must be no other probe at the same time.
        """
        prompt = tokens_input([PROBE_TOKEN] * num_tokens)
        wanted = SamplingParams(
            max_tokens=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=True,
        )
        self.num_probes += 1
        try:
            async with aclosing(super().generate(prompt, wanted, "probe")) as outputs:
                async for _ in outputs:
                    pass
        finally:
            self.num_probes -= 1

    async def add_request(self, request_id: str, prompt: Any, params: Any, **options: Any) -> Any:
        """See ``AsyncLLM.add_request``.

        Raises:
            Accepted: The request was only to be judged, and is right.
        """
        if not _judging.get():
            queue = await super().add_request(request_id, prompt, params, **options)
            repeated = self._replays.repeated.pop(request_id, None)
            return queue if repeated is None else ReplayedOutputs(repeated, queue)
        inputs = {name: value for name, value in options.items() if name not in SET_LATER}
        tasks = await self.get_supported_tasks()
        self.input_processor.process_inputs(request_id, prompt, params, supported_tasks=tasks, **inputs)
        raise Accepted

    def _run_output_handler(self) -> None:
        """Called by vLLM before it reads outputs, first at its own start."""
        if self.output_handler is None:
            made = self.output_processor
            self.output_processor = self._replays = ReplayProcessor(
                made.tokenizer,
                log_stats=made.log_stats,
                stream_interval=made.stream_interval,
                tracing_enabled=made.tracing_enabled,
                admission_stats=made.admission_stats,
            )
        super()._run_output_handler()

    async def _followed(
        self, outputs: AsyncGenerator[RequestOutput], progress: StepLog, number: int, request_id: str
    ) -> AsyncGenerator[RequestOutput]:
        if steps := progress.steps_of(number):  # noted as late as this: an iterator that never runs forgets nothing
            self._replays.steps[request_id] = steps
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    await progress.turn(number)
                    try:
                        progress.note(number, output)
                        yield output
                    finally:
                        progress.passed()
        finally:
            self._replays.forget(request_id)

    async def _noted(
        self, prompt: Any, outputs: AsyncGenerator[RequestOutput], times: EngineTimes | None
    ) -> AsyncGenerator[RequestOutput]:
        self.prefills.arrived(_num_tokens(prompt))
        is_first = True
        async with aclosing(outputs):
            async for output in outputs:
                if times is not None:
                    times.note(output.metrics)
                    times.num_completion_tokens += sum(len(answer.token_ids) for answer in output.outputs)
                if is_first and output.metrics is not None and output.metrics.first_token_ts:
                    is_first = False
                    stats, num_tokens = output.metrics, len(output.prompt_token_ids or ())
                    if stats.scheduled_ts:  # else the whole time since the machine's start would count as busy
                        self.prefills.done(
                            num_tokens, output.num_cached_tokens or 0, stats.scheduled_ts, stats.first_token_ts
                        )
                yield output


def _num_tokens(prompt: Any) -> int:
    return len(prompt.get("prompt_token_ids", ())) if isinstance(prompt, dict) else 0


class SchedulerLog(StatLoggerBase):  # type: ignore[misc]  # vLLM's types are not followed
    """The last report of vLLM's scheduler: running requests, and the used share of the KV cache. An idle engine
    reports nothing."""

    def __init__(self) -> None:
        self.num_running = 0
        self.kv_use = 0.0
        self.stepped_s = time.monotonic()
        """The time at which the engine's last step with work ended, also if it only prefilled a part of a prompt."""

    def record(self, scheduler_stats: SchedulerStats | None, iteration_stats: Any = None, *_: Any, **__: Any) -> None:
        """vLLM calls this after each step. A step in which nothing runs and no output comes is no progress."""
        if iteration_stats is not None or (scheduler_stats is not None and scheduler_stats.num_running_reqs):
            self.stepped_s = time.monotonic()
        if scheduler_stats is not None:
            self.num_running, self.kv_use = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """vLLM requires this method; it has nothing to do here."""
