"""The set-up, start and end of the systems of the side-by-side benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from deployments.app import resources_of
from deployments.local.app_file import ApplicationFile
from loadtest.bench.__main__ import DEMO
from loadtest.bench.__main__ import main as bench
from loadtest.bench.binding import bind
from loadtest.bench.systems import Setup, prism_changes
from loadtest.bench.workloads import SCENARIOS
from loadtest.servers import APP, changed_app, free_port, process

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_prism_accepts_what_the_bench_changes() -> None:
    """Every set-up changes only keys that exist, and its reservations fit two cores."""
    for setup in {scenario.setup for scenario in SCENARIOS} | {Setup("all", "demo", (0, 1), 0, 2)}:
        file = ApplicationFile.parse(APP, changed_app(prism_changes(setup, DEMO)))
        assert resources_of(file.config, file.num_replicas())["CPU"] <= 2
        assert file.num_replicas()["Decoder"] == setup.num_engines


UNTITLED = "python -c from multiprocessing.spawn import spawn_main"
PLAYED = f"""
(exec -a VLLM::EngineCore bash -c "(exec -a VLLM::Worker sleep 60) & wait") &
(exec -a "{UNTITLED}" sleep 60) &
(exec -a ServeReplica:prism:VisionEncoder sleep 60) &
(exec -a ServeReplica:prism:Router sleep 60) &
echo up; wait
"""
"""A system as far as its processes' titles go: an engine with a worker, and one in one process, which could set no
title."""


@pytest.fixture
def played() -> Iterator[psutil.Process]:
    """Runs ``PLAYED`` in a process until the test ends."""
    with subprocess.Popen(["bash", "-c", PLAYED], stdout=subprocess.PIPE) as shell:
        process = psutil.Process(shell.pid)
        deadline_s = time.monotonic() + 10
        while len(set(titles(process))) < 5 or "bash" in titles(process):  # each has its title
            assert time.monotonic() < deadline_s, titles(process)
            time.sleep(0.01)
        yield process
        for child in process.children(recursive=True):
            child.kill()


def titles(process: psutil.Process) -> list[str]:
    """Returns the process titles of all descendants of a process."""
    return ["".join(child.cmdline()[:1]) or "bash" for child in process.children(recursive=True)]


@pytest.mark.skipif(psutil.cpu_count() == 1, reason="needs two cores to tell them apart")
def test_engines_and_the_encoder_are_put_on_their_cores(played: psutil.Process) -> None:
    """Each engine's model process is bound to its core and the encoder to its own. All other processes keep their
    cores."""
    bind([played], engine_cores=(0, 1), encoder_core=0)
    cores = {child.cmdline()[0]: set(child.cpu_affinity()) for child in played.children(recursive=True)}
    assert sorted([cores.pop("VLLM::Worker"), cores.pop(UNTITLED)], key=min) == [{0}, {1}]
    assert cores.pop("ServeReplica:prism:VisionEncoder") == {0}
    every = set(psutil.Process().cpu_affinity())
    assert cores == {"VLLM::EngineCore": every, "ServeReplica:prism:Router": every}


def test_a_system_with_other_engines_than_expected_is_not_measured(played: psutil.Process) -> None:
    """With one engine too many, the error lists the engines that were found."""
    with pytest.raises(RuntimeError, match=r"2 engines were found for cores \[1\]; the processes are .*Router"):
        bind([played], engine_cores=(1,), encoder_core=None)


def test_a_server_is_gone_after_its_block(tmp_path: Path) -> None:
    """When the block ends, neither the server nor a child that ignores Ctrl-C is left."""
    port = free_port()
    script = f"sleep 300 & exec {sys.executable} -m http.server {port} --bind 127.0.0.1"
    with process(["bash", "-c", script], dict(os.environ), tmp_path / "log", port, ready="/") as server:
        [child] = server.children()
        assert child.is_running()
    assert not server.is_running()
    assert not child.is_running()


def test_shared_memory_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """A segment that a child maps is gone after the block, though nobody unlinked it."""
    port = free_port()
    hold = "import time; from multiprocessing.shared_memory import SharedMemory as M"
    child = f"{hold}; m = M(create=True, size=64); print(m.name, flush=True); time.sleep(300)"
    server = f"{sys.executable} -m http.server {port} --bind 127.0.0.1"
    script = f'{sys.executable} -c "{child}" > {tmp_path}/name & exec {server}'
    with process(["bash", "-c", script], dict(os.environ), tmp_path / "log", port, ready="/"):
        deadline_s = time.monotonic() + 20
        while not (name := (tmp_path / "name").read_text().strip()) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert Path("/dev/shm", name).exists()
    assert not Path("/dev/shm", name).exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The error contains the end of the log."""
    with (
        pytest.raises(RuntimeError, match=r"ended with 3:\nno such model"),
        process(["bash", "-c", "echo no such model; exit 3"], dict(os.environ), tmp_path / "log", free_port()),
    ):
        pass


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--systems", "prism,other"], ["--repeats", "0"]])
def test_a_wrong_command_line_says_so(words: list[str]) -> None:
    """An unknown name or an impossible number ends the command with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        bench(words)
    assert ended.value.code == 2
