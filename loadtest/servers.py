"""Starts the servers of a load test on loopback, and ends them without leaving processes or shared memory behind."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
APP: Final = ROOT / "deployments" / "app.yaml"
LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 240.0
MERGED: Final = ("user_config", "autoscaling_config")
"""The keys of a deployment in which a change replaces single settings."""
END_TIMEOUT_S: Final = 60.0


def changed_app(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``deployments/app.yaml`` with changes.

    Args:
        changes: New settings by the name of a section of ``args:``, such as ``decoder``, or of a Serve deployment, such
            as ``Decoder``. Settings that are not named stay, also those inside ``user_config`` and
            ``autoscaling_config``.
    """
    content: dict[str, Any] = yaml.safe_load(APP.read_text())
    [application] = content["applications"]
    deployments = {deployment["name"]: deployment for deployment in application["deployments"]}
    for name, change in changes.items():
        if name in deployments:
            deployment = deployments[name]
            inner = {key: deployment.get(key, {}) | change[key] for key in MERGED if key in change}
            deployment |= {**change, **inner}
        else:
            application["args"][name] = application["args"].get(name, {}) | change
    return content


def sized(num_replicas: int) -> dict[str, Any]:
    """The change that gives a Serve deployment a fixed number of replicas, for ``changed_app``."""
    return {"autoscaling_config": {"min_replicas": num_replicas, "max_replicas": num_replicas}}


def prism_line(changes: Mapping[str, Mapping[str, Any]], folder: Path, port: int) -> list[str]:
    """Writes an application file and returns the command line that serves it with Prism.

    Args:
        changes: What differs from ``deployments/app.yaml``, as for ``changed_app``.
        folder: Gets the application file.
        port: The port to listen on.
    """
    file = folder / "app.yaml"
    file.write_text(yaml.safe_dump(changed_app(changes)))
    return [sys.executable, "-m", "deployments.local.cli", "serve", str(file), f"--port={port}"]


def free_port() -> int:
    """A loopback port that is free now, below the range that Linux uses for outgoing connections."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port


@contextmanager
def process(
    line: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    port: int,
    *,
    ready: str = "/health",
    hello: bytes | None = None,
) -> Iterator[psutil.Process]:
    """Runs a server for the length of the block, which begins when the server answers 200 at ``ready``.

    Args:
        line: The command line.
        environment: The server's environment variables.
        log: The file for its output.
        port: The port where it listens on loopback.
        ready: The path to ask until the server is ready.
        hello: A JSON body to post to that path. Some servers report health too early; for them ask for a chat.

    Raises:
        RuntimeError, TimeoutError: The server did not start; the message ends with the end of its log.
    """
    with log.open("wb") as sink:
        server = subprocess.Popen(  # noqa: S603
            line, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT, start_new_session=True
        )
        root = psutil.Process(server.pid)
        seen: set[psutil.Process] = set()
        try:
            _wait_until_ready(f"http://{LOOPBACK}:{port}{ready}", hello, server, log)
            seen |= set(root.children(recursive=True))
            yield root
        finally:
            _end(server, seen)


def _wait_until_ready(url: str, hello: bytes | None, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    request = urllib.request.Request(url, hello, {"content-type": "application/json"})  # noqa: S310
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(f"not ready within {START_TIMEOUT_S} s:\n{log.read_text(errors='replace')[-3000:]}")


def _end(server: subprocess.Popen[bytes], seen: set[psutil.Process]) -> None:
    """Sends Ctrl-C to a server, waits, then kills the processes that are left and removes their shared memory."""
    with contextlib.suppress(psutil.NoSuchProcess):
        seen |= set(psutil.Process(server.pid).children(recursive=True))
    segments = {segment for process in seen for segment in _segments(process)}
    server.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=END_TIMEOUT_S)
    _, alive = psutil.wait_procs(seen, timeout=5)
    if server.poll() is None:
        server.kill()
        server.wait()
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)
    for segment in segments:
        segment.unlink(missing_ok=True)


def _segments(process: psutil.Process) -> set[Path]:
    """The shared-memory files that a process maps. A process that Ray kills leaves them behind."""
    try:
        paths = {mapped.path for mapped in process.memory_maps()}
    except psutil.Error:
        return set()
    return {Path(path) for path in paths if path.startswith(("/dev/shm/psm_", "/dev/shm/sem.mp-"))}  # noqa: S108
