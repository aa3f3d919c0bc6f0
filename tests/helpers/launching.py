"""Starts ``prism serve`` for a test, and finds the processes of a cluster that it looks at, stops or kills."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml

from loadtest.priority import go_first
from loadtest.servers import START_TIMEOUT_S, changed_app, free_port
from tests.helpers.waiting import until, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PRISM = Path(sys.executable).parent / "prism"
SERVES_OWN = 8500
"""The port of Serve's own proxy by default. ``prism serve`` gives it another one, so that users may take this."""


def is_free(port: int) -> bool:
    """Returns True if nothing listens on the port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Launched:
    """A running ``prism serve`` process, with its URL, its log and its temporary folder."""

    def __init__(self, file: Path, folder: Path) -> None:
        """Starts the process. It keeps its temporary files in ``folder``, whose path must be short, because the paths
        of sockets are limited."""
        port, self.log = SERVES_OWN if is_free(SERVES_OWN) else free_port(), folder / "log"
        self.url = f"http://127.0.0.1:{port}"
        self.temporary = folder / "t"
        self.temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as sink:
            line = [str(PRISM), "serve", str(file), "--port", str(port)]
            self.process = subprocess.Popen(line, stdout=sink, stderr=sink, start_new_session=True, env=environment)
        self.root = psutil.Process(self.process.pid)
        self.left: set[str] = set()
        """Segments of shared memory that processes had when a test killed them."""

    def wait_until(self, said: str) -> None:
        """Returns once the log contains ``said``. Fails if the process ends first."""

        def is_said() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return said in self.log.read_text()

        wait_until(is_said, START_TIMEOUT_S, f"{said!r} was not printed")

    def end(self) -> None:
        """Ends the process if a test has not ended it already."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def launched_with(changes: dict[str, dict[str, Any]]) -> Iterator[Launched]:
    """Runs ``prism serve`` as a process of its own, on the embedded default with changes, as for ``changed_app``, and
    yields it once it is ready."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        file = Path(name) / "app.yaml"
        file.write_text(yaml.safe_dump(changed_app(changes)))
        running = Launched(file, Path(name))
        try:
            running.wait_until("Prism is ready")
            yield running
        finally:
            running.end()


async def is_ready_again(client: httpx.AsyncClient) -> None:
    """Returns once ``/health`` says that every pool can serve."""

    async def is_ready() -> bool:
        return (await client.get("/health")).status_code == httpx.codes.OK

    await until(is_ready, START_TIMEOUT_S, "the pool did not come back")


async def is_running(client: httpx.AsyncClient, pool: str, num_replicas: int) -> None:
    """Returns once Serve counts so many running replicas of a deployment."""

    async def are_running() -> bool:
        states = (await client.get("/status")).json()["pools"]
        return bool(states[pool]["replicas"].get("RUNNING") == num_replicas)

    await until(are_running, START_TIMEOUT_S, f"{pool} has other than {num_replicas} replicas")


@contextlib.contextmanager
def ahead_of_engines() -> Iterator[None]:
    """Inside the block, schedules this thread before all other processes, if the machine allows it, as the bench does.

    Without this, engine workers that spin on every core were seen to keep a client from running for seconds although it
    was ready to run. A stream of thousands of tokens had then ended before the client read its first event.
    """
    go_first()
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def replicas(root: psutil.Process, pool: str = "", *, at_least: int = 1) -> list[psutil.Process]:
    """Returns the living replicas of one pool, or of all pools, among a process's descendants.

    Waits until there are at least ``at_least`` of them, because a replica may be starting or about to change its title.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        found = []
        for process in root.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                if f"ServeReplica:prism:{pool}" in " ".join(process.cmdline()):
                    found.append(process)
        if len(found) >= at_least:
            return found
        assert time.monotonic() < deadline, f"{len(found)} of {at_least} replicas of {pool or 'any pool'}"
        time.sleep(0.25)


def engine_of(decoder: psutil.Process) -> psutil.Process:
    """Returns the process in which a decoder's engine runs.

    The title cannot tell. setproctitle finds the memory for a title by the first variable of the environment, and Ray
    changes the order of the variables. If that variable was set again since the process began, setproctitle sets no
    title and reports nothing.
    """
    [engine] = [child for child in decoder.children() if "resource_tracker" not in " ".join(child.cmdline())]
    return engine


def thread_niceness(process: psutil.Process) -> set[int]:
    """Returns the niceness values of a process's threads."""
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()}
