"""The engine's CPU cores: it is bound to cores that are reserved for it, or runs at low priority on shared ones."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import psutil

from cluster import priority

if TYPE_CHECKING:
    from cluster.config import DecoderConfig

MAX_NICENESS: Final = 19


def bind_cores(decoder: DecoderConfig) -> None:
    """Binds an engine with one worker to its reserved cores, or lowers its priority on shared ones. vLLM itself
    binds several workers."""
    if decoder.shares_cores:
        _let_others_first()
    elif decoder.device == "cpu" and decoder.tensor_parallel_size == 1:
        _bind(decoder.cores)


def _bind(cores: set[int]) -> None:
    """Binds all threads of the engine to the given cores. Threads that start later inherit this."""
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def _let_others_first() -> None:
    """Lowers the priority of the engine's main thread.

    This thread computes. Where a decoder has fewer than two CPUs it is the only one that does. The threads that talk to
    other processes keep their priority.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.nice(min(MAX_NICENESS, process.nice() + priority.SHARING_ENGINE))
