"""A decoder that no node can hold stays pending, and ``prism status`` says why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from loadtest.servers import ROOT, free_port

CLUSTER = """
    import json, subprocess, sys
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from deployments.ray_serve.status import controller_client, read_pool_states
    from tests.helpers.closed_loop import paced_file
    from tests.helpers.launching import PRISM
    from tests.helpers.waiting import wait_until

    port = int(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2, num_gpus=2)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        content = paced_file("joint").serve.model_dump(exclude_unset=True)
        content["applications"][0]["args"]["decoder"] |= {"device": "cuda", "tensor_parallel_size": 4}
        controller_client().deploy_apps(type(paced_file("joint").serve).model_validate(content))
        wait_until(lambda: read_pool_states().get("Router", {}).get("status") == "HEALTHY", 120, "no Router")
        shown = subprocess.run([PRISM, "status", "--url", f"http://127.0.0.1:{port}"], capture_output=True, text=True)
        print(json.dumps([shown.returncode, shown.stdout, shown.stderr]))
    finally:
        ray.shutdown()
        cluster.shutdown()
"""


def test_a_decoder_that_fits_no_node_is_pending_with_a_reason() -> None:
    """Two nodes with two GPUs each hold no decoder over four. It stays pending, the status says that no node has four
    GPUs, and the cluster is not ready."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        line = [sys.executable, "-c", textwrap.dedent(CLUSTER), str(free_port())]
        environment = {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin", "HOME": folder, "TMPDIR": folder}
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    code, shown, said = json.loads(done.stdout.splitlines()[-1])
    [decoder] = [row.split("\t") for row in shown.splitlines() if row.startswith("Decoder\t")]
    assert decoder[2] == "1 starting"
    assert decoder[3] == "Each replica needs 4 GPUs on one node, and the largest node has 2."
    assert code == 3
    assert "not ready" in said
