"""Binds engines, and Prism's encoder, to cores where a set-up says so: from outside, once a system is up, alike in
every one.

An engine's thread that shares its core with the server and the client gives other figures from run to run. All other
processes (HTTP servers, engine cores, routers, the client) stay free, and the kernel puts them where there is room.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENGINES: Final = ("VLLM::", "multiprocessing.spawn")
"""Are in the title of vLLM's processes. The second is what one has that could set no title, which setproctitle is
silent about: it finds the place by the first variable of the environment, which Ray shuffles."""
ENCODER: Final = "VisionEncoder"
"""Is in the title of the process that runs Prism's vision tower."""


def bind(servers: Iterable[psutil.Process], *, engine_cores: Sequence[int], encoder_core: int | None) -> None:
    """Puts each engine on its core, and Prism's encoder on one where it is asked for.

    Of an engine's processes the one that runs the model has no other of them below it.

    Raises:
        RuntimeError: There are not as many engines as cores for them.
    """
    processes = [child for server in servers for child in server.children(recursive=True)]
    of_engines = [child for child in processes if any(title in _title(child) for title in ENGINES)]
    parents = {child.ppid() for child in of_engines}
    engines = sorted((child for child in of_engines if child.pid not in parents), key=lambda child: child.pid)
    if len(engines) != len(engine_cores):
        titles = sorted({_title(child)[:60].strip() for child in processes})
        raise RuntimeError(
            f"{len(engines)} engines were found for cores {list(engine_cores)}; there is {', '.join(titles)}"
        )
    for engine, core in zip(engines, engine_cores, strict=True):
        _bind(engine, core)
    if encoder_core is not None:
        for child in processes:
            if ENCODER in _title(child):
                _bind(child, encoder_core)


def go_first() -> bool:
    """Schedules this process, the client, before everything else, and says whether the machine lets it.

    A client's place is on another machine. Here, engines that spin would keep it from looking at its clock. What it
    starts does not inherit this.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    return True


def _bind(process: psutil.Process, core: int) -> None:
    """Binds all of its threads; those that it starts later inherit it."""
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
