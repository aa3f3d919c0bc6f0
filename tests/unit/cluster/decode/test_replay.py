"""Repeating tokens in vLLM's output processor. ``tests/serve/test_replay.py`` repeats them in a real engine."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from cluster.decode.replay import ReplayProcessor, must_force
from cluster.decode.steps import Share, Step


@pytest.mark.parametrize(
    ("options", "is_forced"),
    [
        ({"temperature": 0.0, "seed": 1}, False),
        ({"temperature": 0.7, "seed": 1}, True),
        ({"temperature": 0.7}, False),
        ({"stop": ["a"], "logprobs": 2, "min_tokens": 3, "logit_bias": {1: 2.0}}, False),
        ({"frequency_penalty": 0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"bad_words": ["a"]}, True),
    ],
)
def test_what_an_engine_counts_is_forced(options: dict[str, Any], *, is_forced: bool) -> None:
    """Tokens are forced if the engine has to count them itself, and are part of the prompt otherwise."""
    assert must_force(SamplingParams(**options)) is is_forced


def repeating(*steps: Step, is_traced: bool = False, **options: Any) -> tuple[ReplayProcessor, RequestOutputCollector]:
    """Returns a processor that has repeated the steps of a request with a prompt of three tokens, and its queue."""
    processor = ReplayProcessor(None, log_stats=True, tracing_enabled=is_traced)
    processor.steps["api"] = list(steps)
    params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.DELTA, max_tokens=9, **options)
    request = EngineCoreRequest("core", [1, 2, 3], None, params, None, 0.0, None, None, None, external_req_id="api")
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "core")
    processor.add_request(request, None, None, 0, queue)
    return processor, queue


def test_an_answer_has_the_times_of_the_outputs_that_are_dropped() -> None:
    """The first output behind forced tokens tells when the engine took the request and what it found in its cache."""
    processor, queue = repeating(Step(0, (Share(0, [5, 6], None, None, is_last=False),)), seed=1)
    prefill = PrefillStats()
    prefill.set(3, 2, 0)
    events = [
        EngineCoreEvent(EngineCoreEventType.QUEUED, 50.0),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, 60.0),
    ]
    first = EngineCoreOutput("core", [5], events=events, prefill_stats=prefill)
    for number, output in enumerate([first, EngineCoreOutput("core", [6]), EngineCoreOutput("core", [7])]):
        assert queue.get_nowait() is None
        processor.process_outputs([output], 70.0 + number, IterationStats())
    made = queue.get_nowait()
    assert made is not None
    assert made.outputs[0].token_ids == [7]
    assert made.num_cached_tokens == 2
    stats = made.metrics
    assert (stats.queued_ts, stats.scheduled_ts, stats.first_token_ts) == (50, 60, 72)


def test_a_finished_answer_is_repeated_with_tracing() -> None:
    """An answer that had ended is repeated without a span of its own."""
    processor, _ = repeating(Step(0, (Share(0, [5], "length", None, is_last=True),)), is_traced=True)
    [output] = processor.repeated["api"]
    assert output.outputs[0].finish_reason == "length"


def test_an_answer_that_repeated_itself_ends_again() -> None:
    """An answer that vLLM ended for its repetition has the same end when it is repeated."""
    processor, _ = repeating(Step(0, (Share(0, [5], "repetition", None, is_last=True),)))
    [output] = processor.repeated["api"]
    assert output.finished
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("repetition", "repetition_detected")
