"""The prompt tokens that a decoder has to prefill, as the scaling policy counts them."""

from __future__ import annotations

import random

import pytest

from cluster.decode.prefills import PrefillLog
from cluster.scaling.work import OFFERED


def test_prompts_that_overlap_in_time_count_once() -> None:
    """The busy time is that in which at least one prompt was being prefilled."""
    log = PrefillLog()
    spans = [(10, 12), (11, 13), (13, 14), (20, 21)]
    for scheduled_s, first_token_s in spans:
        log.done(100, 0, scheduled_s, first_token_s)
    assert (log.num_tokens, log.busy_s) == (400, 5)


def test_answers_that_report_at_their_end_count_the_same() -> None:
    """An answer that is not streamed reports when it is whole, so prompts are reported in any order."""
    draw = random.Random(3)
    spans = [(start, start + draw.uniform(0.1, 3)) for start in (draw.uniform(0, 300) for _ in range(200))]
    orders = [sorted(spans), sorted(spans, key=lambda span: span[1]), spans]
    busy_s = []
    for order in orders:
        log = PrefillLog()
        for span in order:
            log.done(1, 0, *span)
        busy_s.append(log.busy_s)
    covered = sum(any(first <= at_ms / 1000 < last for first, last in spans) for at_ms in range(0, 310_000, 10)) / 100
    assert busy_s == pytest.approx([covered] * 3, rel=0.01)


def test_tokens_in_the_prefix_cache_are_no_work() -> None:
    """Tokens that were found in the prefix cache are not counted as computed."""
    log = PrefillLog()
    log.done(100, 90, 0, 1)
    assert log.num_tokens == 10


def test_what_comes_is_estimated_from_what_was_computed() -> None:
    """Once most tokens of earlier prompts were in the prefix cache, a new prompt is expected to need as few."""
    log = PrefillLog()
    log.arrived(100)
    assert log.offered.stats(0, 0)[OFFERED] == 100
    for at_s in range(500):
        log.done(100, 80, at_s, at_s + 1)
    log.arrived(100)
    assert log.offered.stats(0, 0)[OFFERED] == pytest.approx(120, rel=0.01)
