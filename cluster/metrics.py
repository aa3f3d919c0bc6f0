"""Prism's own metrics, and a function that merges the metrics of several processes into one Prometheus text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REQUESTS: Final = Counter(
    "prism_requests", "Requests that ended, by endpoint, HTTP status and error code.", ["endpoint", "status", "code"]
)
RETRIES: Final = Counter("prism_retries", "Calls that were sent again because a replica of a pool failed.", ["pool"])
IN_FLIGHT: Final = Gauge("prism_requests_in_flight", "Requests that hold a slot of this Router replica now.")
ENGINE_REQUESTS: Final = Gauge(
    "prism_engine_requests",
    "Requests that the decoder's engine holds now. vLLM's own gauge is not updated while the engine is idle.",
)
FETCHES: Final = Counter(
    "prism_fetches", "Fetches of https: pictures, by ok, cancelled, or the code of their error.", ["outcome"]
)
PICTURES: Final = Counter("prism_pictures", "Pictures that a stage has worked on.", ["stage"])
CACHE_LOOKUPS: Final = Counter(
    "prism_embedding_cache_lookups",
    "Pictures asked of an encoder or a decoder: kept (hit), being encoded for another request (joined), "
    "kept by another encoder (lent), or new (miss).",
    ["outcome"],
)
CACHE_BYTES: Final = Gauge("prism_embedding_cache_bytes", "Bytes of the embeddings that this replica keeps.")
STAGE_S: Final = Histogram(
    "prism_stage_seconds",
    "Seconds that answered requests spent in each stage. "
    "Without ingress, the stages up to first_token add up to the time to the first token.",
    ["stage"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 60),
)
SHARED_BYTES: Final = Gauge("prism_shared_bytes", "Bytes of embeddings that this decoder holds in shared memory.")
FIRST_PIECE_S: Final = Histogram(
    "prism_time_to_first_token_seconds",
    "Seconds from the arrival of a streamed request at the Router to its first SSE event, reading the body included.",
    ["endpoint"],
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 60),
)


def merge(texts: Iterable[tuple[Mapping[str, str], bytes]]) -> bytes:
    """Merges the Prometheus texts of several processes into one.

    Args:
        texts: Pairs of labels (``pool`` and ``replica``) and the text of one process. The labels are added to each of
            its samples.
    """
    families: dict[str, Metric] = {}
    for labels, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                joined.add_sample(sample.name, {**sample.labels, **labels}, sample.value, sample.timestamp)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


def scaling_text(decisions: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The last decisions on the sizes of pools, as Prometheus text.

    Args:
        decisions: ``target``, ``wanted`` and ``reason`` by the name of the deployment.
    """
    registry = CollectorRegistry()
    target = Gauge("prism_scaling_target", "Replicas that the pool should have.", ["deployment"], registry=registry)
    wanted = Gauge("prism_scaling_wanted", "Replicas that would suit the load now.", ["deployment"], registry=registry)
    reason = Gauge(
        "prism_scaling_reason", "1 for the reason of the last decision.", ["deployment", "reason"], registry=registry
    )
    for deployment, decision in decisions.items():
        target.labels(deployment).set(decision["target"])
        if decision["wanted"] is not None:
            wanted.labels(deployment).set(decision["wanted"])
        reason.labels(deployment, decision["reason"]).set(1)
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
