"""Prism on two Ray nodes of this machine, with one replica of each pool per node, for kills of a whole node.

    python -m tests.helpers.two_nodes --kills 5 --seed 1        runs ``loadtest.chaos``, which kills the second node

The head node holds the control store, Serve's controller and HAProxy. When the raylet of the second node is killed, Ray
ends everything that ran there. A new node joins ``REPLACED_AFTER_S`` later, as from an operator of a cluster.
"""

from __future__ import annotations

import logging
import os
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

from deployments.local.processes import adopt_orphans, descendants, end_children, every
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


@contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """Runs Prism on two nodes inside the block and yields its address. A second node that dies is replaced.

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
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(**NODE)]
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": LOOPBACK, "port": port})
        deploy(ServeDeploySchema.model_validate(application()))
        died_s: list[float] = []

        def replace() -> None:
            if ClusterProcesses(psutil.Process()).of("raylet"):
                died_s.clear()
            elif not died_s:
                died_s.append(time.monotonic())
            elif time.monotonic() > died_s[0] + REPLACED_AFTER_S:
                nodes.append(cluster.add_node(wait=False, **NODE))

        with every(1.0, replace):
            yield f"http://{LOOPBACK}:{port}"
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
        end_children(but=strangers)


def application() -> dict[str, Any]:
    """The embedded default with one replica of each pool on each node."""
    sizes: dict[str, Any] = {name: {**sized(NUM_NODES), "max_replicas_per_node": 1} for name in POOLS}
    content = changed_app({**sizes, "decoder": {"shared_bytes": 16 * 2**20}})
    for pool in ("router", "preprocessor", "encoder", "decoder"):
        del content["applications"][0]["args"][pool]["resources"]["pool_label"]
    return content


def main() -> int:
    """Runs chaos on two nodes with the given options; returns its exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="tn-", dir="/tmp", ignore_cleanup_errors=True) as name,
        two_nodes(Path(name)) as url,
    ):
        line = [sys.executable, "-m", "loadtest.chaos", "--url", url, "--root", str(os.getpid())]
        return subprocess.run([*line, "--kinds", "raylet:kill", *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
