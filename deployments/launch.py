"""Starts Ray and the application on this machine, and ends both without leaving a process or shared memory behind."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cluster import segments
from deployments import ingress
from deployments.router import read_pool_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster.config import PrismConfig
    from deployments.application import ApplicationFile

LOOPBACK = "127.0.0.1"
PR_SET_CHILD_SUBREAPER = 36
ENDING_TIMEOUT_S = 10.0
MINDING_S = 5.0
LOWEST_PRIORITY = 19
DRAIN_S = 20.0
"""What Ctrl-C leaves to requests in flight, and then to an engine for its end. Serve kills a replica that takes longer."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that runs: where it listens, and where its logs are."""

    url: str
    logs: Path


class MachineTooSmallError(RuntimeError):
    """The pools reserve more than there is; Serve would wait for it for ever."""


def _silent(_: str) -> None:
    """Reports nothing."""


@contextmanager
def running(file: ApplicationFile, *, port: int, progress: Callable[[str], None] = _silent) -> Iterator[Cluster]:
    """A cluster of this machine alone, bound to loopback, up and ready inside the block and gone after it.

    Args:
        file: What to run.
        port: Where to listen for HTTP.
        progress: Told in a few words what is still starting.

    Raises:
        MachineTooSmallError: The pools reserve more CPUs or GPUs than this machine has.
        RuntimeError: The port is taken, or the application did not start; the logs say why and are kept.
    """
    # HTTP is on loopback, but Ray's own ports are not, and whoever may use them can run code here. Where nothing else is said,
    # `ray.init` asks for a token, and takes this one rather than leave its own in the home directory.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    _check_port(port)
    _adopt_orphans()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    strangers = _children()
    folder = Path(tempfile.mkdtemp(prefix="prism-"))
    held: set[Path] = set()
    failed = True
    try:
        # Replicas inherit where temporary files go: vLLM removes neither its sockets nor its caches.
        lean = ingress.environment(folder, max_stream_s=file.config.router.request_timeout_s)
        with _signals_kept(), _variables({"TMPDIR": str(folder), **lean}):
            ray.init(
                "local",  # never a cluster that RAY_ADDRESS names: this one is ours to end
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        logs = folder / "session_latest" / "logs"
        serve.start(http_options={"host": LOOPBACK, "port": port}, logging_config=file.serve.logging_config)
        with _watched(progress):
            _deploy(file, logs)
        with _minded(held, strangers):
            yield Cluster(f"http://{LOOPBACK}:{port}", logs)
        failed = False
    except (KeyboardInterrupt, SystemExit, MachineTooSmallError):
        failed = False
        raise
    finally:
        with _uninterrupted(), ExitStack() as last:  # each step runs, in this order from the bottom, whatever the others do
            if not failed:
                last.callback(shutil.rmtree, folder, ignore_errors=True)
            last.callback(segments.unlink, held | segments.held_by(_children() - strangers))
            last.callback(_end_children, but=strangers)
            last.callback(_shut_down)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise RuntimeError(f"Port {port} cannot be used ({error}); choose another with --port (make: PORT=).") from error


def _deploy(file: ApplicationFile, logs: Path) -> None:
    from ray import serve

    from deployments.app import compose

    application = file.serve.applications[0]
    config = file.config.without_pool_labels()  # they choose among nodes, and here is one
    _check_room(config)
    try:
        serve.run(
            compose(config, drain_s=DRAIN_S),
            name=application.name,
            route_prefix=application.route_prefix,
            logging_config=file.serve.logging_config,
        )
    except RuntimeError as error:
        raise RuntimeError(f"{error}\nThe logs are in {logs}") from error


def _check_room(config: PrismConfig) -> None:
    import ray

    from deployments.app import resources_of

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = [
        f"{needed:g} {name}s, and this machine has {there.get(name, 0):g}"
        for name, needed in resources_of(config).items()
        if needed > there.get(name, 0)
    ]
    if short:
        raise MachineTooSmallError(
            f"The pools need {'; '.join(short)}. Give them fewer replicas, or run them on a Ray cluster."
        )


@contextmanager
def _watched(progress: Callable[[str], None]) -> Iterator[None]:
    """Reports which pools are still starting, once a second."""

    def watch() -> None:
        states = read_pool_states()
        waiting = [name for name, pool in states.items() if pool["status"] != "HEALTHY"]
        progress(f"{len(states) - len(waiting)} of {len(states)} pools ready; starting {', '.join(waiting) or 'HTTP'}")

    with _every(1.0, watch):
        yield


@contextmanager
def _minded(held: set[Path], strangers: set[Any]) -> Iterator[None]:
    """Looks after the cluster's processes every few seconds, from a thread that gives way to all others.

    Notes the shared memory that they hold, for a replica that is killed leaves its engine's behind; and lets those go that came
    to us when their own parent died, and have ended. Not at once, but a round later: to one that was started in this process
    somebody waits here.
    """
    known = set(psutil.Process().children())  # Ray's own, whose end Ray takes note of
    ended: set[psutil.Process] = set()

    def mind() -> None:
        held.update(segments.held_by(_children() - strangers))
        for orphan in ended:
            with suppress(ChildProcessError):
                os.waitpid(orphan.pid, os.WNOHANG)
        orphans = set(psutil.Process().children()) - known - strangers - ended
        ended.clear()
        ended.update(orphan for orphan in orphans if _is_zombie(orphan))

    mind()
    with _every(MINDING_S, mind, niceness=LOWEST_PRIORITY):
        yield


def _is_zombie(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def _every(interval_s: float, work: Callable[[], None], *, niceness: int = 0) -> Iterator[None]:
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
def _quiet() -> Iterator[None]:
    """Ray reports the calls that its own shutdown cuts off as if they had failed; nobody needs to read that."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
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
def _signals_kept() -> Iterator[None]:
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
def _uninterrupted() -> Iterator[None]:
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


def _adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies, so that none can slip away (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _shut_down() -> None:
    import ray
    from ray import serve

    with _quiet():
        if ray.is_initialized():
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _children() -> set[Any]:
    return set(psutil.Process().children(recursive=True))


def _end_children(*, but: set[Any]) -> None:
    """Ends what is left of the cluster's processes: a polite signal, then a certain one.

    Python's resource trackers are left for last: they end by themselves, once they have unlinked what the dead left behind.
    """
    children = _children() - but
    trackers = {child for child in children if _is_tracker(child)}
    for child in children - trackers:
        _send(child, signal.SIGTERM)
    _, alive = psutil.wait_procs(children - trackers, timeout=ENDING_TIMEOUT_S)
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


def wait_forever() -> None:
    """Sleeps until a signal."""
    while True:
        time.sleep(3600)
