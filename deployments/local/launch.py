"""Starts Ray and the application on this machine, and ends both without leaving a process or shared memory behind."""

from __future__ import annotations

import io
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import shared_memory
from deployments.local.processes import (
    adopt_orphans,
    descendants,
    end_children,
    every,
    minded,
    signals_kept,
    uninterrupted,
    variables,
)
from deployments.ray_serve import haproxy
from deployments.ray_serve.session import deploy, start_ray
from deployments.ray_serve.status import kill_stopping, read_pool_states, starting_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deployments.local.app_file import ApplicationFile

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster: its URL, and the folder of its logs."""

    url: str
    logs: Path


class MachineTooSmallError(RuntimeError):
    """The pools reserve more CPUs or GPUs than the machine has. Serve would wait for them for ever."""


def _silent(_: str) -> None:
    """Reports nothing."""


@contextmanager
def running(file: ApplicationFile, *, port: int, progress: Callable[[str], None] = _silent) -> Iterator[Cluster]:
    """Runs a cluster of this machine alone inside the block, bound to loopback. It is ready at the start of the block.

    Args:
        file: The application file.
        port: The port for HTTP.
        progress: Called with a short text about the pools that are still starting.

    Raises:
        MachineTooSmallError: The pools reserve more CPUs or GPUs than this machine has.
        RuntimeError: The port is taken, or the application did not start. The logs say why and are kept.
    """
    # HTTP is on loopback, but Ray's own ports are not, and everyone who can use them can run code here. So ray.init
    # must ask for a token. It takes this one, and then does not write its own into the home directory.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import serve

    _check_port(port)
    adopt_orphans()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    strangers = descendants()
    folder = Path(tempfile.mkdtemp(prefix="prism-"))
    held: set[Path] = set()
    failed = True
    try:
        # Replicas inherit the folder for temporary files, because vLLM removes neither its sockets nor its caches.
        timeout_s = file.config.router.request_timeout_s
        lean = haproxy.environment(folder, max_stream_s=timeout_s, fallback_port=_free_port(but=port))
        with signals_kept(), variables({"TMPDIR": str(folder), **lean}):
            start_ray(folder, host=LOOPBACK)
        logs = folder / "session_latest" / "logs"
        serve.start(http_options={"host": LOOPBACK, "port": port}, logging_config=file.serve.logging_config)
        with _watched(progress):
            _deploy(file, logs)
        with minded(held, strangers):
            yield Cluster(f"http://{LOOPBACK}:{port}", logs)
        failed = False
    except (KeyboardInterrupt, SystemExit, MachineTooSmallError):
        failed = False
        raise
    finally:
        with uninterrupted(), ExitStack() as last:  # all steps run, the last one first, even if one of them fails
            if not failed:
                last.callback(shutil.rmtree, folder, ignore_errors=True)
            last.callback(shared_memory.unlink, held | shared_memory.held_by(descendants(but=strangers)))
            last.callback(end_children, but=strangers)
            last.callback(_shut_down)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise RuntimeError(
                f"Port {port} cannot be used ({error}); choose another with --port (make: PORT=)."
            ) from error


def _free_port(*, but: int) -> int:
    """A port that is free now, below those of the Routers and of outgoing connections, and not the given one."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            if port != but:
                return port


def _deploy(file: ApplicationFile, logs: Path) -> None:
    _check_room(file)
    try:
        deploy(file.for_one_machine())
    except RuntimeError as error:
        raise RuntimeError(f"{error}\nThe logs are in {logs}") from error


def _check_room(file: ApplicationFile) -> None:
    import ray

    from deployments.app import resources_of

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = [
        f"{needed:g} {name}s, and this machine has {there.get(name, 0):g}"
        for name, needed in resources_of(file.config, file.num_replicas()).items()
        if needed > there.get(name, 0)
    ]
    if short:
        raise MachineTooSmallError(
            f"The pools need {'; '.join(short)}. Give them fewer replicas, or run them on a Ray cluster."
        )


@contextmanager
def _watched(progress: Callable[[str], None]) -> Iterator[None]:
    """Reports once a second which pools are still starting."""

    def watch() -> None:
        states = read_pool_states()
        waiting = [name for name, pool in states.items() if pool["status"] != "HEALTHY"]
        progress(f"{len(states) - len(waiting)} of {len(states)} pools ready; starting {', '.join(waiting) or 'HTTP'}")

    with every(1.0, watch):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the output of Ray's shutdown, which reports the calls that it cuts off as if they had failed."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _shut_down() -> None:
    import ray
    from ray import serve

    with _quiet():
        if ray.is_initialized():
            # A replica that starts has no requests, but its constructor keeps it from noticing that it should stop, and
            # Serve would wait for as long as for requests.
            with every(0.5, partial(kill_stopping, starting_replicas())):
                serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def wait_forever() -> None:
    """Sleeps until a signal."""
    while True:
        time.sleep(3600)
