"""The states of pools, and why replicas do not start."""

from __future__ import annotations

import pytest

from deployments.ray_serve.status import no_node_holds

NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 8.0, "disk": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ({"GPU": 2, "CPU": 8}, ""),
        ({"GPU": 4, "CPU": 5}, "Each replica needs 4 GPUs on one node, and the largest node has 2."),
        ({"GPU": 2, "disk": 1}, "Each replica needs 2 GPUs and 1 disks on one node, and no node has all of it."),
        ({"GPU": 3, "CPU": 8, "TPU": 0}, "Each replica needs 3 GPUs on one node, and the largest node has 2."),
        ({"GPU": 0, "CPU": 9}, "Each replica needs 9 CPUs on one node, and the largest node has 8."),
    ],
)
def test_a_replica_that_fits_no_node_is_named(need: dict[str, float], said: str) -> None:
    """The message names what no living node has enough of, even if all nodes together have it."""
    assert no_node_holds(need, NODES) == said
