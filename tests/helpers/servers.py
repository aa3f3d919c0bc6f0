"""Starts the servers that the tests talk to: Prism, and bare vLLM as the oracle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from cluster.checkpoint import Checkpoint
from deployments.local.app_file import ApplicationFile
from deployments.local.launch import Cluster, running
from loadtest.servers import APP, START_TIMEOUT_S, changed_app, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def with_changes(changes: dict[str, dict[str, Any]]) -> ApplicationFile:
    """Returns the embedded default with changes, as for ``changed_app``."""
    return ApplicationFile.parse(APP, changed_app(changes))


@contextmanager
def prism_cluster(changes: dict[str, dict[str, Any]] | None = None) -> Iterator[Cluster]:
    """Runs the embedded default with changes, on a free port. Ray is started in this process."""
    with running(with_changes(changes or {}), port=free_port()) as cluster:
        yield cluster


@dataclass(frozen=True)
class BareServer:
    """A bare vLLM server that has begun to start."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_healthy(self) -> None:
        """Returns once ``/health`` answers 200. If the server ends first, it fails with the end of the log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                if httpx.get(f"{self.url}/health").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise TimeoutError(f"not healthy within {START_TIMEOUT_S} s:\n{self.log.read_text()[-4000:]}")


@contextmanager
def bare_vllm(log: Path) -> Iterator[BareServer]:
    """Starts vLLM's own server with the same checkpoint, and does not wait for it. It gets raw pictures."""
    config = ApplicationFile.read(APP).config
    port = free_port()
    line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1", f"--port={port}"]
    line += [f"--model={Checkpoint(config.model).path}", f"--served-model-name={config.model.served_name}"]
    line += [f"--dtype={config.model.dtype}", f"--max-model-len={config.model.max_model_len}", "--enforce-eager"]
    line += [f'--limit-mm-per-prompt={{"image": {config.media.max_pictures}}}']
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(log.parent)  # its sockets stay
    with log.open("wb") as sink:
        server = subprocess.Popen(line, stdout=sink, stderr=sink, env=environment, start_new_session=True)
        try:
            yield BareServer(f"http://127.0.0.1:{port}", server, log)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
