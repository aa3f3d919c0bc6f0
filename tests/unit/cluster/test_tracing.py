"""Traces, at a real collector on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cluster.errors import Overloaded
from cluster.stream import Answer
from cluster.tracing import Tracing
from tests.helpers.collector import Collector, collecting
from tests.helpers.http_surface import served
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cluster.access_log import AccessRecord
    from cluster.deadline import Deadline

PATH = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A running collector. Spans are sent to it at once."""
    with collecting() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield running


async def serve(_: str, raw: bytes, __: Any, deadline: Deadline, record: AccessRecord) -> Answer:
    """Serves a short answer, or fails if the body says so."""

    async def nothing() -> AsyncGenerator[str]:
        return
        yield

    record.waterfall.reach("receive")
    if b"fail" in raw:
        raise Overloaded("Full.")
    record.waterfall.reach("parse")
    record.waterfall.reach_first_piece({"prefill": 0.25})
    record.num_pictures = 2
    assert record.trace is not None
    return Answer(record.trace.traceparent, nothing(), False, False, deadline)


async def asked(collector: Collector, content: bytes, traceparent: bytes) -> httpx.Response:
    """Sends one request to a Router's HTTP surface, with a collector."""
    async with (
        served(serve, timeout_s=5, traces_endpoint=collector.url) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        return await client.post(PATH, content=content, headers={b"traceparent": traceparent})


async def test_a_request_is_a_span_and_its_stages_are_spans_below_it(collector: Collector) -> None:
    """The request's span is a child of the client's. The stages follow each other inside of it."""
    answer = await asked(collector, b"{}", f"00-{TRACE}-{PARENT}-01".encode())

    async def has_come() -> bool:
        return PATH in collector.of_trace(TRACE)

    await until(has_come, 20, "no span has come")
    spans = collector.of_trace(TRACE)
    root = spans.pop(PATH)
    assert root.parent_span_id.hex() == PARENT
    assert answer.text == f"00-{TRACE}-{root.span_id.hex()}-01"
    assert {"receive", "parse", "transfer", "prefill"} <= spans.keys()
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    prefill = spans["prefill"]
    assert prefill.end_time_unix_nano - prefill.start_time_unix_nano == 250_000_000
    assert spans["receive"].end_time_unix_nano == spans["parse"].start_time_unix_nano
    attributes = {each.key: each.value for each in root.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["pictures"].int_value == 2


async def test_a_failure_names_its_code(collector: Collector) -> None:
    """The span of a request that failed has the error's code and status. Without a traceparent it begins a trace."""
    before = len(collector.spans)
    assert (await asked(collector, b'"fail"', b"00-nonsense-\xff-01")).status_code == 429

    def failed() -> list[Any]:
        return [span for span in collector.spans[before:] if span.name == PATH]

    async def has_come() -> bool:
        return bool(failed())

    await until(has_come, 20, "no span has come")
    [root] = failed()
    assert not root.parent_span_id
    assert {each.key: each.value.string_value for each in root.attributes}["error.type"] == "overloaded"


async def test_a_client_that_does_not_sample_gets_no_spans(collector: Collector) -> None:
    """A traceparent that is not sampled is passed on, and nothing is sent to the collector."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await asked(collector, b"{}", f"00-{trace}-{PARENT}-00".encode())
    assert answer.text.startswith(f"00-{trace}-")
    assert answer.text.endswith("-00")
    assert not collector.of_trace(trace)


def test_without_a_collector_there_is_no_trace() -> None:
    """A process without a collector makes no trace."""
    assert Tracing(None).begin(PATH, f"00-{TRACE}-{PARENT}-01") is None
