"""The processes of a cluster on this machine: adopted, looked after while it runs, and ended with it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from cluster import shared_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
ENDING_TIMEOUT_S = 10.0
MINDING_S = 5.0
LOWEST_PRIORITY = 19


@contextmanager
def minded(held: set[Path], strangers: set[Any]) -> Iterator[None]:
    """Looks after the cluster's processes every few seconds, from a thread that gives way to all others.

    Notes the shared memory that they hold, for a replica that is killed leaves its engine's behind; and lets those go
    that came to us when their own parent died, and have ended. Not at once, but a round later: to one that was started
    in this process somebody waits here.
    """
    known = set(psutil.Process().children())  # Ray's own, whose end Ray takes note of
    ended: set[psutil.Process] = set()

    def mind() -> None:
        held.update(shared_memory.held_by(descendants() - strangers))
        for orphan in ended:
            with suppress(ChildProcessError):
                os.waitpid(orphan.pid, os.WNOHANG)
        orphans = set(psutil.Process().children()) - known - strangers - ended
        ended.clear()
        ended.update(orphan for orphan in orphans if _is_zombie(orphan))

    mind()
    with every(MINDING_S, mind, niceness=LOWEST_PRIORITY):
        yield


def _is_zombie(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def every(interval_s: float, work: Callable[[], None], *, niceness: int = 0) -> Iterator[None]:
    """Does some work time and again inside the block, from a thread of its own."""
    done = threading.Event()

    def repeat() -> None:
        if sys.platform == "linux":  # elsewhere it would be the whole process's
            os.nice(niceness)
        while not done.wait(interval_s):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def signals_kept() -> Iterator[None]:
    """Ray brings a handler for SIGTERM of its own, which ends the process on the spot and leaves the cluster behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave half a cluster behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies, so that none can slip away (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> set[Any]:
    """Every process that this one started, directly or not, and that runs or waits to be reaped."""
    return set(psutil.Process().children(recursive=True))


def end_children(*, but: set[Any]) -> None:
    """Ends what is left of the cluster's processes: a polite signal, then a certain one.

    Python's resource trackers are left for last: they end by themselves, once they have unlinked what the dead left
    behind.
    """
    left = descendants() - but
    trackers = {child for child in left if _is_tracker(child)}
    for child in left - trackers:
        _send(child, signal.SIGTERM)
    _, alive = psutil.wait_procs(left - trackers, timeout=ENDING_TIMEOUT_S)
    for child in alive:
        _send(child, signal.SIGKILL)
    _, alive = psutil.wait_procs([*alive, *trackers], timeout=ENDING_TIMEOUT_S)
    for child in alive:
        _send(child, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=ENDING_TIMEOUT_S)


def _is_tracker(process: Any) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _send(process: Any, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
