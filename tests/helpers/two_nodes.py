"""Prism on two Ray nodes of this machine, with one replica of each pool per node, for kills of a whole node.

    python -m tests.helpers.two_nodes --kills 5 --seed 1        runs ``loadtest.chaos``, which kills the second node

The head node holds the control store, Serve's controller and HAProxy. When the raylet of the second node is killed, Ray
ends everything that ran there. A new node joins ``REPLACED_AFTER_S`` later, as from an operator of a cluster.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema

from cluster import shared_memory
from deployments.local.processes import adopt_orphans, descendants, end_children, minded
from deployments.ray_serve import haproxy
from deployments.ray_serve.session import deploy
from loadtest.chaos.processes import ClusterProcesses
from loadtest.servers import LOOPBACK, changed_app, free_port, sized

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_NODES: Final = 2
REPLACED_AFTER_S: Final = 5.0
NODE: Final[dict[str, Any]] = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
POOLS: Final = ("Router", "Preprocessor", "VisionEncoder", "Decoder")


class TwoNodes:
    """Two Ray nodes with Prism on them, started by the main thread, which Ray needs for that.

    Args:
        port: The port for HTTP.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self._cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        self._cluster.add_node(**NODE)
        self._died_s: float | None = None
        ray.init(address=self._cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": LOOPBACK, "port": port})
        deploy(ServeDeploySchema.model_validate(application()))

    def look(self) -> None:
        """Adds a node if the second one has been dead for a while. Call it regularly, from the main thread."""
        if ClusterProcesses(psutil.Process()).of("raylet"):
            self._died_s = None
        elif self._died_s is None:
            self._died_s = time.monotonic()
        elif time.monotonic() > self._died_s + REPLACED_AFTER_S:
            self._cluster.add_node(wait=False, **NODE)
            self._died_s = None

    def end(self) -> None:
        """Ends both nodes."""
        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Runs Prism on two nodes inside the block.

    Args:
        folder: An empty folder with a short path.
    """
    adopt_orphans()
    strangers = descendants()
    os.environ.update(
        {"TMPDIR": str(folder), **haproxy.environment(folder, max_stream_s=60, fallback_port=free_port())}
    )
    tempfile.tempdir = None  # read TMPDIR again
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    held: set[Path] = set()
    try:
        with minded(held, strangers):
            nodes = TwoNodes(free_port())
            yield nodes
        nodes.end()
    finally:
        held |= shared_memory.held_by(descendants(but=strangers))
        end_children(but=strangers)
        shared_memory.unlink(held)


def application() -> dict[str, Any]:
    """The embedded default with one replica of each pool on each node."""
    sizes: dict[str, Any] = {name: {**sized(NUM_NODES), "max_replicas_per_node": 1} for name in POOLS}
    content = changed_app({**sizes, "decoder": {"shared_bytes": 16 * 2**20}})
    for pool in ("router", "preprocessor", "encoder", "decoder"):
        del content["applications"][0]["args"][pool]["resources"]["pool_label"]
    return content


def main() -> int:
    """Runs chaos on two nodes with the given options; returns its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with (
        tempfile.TemporaryDirectory(prefix="tn-", dir="/tmp", ignore_cleanup_errors=True) as name,
        two_nodes(Path(name)) as nodes,
    ):
        line = [sys.executable, "-m", "loadtest.chaos", "--url", nodes.url, "--root", str(os.getpid())]
        chaos = subprocess.Popen([*line, "--kinds", "raylet:kill", *sys.argv[1:]])
        while chaos.poll() is None:
            nodes.look()
            time.sleep(1)
        return chaos.returncode


if __name__ == "__main__":
    sys.exit(main())
