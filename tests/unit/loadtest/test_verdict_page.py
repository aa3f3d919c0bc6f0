"""The report of a verdict."""

from __future__ import annotations

from loadtest.records import RequestRecord
from loadtest.verdict_page import in_flight


def test_requests_in_flight_are_counted() -> None:
    """A request is in flight from sending to its end, whatever the end is."""
    spans = [(0.0, 2.0), (1.0, 3.0), (2.5, 0.25)]
    records = [RequestRecord(0, "text", start_s, 0.0, span_s, "failed") for start_s, span_s in spans]
    assert in_flight(records) == ([0.0, 1.0, 2.0, 2.5, 2.75, 4.0], [1, 2, 1, 2, 1, 0])
