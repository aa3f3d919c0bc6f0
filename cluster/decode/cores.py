"""CPU cores of the engine: those that are reserved for it, or its niceness on cores that it shares."""

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
    """Binds an engine of one worker to its reserved cores, or lowers its priority on shared ones. vLLM binds several
    workers."""
    if decoder.shares_cores:
        _let_others_first()
    elif decoder.device == "cpu" and decoder.tensor_parallel_size == 1:
        _bind(decoder.cores)


def _bind(cores: set[int]) -> None:
    """Binds the engine's threads to the cores that it has for itself; those that it starts later inherit it."""
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def _let_others_first() -> None:
    """Gives the engine's main thread what its cores' other users leave.

    It computes, and where a decoder has less than two CPUs no other thread does; those that talk to others stay as they
    are.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.nice(min(MAX_NICENESS, process.nice() + priority.SHARING_ENGINE))
