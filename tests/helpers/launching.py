"""Starts ``prism serve`` for a test, and finds the processes of a cluster that it looks at, stops or kills."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml

from loadtest.bench.binding import go_first
from loadtest.servers import APP, START_TIMEOUT_S, free_port
from tests.helpers.waiting import until, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PRISM = Path(sys.executable).parent / "prism"


class Launched:
    """A ``prism serve`` that runs."""

    def __init__(self, file: Path, folder: Path) -> None:
        """Starts it; ``folder`` is where it finds its temporary files, and short, since paths of sockets are
        limited."""
        port, self.log = free_port(), folder / "log"
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
        """Returns once something is printed."""

        def is_said() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return said in self.log.read_text()

        wait_until(is_said, START_TIMEOUT_S, f"{said!r} was not printed")

    def end(self) -> None:
        """Makes sure that it has ended; after a test that ended it there is nothing to do."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def launched_with(changes: dict[str, dict[str, Any]]) -> Iterator[Launched]:
    """``prism serve`` with changes to pools of the embedded default, as a process of its own."""
    app = yaml.safe_load(APP.read_text())
    for pool, change in changes.items():
        app["applications"][0]["args"][pool] |= change
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        file = Path(name) / "app.yaml"
        file.write_text(yaml.safe_dump(app))
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


@contextlib.contextmanager
def ahead_of_engines() -> Iterator[None]:
    """Schedules this thread before everything else inside the block, where the machine lets it, as the bench does.

    Workers that spin on every core have been seen to keep a client from running for seconds, while the kernel had it
    ready to run all along: a stream of thousands of tokens was over before the client had read its first event.
    """
    go_first()
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def replicas(root: psutil.Process, pool: str = "", *, at_least: int = 1) -> list[psutil.Process]:
    """The living replicas of a pool, or of all, among a process's descendants.

    Waits until there are so many: one may be starting, or about to change its title.
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
    """The process in which a decoder's engine runs.

    Not by its title: setproctitle finds the place for one by the first variable of the environment, which Ray shuffles,
    and silently sets none if that variable has been set anew since the process began.
    """
    [engine] = [child for child in decoder.children() if "resource_tracker" not in " ".join(child.cmdline())]
    return engine


def thread_niceness(process: psutil.Process) -> set[int]:
    """The niceness of every thread of a process."""
    return {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads()}
