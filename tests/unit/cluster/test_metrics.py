"""Joining the metrics of many processes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cluster import metrics
from cluster.metrics import answered_text, merge, scaling_text


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


def test_awkward_labels_and_values_survive() -> None:
    """Label values with braces, quotes, commas, line breaks and spaces are kept, and so are all kinds of numbers."""
    registry = CollectorRegistry()
    gauge = Gauge("odd", 'Odd "things" with {braces}.', ["what", "why"], registry=registry)
    values = {'a"b': 1.5, "a}b {c} 1": float("inf"), "x\\ny\n,z=": -1e-9, 'pool="q",pool=': 7}
    for name, value in values.items():
        gauge.labels(name, "").set(value)
    merged = merge([({"pool": 'p"1\\', "replica": "r"}, generate_latest(registry))])
    [family] = text_string_to_metric_families(merged.decode())
    assert {sample.labels["what"]: sample.value for sample in family.samples} == values
    assert {(sample.labels["pool"], sample.labels["replica"]) for sample in family.samples} == {('p"1\\', "r")}


def test_a_label_of_the_same_name_is_renamed() -> None:
    """A sample's own label ``pool`` becomes ``exported_pool``, wherever it stands."""
    registry = CollectorRegistry()
    Gauge("first", "One.", ["pool", "a"], registry=registry).labels("own", "1").set(1)
    Gauge("last", "Two.", ["a", "pool"], registry=registry).labels("1", "own").set(2)
    Gauge("alike", "Three.", ["mypool", "pools"], registry=registry).labels("1", "2").set(3)
    merged = merge([({"pool": "decoder"}, generate_latest(registry))]).decode()
    first, last, alike = text_string_to_metric_families(merged)
    assert first.samples[0].labels == last.samples[0].labels == {"pool": "decoder", "exported_pool": "own", "a": "1"}
    assert alike.samples[0].labels == {"pool": "decoder", "mypool": "1", "pools": "2"}


def test_prisms_own_metrics_leave_the_labels_pool_and_replica_free() -> None:
    """No metric of Prism's own has a label that the merge adds."""
    own = [value for value in vars(metrics).values() if isinstance(value, Counter | Gauge | Histogram)]
    assert len(own) > 8
    assert [metric for metric in own if {"pool", "replica"} & set(metric._labelnames)] == []


def test_a_scrape_says_who_answered() -> None:
    """A replica that answered has 1, and one that did not has 0."""
    text = answered_text({"decoder": {"a": True, "b": False}, "encoder": {}}).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        'prism_replica_answered{pool="decoder",replica="a"} 1.0',
        'prism_replica_answered{pool="decoder",replica="b"} 0.0',
    ]


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
