"""Processes are found by their titles and parents."""

from __future__ import annotations

import subprocess
import sys

import psutil

from loadtest.chaos.processes import ClusterProcesses, is_alive

SLEEP = "print(1, flush=True); import time; time.sleep(60)"
PLAYED = f"""
export TITLE=cluster.isolation.child
(exec -a 'ray::ServeReplica:prism:Decoder' bash -c 'bash -c "{sys.executable} -c \\"{SLEEP}\\" & wait" & wait') &
(exec -a 'ray::ServeReplica:prism:Preprocessor' bash -c '(exec -a $TITLE bash -c "
    exec -a \\$TITLE {sys.executable} -c \\"{SLEEP}\\" & wait") & wait') &
(exec -a 'ray::ServeController.run' {sys.executable} -c "{SLEEP}") &
wait
"""
"""A decoder with an engine that has a worker, a preprocessor with a template and a child, and a controller."""


def test_parts_of_a_cluster_are_found() -> None:
    """An engine is a child of a decoder, a worker one of an engine, and a child of a template no template."""
    with subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(PLAYED.encode())
        shell.stdin.close()
        assert sorted(shell.stdout.read(6)) == sorted(b"1\n" * 3)  # three processes write at the same time
        root = psutil.Process(shell.pid)
        processes = ClusterProcesses(root)
        found = {
            part: processes.of(part)
            for part in ("router", "decoder", "engine", "worker", "preprocessor", "template", "child", "controller")
        }
        counts = processes.num_replicas()
        owner = processes.owner(found["worker"][0])
        parents = {part: each[0].ppid() for part, each in found.items() if each}
        for child in root.children(recursive=True):
            child.kill()
    assert {part: len(each) for part, each in found.items()} == {part: part != "router" for part in found}
    assert parents["engine"] == found["decoder"][0].pid
    assert parents["child"] == found["template"][0].pid
    assert owner == found["decoder"][0]
    assert counts == {"Router": 0, "Preprocessor": 1, "VisionEncoder": 0, "Decoder": 1}
    assert not is_alive(found["worker"][0])
