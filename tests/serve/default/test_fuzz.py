"""Random requests, valid and invalid, get documented answers from a whole cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.fields import fuzz_fields
from tests.fuzz.surface import fuzz_surface

if TYPE_CHECKING:
    from deployments.local.launch import Cluster

SEED = 15


def test_every_answer_is_documented(cluster: Cluster) -> None:
    """Requests that are made from the OpenAPI document, and requests that break it, get no 5xx, and a status, headers
    and a body that the document has."""
    found = fuzz_surface(cluster.url, num=30, number=SEED)
    assert found.faults == {}
    statuses = {answer.rpartition(" ")[2] for answer in found.answers}
    assert {"200", "400", "404"} <= statuses


def test_junk_in_a_field_is_refused_by_name(cluster: Cluster) -> None:
    """Junk in any field that vLLM knows is served or refused with a typed 4xx, whose ``param`` is that field."""
    found = fuzz_fields(cluster.url, num=400, number=SEED)
    assert found.faults == {}
    assert found.unnamed == {}
    assert found.answers["200"] > 20
