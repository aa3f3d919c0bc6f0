"""Joining the metrics of many processes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import merge, scaling_text


def process(count: int) -> bytes:
    """Returns the metrics of one process in Prometheus text format."""
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["kind"], registry=registry).labels("a").inc(count)
    Histogram("wait_seconds", "Waits.", registry=registry).observe(count)
    return generate_latest(registry)


def test_samples_keep_their_values_and_say_where_they_come_from() -> None:
    """The merged text has every process's samples once, with one header per family and the labels of their process."""
    merged = merge(
        [({"pool": "encoder", "replica": "0"}, process(2)), ({"pool": "encoder", "replica": "1"}, process(5))]
    )
    families = {family.name: family for family in text_string_to_metric_families(merged.decode())}
    jobs = {
        sample.labels["replica"]: sample.value for sample in families["jobs"].samples if sample.name == "jobs_total"
    }
    assert jobs == {"0": 2, "1": 5}
    sums = {
        sample.labels["replica"]: sample.value for sample in families["wait_seconds"].samples if "sum" in sample.name
    }
    assert sums == {"0": 2, "1": 5}
    assert merged.count(b"# TYPE jobs_total counter") == 1


def test_decisions_on_sizes_are_metrics() -> None:
    """Each pool has its target, what it wants if that is known, and 1 for its reason."""
    text = scaling_text(
        {
            "Decoder": {"target": 3, "wanted": 2, "reason": "window"},
            "Router": {"target": 1, "wanted": None, "reason": "no data"},
        }
    ).decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert samples == [
        'prism_scaling_target{deployment="Decoder"} 3.0',
        'prism_scaling_target{deployment="Router"} 1.0',
        'prism_scaling_wanted{deployment="Decoder"} 2.0',
        'prism_scaling_reason{deployment="Decoder",reason="window"} 1.0',
        'prism_scaling_reason{deployment="Router",reason="no data"} 1.0',
    ]
