"""The comparison of two clients."""

from __future__ import annotations

import pytest

from loadtest.report import Row, compare


@pytest.mark.parametrize(
    ("ttft_ms", "icl_ms", "agree"),
    [
        (11.0, 5.4, True),
        (9.0, 4.6, True),
        (11.1, 5.0, False),
        (10.0, 4.4, False),
        (None, 5.0, False),
        (10.0, None, False),
    ],
)
def test_medians_agree_within_a_tenth_of_locusts(ttft_ms: float | None, icl_ms: float | None, agree: bool) -> None:
    """Each median is compared with Locust's 10 ms and 5 ms. A missing figure is a disagreement."""
    medians_ms = {
        ("TTFT", "chat text"): 10.0,
        ("ICL", "chat text"): 5.0,
        ("POST", "chat text"): 99.0,
        ("ITL", "chat text"): 50.0,
    }
    seen = {"TTFT": ttft_ms, "ICL": icl_ms, "ITL": 1.0}
    rows = [Row(latency, "chat text", 1, p50, p50, p50) for latency, p50 in seen.items() if p50 is not None]
    assert compare(rows, medians_ms, tolerance=0.1).agree is agree
