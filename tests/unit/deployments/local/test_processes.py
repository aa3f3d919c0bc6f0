"""The processes that belong to a cluster, and those that do not."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from deployments.local.processes import descendants, end_children

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT = """
import subprocess, sys
input()
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
child.communicate()
"""
"""Starts a process of its own when it is told to, and ends when it is told again."""


@contextmanager
def parent() -> Iterator[subprocess.Popen[str]]:
    """Runs ``PARENT`` inside the block."""
    line = [sys.executable, "-c", PARENT]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Tells a process to start its own, which is returned."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return psutil.Process(int(process.stdout.readline()))


def test_what_a_stranger_starts_later_is_a_stranger() -> None:
    """A process that ran before a cluster, and one that it starts while the cluster runs, survive the cluster's end."""
    with parent() as before:
        strangers = descendants()
        with parent() as own:
            started = [child_of(process) for process in (before, own)]
            ours = {psutil.Process(own.pid), started[1]}
            assert descendants(but=strangers) == ours
            end_children(but=strangers)
            assert not any(process.is_running() for process in ours)
            assert started[0].status() != psutil.STATUS_ZOMBIE
            started[0].kill()
