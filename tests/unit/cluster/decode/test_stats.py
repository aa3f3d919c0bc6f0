"""Reports of vLLM's scheduler, as progress of the engine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from cluster.decode.stats import SchedulerLog

if TYPE_CHECKING:
    import pytest


def test_steps_with_work_are_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that has an output or that runs a request is progress. A step in which all requests wait is not."""
    log, now_s = SchedulerLog(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    for number, (stats, outputs, is_progress) in enumerate(
        [
            (SchedulerStats(num_running_reqs=1), IterationStats(), True),
            (SchedulerStats(num_running_reqs=1), None, True),  # a part of a long prompt
            (SchedulerStats(num_running_reqs=0), IterationStats(), True),  # the end of the last request
            (SchedulerStats(num_running_reqs=0, num_waiting_reqs=3), None, False),
            (None, None, False),
        ]
    ):
        now_s[0] = 200.0 + number
        log.record(stats, outputs)
        assert (log.stepped_s == now_s[0]) is is_progress, number
