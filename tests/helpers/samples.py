"""Reads single figures from Prism's ``/metrics``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    import httpx


async def counted(client: httpx.AsyncClient, name: str, pool: str, **labels: str) -> Counter[str]:
    """Returns the value of a counter for each replica of a pool."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == name and {"pool": pool, **labels}.items() <= sample.labels.items():
                found[sample.labels["replica"]] += int(sample.value)
    return found


async def lookups(client: httpx.AsyncClient, outcome: str) -> Counter[str]:
    """Returns the number of cache lookups with a given outcome, for each encoder."""
    return await counted(client, "prism_embedding_cache_lookups_total", "encoder", outcome=outcome)
