"""Binds engines, and Prism's encoder, to the cores that a set-up names.

This happens from outside once a system is up, in the same way for every system. If an engine's thread shared its core
with the server and the client, figures would differ from run to run. All other processes (HTTP servers, engine cores,
routers, the client) are not bound: the kernel places them.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENGINES: Final = ("VLLM::", "multiprocessing.spawn")
"""Parts of the titles of vLLM's processes. The second is the title of a process that could not set its own:
setproctitle finds the memory of the title by the first environment variable, and Ray reorders these variables. It fails
silently."""
ENCODER: Final = "VisionEncoder"
"""A part of the title of the process that runs Prism's vision tower."""


def bind(servers: Iterable[psutil.Process], *, engine_cores: Sequence[int], encoder_core: int | None) -> None:
    """Binds each engine to its core and, if asked for, Prism's encoder to a core.

    An engine can have several processes. The one that runs the model has no child that is a process of an engine.

    Args:
        servers: The processes that were started; engines are among their descendants.
        engine_cores: One core per engine.
        encoder_core: The core of Prism's encoder; None leaves it unbound.

    Raises:
        RuntimeError: The number of engines differs from the number of cores for them.
    """
    processes = [child for server in servers for child in server.children(recursive=True)]
    of_engines = [child for child in processes if any(title in _title(child) for title in ENGINES)]
    parents = {child.ppid() for child in of_engines}
    engines = sorted((child for child in of_engines if child.pid not in parents), key=lambda child: child.pid)
    if len(engines) != len(engine_cores):
        titles = sorted({_title(child)[:60].strip() for child in processes})
        raise RuntimeError(
            f"{len(engines)} engines were found for cores {list(engine_cores)}; the processes are {', '.join(titles)}"
        )
    for engine, core in zip(engines, engine_cores, strict=True):
        _bind(engine, core)
    if encoder_core is not None:
        for child in processes:
            if ENCODER in _title(child):
                _bind(child, encoder_core)


def _bind(process: psutil.Process, core: int) -> None:
    """Binds all threads of a process; threads that it starts later inherit the binding."""
    if core >= (psutil.cpu_count() or 1):
        return
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {core})


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
