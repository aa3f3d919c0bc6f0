"""Judging a run."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from loadtest.judgement import BROKEN, HELD, VOID, Verdict, judge
from loadtest.records import RecordedRun, RequestRecord
from loadtest.slo import Slo

EVERY = RequestRecord(0, "text", 0.0, 0.001, 0.9, "answered", "", 0.2, 0.05, (0.04, 0.06), 3)
LOOSE = Slo({("ttft_s", "p99"): 1.0}, {"ttft_s": 0.5, "itl_s": 0.1}, 0.9, 0.0, 0.0)


def run_of(*records: RequestRecord) -> RecordedRun:
    """A run of requests that arrive ten times a second."""
    return RecordedRun("a test", [replace(record, at_s=index / 10) for index, record in enumerate(records)])


def found(verdict: Verdict, name: str) -> tuple[str, bool]:
    """The figure of a line, and whether its objective is met."""
    return next((line.found, line.is_held) for line in verdict.lines if line.name == name)


@pytest.mark.parametrize(
    ("name", "level", "rank"), [("ttft_s", "p50", 50), ("ttft_s", "p90", 90), ("latency_s", "p95", 95)]
)
def test_a_percentile_just_above_its_limit_breaks_it(name: str, level: str, rank: int) -> None:
    """Of the times 0.00, 0.01 … 0.99 s the n-th percentile is n hundredths: that limit holds, and any lower breaks."""
    records = [replace(EVERY, ttft_s=number / 100, latency_s=number / 100) for number in range(100)]
    random.Random(1).shuffle(records)
    for limit_s, code in ((rank / 100, HELD), (rank / 100 - 0.001, BROKEN)):
        verdict = judge(run_of(*records), Slo({(name, level): limit_s}, {}, None, 0.0, 0.0))
        assert verdict.code == code
        assert found(verdict, f"{name} {level}") == (f"{rank / 100:.4f}", code == HELD)


def test_goodput_counts_answers_within_every_limit() -> None:
    """An answer that is late in one of two times is not good. An answer of one token has no ITL to be late in."""
    slow, stuttering = replace(EVERY, ttft_s=0.6), replace(EVERY, itl_s=0.2)
    short = replace(EVERY, itl_s=None, icl_s=(), num_tokens=1)
    verdict = judge(run_of(slow, stuttering, short, *[EVERY] * 7), LOOSE)
    assert found(verdict, "good share") == ("0.8000", False)
    assert verdict.code == BROKEN
    # The last of ten requests starts after 0.9 s and 1 ms of lag, and takes 0.9 s.
    assert f"goodput: {8 / 1.801:.2f} requests/s" in verdict.summary


def test_refused_requests_are_not_failures() -> None:
    """Each has a limit of its own. Requests that did not end count as failed."""
    refused = replace(EVERY, outcome="refused", cause="429 overloaded", ttft_s=None, itl_s=None, icl_s=())
    failed, unfinished = replace(refused, outcome="failed"), replace(refused, outcome="unfinished")
    verdict = judge(run_of(refused, failed, unfinished, EVERY), replace(LOOSE, min_good_share=None))
    assert found(verdict, "refused share") == ("0.2500", False)
    assert found(verdict, "failed share") == ("0.5000", False)
    allowed = replace(LOOSE, min_good_share=None, max_failed_share=0.5, max_refused_share=0.25)
    assert judge(run_of(refused, failed, unfinished, EVERY), allowed).code == HELD


def test_a_late_load_is_void_and_so_is_none() -> None:
    """Two of a hundred requests that are 11 ms late make a run void, even if it breaks no objective."""
    late = replace(EVERY, lag_s=0.011)
    assert judge(run_of(*[EVERY] * 99, late), LOOSE).code == VOID
    assert judge(run_of(*[EVERY] * 199, late), LOOSE).code == HELD
    assert judge(run_of(), LOOSE).code == VOID


def test_an_objective_without_data_is_broken() -> None:
    """If nothing was answered, no percentile meets its limit."""
    failed = replace(EVERY, outcome="failed", ttft_s=None, itl_s=None, icl_s=())
    verdict = judge(run_of(failed), replace(LOOSE, max_failed_share=1.0, min_good_share=None))
    assert found(verdict, "ttft_s p99") == ("no data", False)
    assert verdict.code == BROKEN
