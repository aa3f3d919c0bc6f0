"""Finds the processes of a cluster on this machine, by their command lines and their parents."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

POOLS: Final = {"router": "Router", "preprocessor": "Preprocessor", "encoder": "VisionEncoder", "decoder": "Decoder"}
"""The pools and the names of their Serve deployments."""


class ClusterProcesses:
    """The processes below one process that started the cluster.

    Args:
        root: The process, such as ``prism serve``. It must adopt orphans.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._root: Final = root

    def of(self, part: str) -> list[psutil.Process]:
        """The living processes of a part of the cluster, the oldest first.

        Args:
            part: A pool, ``engine``, ``worker`` (tensor-parallel), ``template`` or ``child`` (of a preprocessor),
                ``haproxy``, ``controller``, or ``raylet`` (of another node than the head).
        """
        found = sorted(self._find(part), key=lambda process: process.create_time())
        return [process for process in found if is_alive(process)]

    def num_replicas(self) -> dict[str, int]:
        """The number of living replica processes of each deployment, from one look at all processes."""
        lines = [_line(process) for process in self._root.children(recursive=True) if is_alive(process)]
        return {name: sum(_is_replica(line, pool) for line in lines) for pool, name in POOLS.items()}

    def _find(self, part: str) -> Iterator[psutil.Process]:
        lines = {process: _line(process) for process in self._root.children(recursive=True)}
        if part in POOLS:
            yield from (process for process, line in lines.items() if _is_replica(line, part))
        elif part == "engine":
            decoders = [process for process, line in lines.items() if _is_replica(line, "decoder")]
            yield from (engine for decoder in decoders for engine in _children(decoder))
        elif part == "worker":
            for engine in self._find("engine"):
                yield from _children(engine)
        elif part == "template":
            yield from (each for each, line in lines.items() if _is_template(line) and not _is_template(_parent(each)))
        elif part == "child":
            yield from (each for each, line in lines.items() if _is_template(line) and _is_template(_parent(each)))
        elif part == "haproxy":
            yield from (each for each in lines if _name(each) == "haproxy")
        elif part == "controller":
            yield from (each for each, line in lines.items() if "ServeController" in line)
        elif part == "raylet":
            yield from (each for each, line in lines.items() if _name(each) == "raylet" and "--head" not in line)

    def owner(self, process: psutil.Process) -> psutil.Process | None:
        """The replica that a process belongs to: itself, or its nearest parent that is one."""
        with suppress(psutil.Error):
            for each in [process, *process.parents()]:
                if any(_is_replica(_line(each), pool) for pool in POOLS):
                    return each
        return None


def is_alive(process: psutil.Process) -> bool:
    """Returns True if a process exists and is no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_replica(line: str, pool: str) -> bool:
    return f"ServeReplica:prism:{POOLS[pool]}" in line


def _is_template(line: str) -> bool:
    return "cluster.isolation.child" in line


def _children(process: psutil.Process) -> list[psutil.Process]:
    """The children of a process without Python's resource trackers."""
    with suppress(psutil.Error):
        return [child for child in process.children() if "resource_tracker" not in _line(child)]
    return []


def _parent(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        if (parent := process.parent()) is not None:
            return _line(parent)
    return ""


def _line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(process.name())
    return ""
