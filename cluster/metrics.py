"""Prism's own metrics, and a function that merges the metrics of several processes into one Prometheus text."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REQUESTS: Final = Counter(
    "prism_requests", "Requests that ended, by endpoint, HTTP status and error code.", ["endpoint", "status", "code"]
)
TENANT_REQUESTS: Final = Counter("prism_tenant_requests", "Requests of each tenant that ended.", ["tenant", "code"])
TENANT_PICTURE_TOKENS: Final = Counter(
    "prism_tenant_picture_tokens", "Tokens of the pictures of each tenant, estimated from their headers.", ["tenant"]
)
KEYS: Final = Gauge("prism_keys", "API keys that are valid for this Router; 0 if it needs none.")
KEYS_BROKEN: Final = Gauge(
    "prism_keys_broken", "1 if the file of API keys cannot be read as it is now; 0 otherwise, and without a file."
)
RETRIES: Final = Counter(
    "prism_retries", "Calls that were sent again because a replica failed, by its pool.", ["called"]
)
CONTINUATIONS: Final = Counter(
    "prism_continuations",
    "Streams whose decoder failed, and that another one continued, or else the code of the error that ended them.",
    ["outcome"],
)
IN_FLIGHT: Final = Gauge("prism_requests_in_flight", "Requests that hold a slot of this Router replica now.")
WAITING: Final = Gauge(
    "prism_waiting_requests", "Requests that wait in this Router replica because a stage is full, by stage.", ["stage"]
)
OLDEST_WAIT_S: Final = Gauge(
    "prism_oldest_wait_seconds", "Seconds that the oldest of these requests has waited, by stage.", ["stage"]
)
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
QUEUE_LENGTH: Final = Gauge("prism_queue_length", "Calls that wait for their turn in this replica.")
QUEUE_OLDEST_S: Final = Gauge("prism_queue_oldest_wait_seconds", "Seconds that the oldest of these calls has waited.")
EMBEDDINGS_LOST: Final = Counter(
    "prism_embeddings_lost", "Embeddings that were gone from shared memory before the engine read them."
)
CLAIMS: Final = Counter(
    "prism_claims",
    "Questions of an encoder at a picture's home: granted, lent, elsewhere (another encoder makes it), "
    "absent (the home has gone), or failed (no reply in time).",
    ["outcome"],
)
CHILDREN_ENDED: Final = Counter(
    "prism_children_ended",
    "Child processes of a preprocessor that ended: overdue, expensive, crashed, killed, stuck, left (the caller), "
    "idle (between pictures), template (with their template).",
    ["reason"],
)
STAGE_S: Final = Histogram(
    "prism_stage_seconds",
    "Seconds that answered requests spent in each stage. "
    "Without ingress, the stages up to first_token add up to the time to the first token.",
    ["stage"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 60),
)
SHARED_BYTES: Final = Gauge(
    "prism_shared_bytes", "Bytes of embeddings that this decoder holds in shared memory, or has reserved for them."
)
FIRST_PIECE_S: Final = Histogram(
    "prism_time_to_first_token_seconds",
    "Seconds from the arrival of a streamed request at the Router to its first SSE event, reading the body included.",
    ["endpoint"],
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 60),
)


def merge(texts: Iterable[tuple[Mapping[str, str], bytes]]) -> bytes:
    """Merges the Prometheus texts of several processes into one, line by line.

    Samples are not parsed, because the Router pays for this. Measured (two shared cores of an AMD EPYC, 24 replicas
    with 1,410 lines each, 2026-11-30): CPU time with prometheus_client's parser → by lines: 0.89 s → 0.07 s.

    Args:
        texts: Pairs of labels (``pool`` and ``replica``) and the text of one process, as ``generate_latest`` writes it.
            The labels are added to each of its samples. If a sample has a label of the same name, that one is renamed
            to ``exported_…``, as Prometheus does.
    """
    families: dict[bytes, tuple[dict[bytes, bytes], list[bytes]]] = {}
    for labels, text in texts:
        added = b",".join(b'%s="%s"' % (name.encode(), _escaped(value)) for name, value in labels.items())
        taken = tuple(name.encode() + b'="' for name in labels)
        _, samples = families.setdefault(b"", ({}, []))
        for line in text.split(b"\n"):
            if line.startswith((b"# HELP ", b"# TYPE ")):
                _, kind, name, _ = line.split(b" ", 3)
                headers, samples = families.setdefault(name, ({}, []))
                headers.setdefault(kind, line)
            elif line and line[:1] != b"#":
                metric, brace, rest = line.partition(b"{")
                if not added:
                    samples.append(line)
                elif not brace:
                    samples.append(line.replace(b" ", b"{%s} " % added, 1))
                else:
                    if any(map(rest.__contains__, taken)):
                        rest = OWN_LABEL.sub(partial(_renamed, frozenset(labels)), rest)
                    samples.append(b"%s{%s,%s" % (metric, added, rest))
    lines = [line for headers, samples in families.values() for line in (*headers.values(), *samples)]
    return b"\n".join([*lines, b""])


def answered_text(answered: Mapping[str, Mapping[str, bool]]) -> bytes:
    """The replicas that did and did not answer a scrape in time, as Prometheus text.

    Args:
        answered: Whether a replica answered, by its pool and its name.
    """
    registry = CollectorRegistry()
    gauge = Gauge(
        "prism_replica_answered",
        "1 if a replica answered this scrape in time; 0 if its metrics are missing.",
        ["pool", "replica"],
        registry=registry,
    )
    for pool, replicas in answered.items():
        for replica, has_answered in replicas.items():
            gauge.labels(pool, replica).set(has_answered)
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


OWN_LABEL: Final = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')


def _renamed(taken: frozenset[str], label: re.Match[bytes]) -> bytes:
    return b"exported_" + label[0] if label[1].decode() in taken else label[0]


def _escaped(value: str) -> bytes:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").encode()
