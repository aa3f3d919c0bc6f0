"""The states of pools, and why replicas do not start."""

from __future__ import annotations

import pytest

from deployments.ray_serve.status import MAX_MESSAGE_CHARS, no_node_holds, one_line

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


TRACEBACK = """The deployment failed to start 3 times in a row. Error:
\x1b[36mray::ServeReplica:prism:Decoder.initialize_and_get_metadata()\x1b[39m (pid=7, ip=10.0.0.7)
  File "/app/deployments/decoder.py", line 70, in __init__
    raise RuntimeError("no memory left")
RuntimeError: no memory left
"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", ""),
        ("Waiting for a node.", "Waiting for a node."),
        (TRACEBACK, "The deployment failed to start 3 times in a row. Error: RuntimeError: no memory left"),
        (600 * "x", (MAX_MESSAGE_CHARS - 1) * "x" + "…"),
    ],
    ids=["nothing", "a line", "a traceback", "a long line"],
)
def test_a_message_of_serve_is_one_line(message: str, said: str) -> None:
    """A traceback is left out, except for its last line, which names the error."""
    assert one_line(message) == said
