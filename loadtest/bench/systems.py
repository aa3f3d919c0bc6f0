"""Starts each system as a user would, with the same model, limits and threads, and ends it without leaving a process behind.

- ``prism``: ``prism serve`` with ``deployments/app.yaml``, changed where the set-up says so.
- ``vllm``: ``python -m vllm.entrypoints.openai.api_server``, from Prism's own environment.
- ``ray-serve-llm``: ``ray.serve.llm:build_openai_app`` by ``serve run``, from the peers' environment.
- ``vllm-router`` and ``vllm-router-session``: the router from the peers' environment in front of bare engines, with its default
  policy (the longest shared prefix) and with ``consistent_hash`` on the user.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import yaml

from loadtest.bench.asks import MODEL
from loadtest.bench.binding import bind
from loadtest.workload import PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
APP: Final = ROOT / "deployments" / "app.yaml"
PEERS_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
LOOPBACK: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 240.0
END_TIMEOUT_S: Final = 60.0

DTYPE: Final = "float32"
MAX_MODEL_LEN: Final = 4096
MAX_NUM_SEQS: Final = 64
MAX_PICTURES: Final = 16
KV_CACHE_GIB: Final = 1

RAY_SERVE: Final = """
import ray, sys
from ray.serve.scripts import cli
ray.init("local", num_cpus=4, _node_ip_address="127.0.0.1", include_dashboard=False)
cli(["run", sys.argv[1]])
"""
"""``serve run`` on a Ray of its own. Without the dashboard, as Prism's is: it would take its share of the cores. Ray Serve LLM
reserves more than two cores, so Ray is told of four; nothing is bound by that."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a system is to be laid out.

    Args:
        geometry: Which checkpoint: ``demo`` or ``bench``.
        engine_cores: The core that each vLLM engine is bound to; empty for one engine that is left to itself.
        encoder_core: The core that Prism's encoder is bound to.
        num_preprocessors: Prism's preprocessor processes.
        whole_prompts: Prism prefills as the others do, without ``prefill_chunk_tokens`` of its application file.
    """

    name: str
    geometry: str
    engine_cores: tuple[int, ...] = ()
    encoder_core: int | None = None
    num_preprocessors: int = 1
    whole_prompts: bool = False

    @property
    def num_engines(self) -> int:
        """vLLM engines."""
        return max(1, len(self.engine_cores))


@dataclass(frozen=True, slots=True)
class Place:
    """Where one system is started: the checkpoint, a scratch folder for it alone, and the port to listen on.

    ``is_bound`` says that engines will be bound to cores, so that vLLM must not do that itself.
    """

    checkpoint: Path
    folder: Path
    port: int
    is_bound: bool

    @property
    def environment(self) -> dict[str, str]:
        """What every process of every system gets: one thread per engine, and no compilation in the middle of a first request.

        Ray would run its workers, engines among them, at niceness 15: whatever else the machine does would come first, for two
        systems.
        """
        unbound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if self.is_bound else {}
        return {
            **os.environ,
            **unbound,
            "TMPDIR": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
        }


@contextmanager
def running(system: str, setup: Setup, checkpoint: Path, log: Path) -> Iterator[str]:
    """A system that is up, bound to its cores, inside the block and gone after it; yields its URL.

    Raises:
        RuntimeError, TimeoutError: It did not start; the message ends with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="pb-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        place = Place(checkpoint, Path(folder), free_port(), is_bound=bool(setup.engine_cores))
        processes = SYSTEMS[system](stack, setup, place, log)
        if place.is_bound:
            bind(processes, engine_cores=setup.engine_cores, encoder_core=setup.encoder_core)
        yield f"http://{LOOPBACK}:{place.port}"


def _prism(stack: ExitStack, setup: Setup, place: Place, log: Path) -> list[psutil.Process]:
    line = prism_line(prism_changes(setup, place.checkpoint), place.folder, place.port)
    return [stack.enter_context(process(line, place.environment, log, place.port))]


def prism_line(changes: Mapping[str, Mapping[str, Any]], folder: Path, port: int) -> list[str]:
    """The command line of Prism on the embedded default with changes to its pools, whose file is written into the folder."""
    content = yaml.safe_load(APP.read_text())
    [application] = content["applications"]
    for pool, change in changes.items():
        application["args"][pool] = application["args"].get(pool, {}) | change
    file = folder / "app.yaml"
    file.write_text(yaml.safe_dump(content))
    return [sys.executable, "-m", "deployments.cli", "serve", str(file), f"--port={port}"]


def prism_changes(setup: Setup, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What differs from ``deployments/app.yaml``, pool by pool. What Ray reserves must fit two cores; it binds nothing."""
    small = {"resources": {"num_cpus": 0.2}}
    model = {"checkpoint": str(checkpoint), "served_name": MODEL, "max_model_len": MAX_MODEL_LEN, "dtype": DTYPE}
    decoder: dict[str, int | str | None] = {
        "num_replicas": setup.num_engines,
        "max_num_seqs": MAX_NUM_SEQS,
        "kv_cache_gib": KV_CACHE_GIB,
    }
    if len(setup.engine_cores) == 1:  # it is this engine's own, then; replicas are all told the same, so several cannot be told
        decoder["bind_cores"] = str(setup.engine_cores[0])
    if setup.whole_prompts:
        decoder["prefill_chunk_tokens"] = None
    return {
        "model": model,
        "router": small,
        "preprocessor": small | {"num_replicas": setup.num_preprocessors},
        "encoder": small,
        "decoder": small | decoder | {"enforce_eager": True},
    }


def _vllm(stack: ExitStack, _: Setup, place: Place, log: Path) -> list[psutil.Process]:
    return [stack.enter_context(process(vllm_line(place.checkpoint, place.port), place.environment, log, place.port))]


def vllm_line(checkpoint: Path, port: int) -> list[str]:
    """The command line of a bare engine."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--host={LOOPBACK}", f"--port={port}"),
        *(f"--model={checkpoint}", f"--served-model-name={MODEL}", f"--dtype={DTYPE}", f"--max-model-len={MAX_MODEL_LEN}"),
        *(f"--max-num-seqs={MAX_NUM_SEQS}", "--enforce-eager"),
        f"--limit-mm-per-prompt={json.dumps({'image': MAX_PICTURES})}",
    ]


def _ray_serve_llm(stack: ExitStack, setup: Setup, place: Place, log: Path) -> list[psutil.Process]:
    engine = {
        "dtype": DTYPE,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_NUM_SEQS,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": MAX_PICTURES},
        "distributed_executor_backend": "mp",
    }
    llm = {
        "model_loading_config": {"model_id": MODEL, "model_source": str(place.checkpoint)},
        "accelerator_config": {"kind": "cpu"},
        "deployment_config": {"num_replicas": setup.num_engines},
        "engine_kwargs": engine,
    }
    application = {"name": "llm", "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app"}
    content = {
        "http_options": {"host": LOOPBACK, "port": place.port},
        "applications": [application | {"args": {"llm_configs": [llm]}}],
    }
    file = place.folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    line = [str(PEERS_PYTHON), "-c", RAY_SERVE, str(file)]
    return [stack.enter_context(process(line, place.environment, log, place.port, ready=PATH))]


def _vllm_router(policy: str) -> Callable[[ExitStack, Setup, Place, Path], list[psutil.Process]]:
    def start(stack: ExitStack, setup: Setup, place: Place, log: Path) -> list[psutil.Process]:
        ports = [free_port() for _ in range(setup.num_engines)]
        lines = [vllm_line(place.checkpoint, port) for port in ports]
        engines = [
            stack.enter_context(process(line, place.environment, log.with_suffix(f".{port}.log"), port))
            for line, port in zip(lines, ports, strict=True)
        ]
        urls = [f"http://{LOOPBACK}:{port}" for port in ports]
        line = [str(PEERS_PYTHON), "-m", "vllm_router.launch_router", "--host", LOOPBACK, "--port", str(place.port)]
        line += ["--prometheus-port", str(free_port()), "--policy", policy, "--log-level", "warning", "--worker-urls", *urls]
        stack.enter_context(process(line, place.environment, log, place.port))
        return engines

    return start


SYSTEMS: Final[Mapping[str, Callable[[ExitStack, Setup, Place, Path], list[psutil.Process]]]] = {
    "prism": _prism,
    "vllm": _vllm,
    "ray-serve-llm": _ray_serve_llm,
    "vllm-router": _vllm_router("cache_aware"),
    "vllm-router-session": _vllm_router("consistent_hash"),
}


def versions() -> dict[str, str]:
    """What the two environments hold."""
    names = ("vllm-cpu", "ray", "torch", "transformers", "vllm-router", "prism-serve")
    script = (
        "import json, sys, importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': sys.version.split()[0], **{n: found[n] for n in sys.argv[1:] if n in found}}))"
    )
    said: dict[str, str] = {}
    for label, python in (("prism and vllm", sys.executable), ("peers", str(PEERS_PYTHON))):
        if not Path(python).exists():
            said[label] = "not there"
            continue
        done = subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=True)  # noqa: S603
        said[label] = ", ".join(f"{name} {version}" for name, version in json.loads(done.stdout).items())
    return said


def free_port() -> int:
    """A loopback port that nobody listens on now, and below those that Linux gives to connections."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port


@contextmanager
def process(
    line: Sequence[str], environment: Mapping[str, str], log: Path, port: int, ready: str = "/health"
) -> Iterator[psutil.Process]:
    """A server that answers 200 at ``ready``, until the end of the block. Where ``/health`` says too little, ask for a chat."""
    with log.open("wb") as sink:
        server = subprocess.Popen(  # noqa: S603
            line, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT, start_new_session=True
        )
        root = psutil.Process(server.pid)
        seen: set[psutil.Process] = set()
        try:
            _wait_until_ready(f"http://{LOOPBACK}:{port}{ready}", server, log)
            seen |= set(root.children(recursive=True))
            yield root
        finally:
            _end(server, seen)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    hello = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, hello if url.endswith(PATH) else None, headers)  # noqa: S310
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(f"not ready within {START_TIMEOUT_S} s:\n{log.read_text(errors='replace')[-3000:]}")


def _end(server: subprocess.Popen[bytes], seen: set[psutil.Process]) -> None:
    """Asks politely, then makes sure of every process that it started."""
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
    """The shared memory that a process maps: what Ray kills leaves it behind."""
    try:
        paths = {mapped.path for mapped in process.memory_maps()}
    except psutil.Error:
        return set()
    return {Path(path) for path in paths if path.startswith(("/dev/shm/psm_", "/dev/shm/sem.mp-"))}  # noqa: S108
