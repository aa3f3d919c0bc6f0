"""The processes of a cluster on this machine: adopted, looked after while they run, and ended."""

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
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
ENDING_TIMEOUT_S = 10.0
MINDING_S = 5.0
LOWEST_PRIORITY = 19


@contextmanager
def minded(held: set[Path], strangers: set[Any]) -> Iterator[None]:
    """Looks after the processes of a cluster every few seconds, in a thread with the lowest priority.

    Notes the shared memory that they hold, because a killed replica leaves that of its engine. Also reaps zombies
    inherited when their parent died, one round late, because a new zombie may be a child that other code in this
    process is about to wait for.

    Args:
        held: Gains the segments of shared memory that are found.
        strangers: Processes that do not belong to the cluster. Those that they start do not either.
    """
    known = set(psutil.Process().children())  # Ray's own, which Ray waits for
    ended: set[psutil.Process] = set()

    def mind() -> None:
        held.update(shared_memory.held_by(descendants(but=strangers)))
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
    """Calls a function regularly inside the block, in a thread of its own.

    Args:
        interval_s: Seconds between two calls.
        work: The function.
        niceness: Added to the thread's niceness, on Linux.
    """
    done = threading.Event()

    def repeat() -> None:
        if sys.platform == "linux":  # on other systems this would change the whole process
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
    """Sets environment variables inside the block, for the processes that start there."""
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
    """Restores the handler of SIGTERM after the block. Ray's own handler ends the process at once and leaves the
    cluster behind."""
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
    """Ignores Ctrl-C and SIGTERM inside the block, so that a second Ctrl-C does not leave half a cluster behind."""
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
    """Makes this process the parent of every descendant whose own parent dies, so that none escapes (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(*, but: Collection[Any] = ()) -> set[Any]:
    """Every process that this one has started, directly or not, and that runs or waits to be reaped.

    Args:
        but: Processes that are left out, together with their descendants at this moment. Children of a process that
            has died are not recognised.
    """
    left_out = set(but)
    for process in but:
        with suppress(psutil.NoSuchProcess):
            left_out.update(process.children(recursive=True))
    return set(psutil.Process().children(recursive=True)) - left_out


def end_children(*, but: set[Any]) -> None:
    """Ends all descendants of this process except ``but`` and their descendants: SIGTERM first, then SIGKILL.

    Python's resource trackers come last. They end by themselves once they have removed what dead processes left.
    """
    left = descendants(but=but)
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
