"""Starts each system as a user would and ends it again, with the same model, limits and threads for all.

- ``prism``: ``prism serve`` with ``deployments/app.yaml`` and the changes that the set-up asks for.
- ``vllm``: ``python -m vllm.entrypoints.openai.api_server``, from Prism's own environment.
- ``ray-serve-llm``: ``ray.serve.llm:build_openai_app``, started with ``serve run`` from the peers' environment.
- ``vllm-router`` and ``vllm-router-session``: the router from the peers' environment in front of bare engines. The
  first uses its default policy (the longest shared prefix), the second ``consistent_hash`` on the user.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from loadtest.bench.binding import bind
from loadtest.bench.requests import MODEL
from loadtest.servers import LOOPBACK, ROOT, free_port, prism_line, process, sized
from loadtest.workload import PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import psutil

NAMES: Final = {
    "prism": "Prism",
    "vllm": "vLLM",
    "ray-serve-llm": "Ray Serve LLM",
    "vllm-router": "vllm-router",
    "vllm-router-session": "vllm-router by session",
}
"""The name of each system in reports and plots."""
PEERS_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
"""The Python of the peers' environment, which ``make bench`` makes."""

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
"""Runs ``serve run`` on a Ray of its own. The dashboard is off, as it is in Prism, because it would use the cores too.
Ray Serve LLM reserves more than two cores, so Ray is told that there are four; this binds nothing."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The processes, cores and checkpoint that a measured system runs with.

    Args:
        name: The name of the set-up in notes and logs.
        geometry: The checkpoint: ``demo`` or ``bench``.
        engine_cores: The core that each vLLM engine is bound to; empty for one engine that is not bound.
        encoder_core: The core that Prism's encoder is bound to; None leaves it unbound.
        num_preprocessors: The number of Prism's preprocessor processes.
        whole_prompts: Prism prefills whole prompts as the others do, without the ``prefill_chunk_tokens`` of its
            application file.
    """

    name: str
    geometry: str
    engine_cores: tuple[int, ...] = ()
    encoder_core: int | None = None
    num_preprocessors: int = 1
    whole_prompts: bool = False

    @property
    def num_engines(self) -> int:
        """The number of vLLM engines."""
        return max(1, len(self.engine_cores))


@dataclass(frozen=True, slots=True)
class LaunchSite:
    """The checkpoint, folder and port with which one system is started.

    Args:
        checkpoint: The folder of the model.
        folder: A scratch folder that only this system uses.
        port: The loopback port to listen on.
        is_bound: Engines will be bound to cores from outside, so vLLM must not bind them itself.
    """

    checkpoint: Path
    folder: Path
    port: int
    is_bound: bool

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of every process of every system.

        Each engine gets one thread, and nothing is compiled during a first request. Ray's workers run at niceness 0.
        With Ray's default of 15, the engines of the two systems that run on Ray would yield to everything else on the
        machine.
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
    """Runs a system inside the block, bound to the set-up's cores, and yields its URL.

    Args:
        system: One of ``SYSTEMS``.
        setup: How to lay it out.
        checkpoint: The folder of the model.
        log: The file for its output.

    Raises:
        RuntimeError, TimeoutError: The system did not start; the message ends with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="pb-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        site = LaunchSite(checkpoint, Path(folder), free_port(), is_bound=bool(setup.engine_cores))
        processes = SYSTEMS[system](stack, setup, site, log)
        if site.is_bound:
            bind(processes, engine_cores=setup.engine_cores, encoder_core=setup.encoder_core)
        yield f"http://{LOOPBACK}:{site.port}"


def _prism(stack: ExitStack, setup: Setup, site: LaunchSite, log: Path) -> list[psutil.Process]:
    line = prism_line(prism_changes(setup, site.checkpoint), site.folder, site.port)
    return [stack.enter_context(process(line, site.environment, log, site.port))]


def prism_changes(setup: Setup, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The changes to ``deployments/app.yaml``, as for ``changed_app``.

    The CPUs that Ray reserves are small enough for two cores; a reservation binds nothing.
    """
    small = {"resources": {"num_cpus": 0.2}}
    model = {"checkpoint": str(checkpoint), "served_name": MODEL, "max_model_len": MAX_MODEL_LEN, "dtype": DTYPE}
    decoder: dict[str, int | str | None] = {
        "max_num_seqs": MAX_NUM_SEQS,
        "kv_cache_gib": KV_CACHE_GIB,
    }
    if len(setup.engine_cores) == 1:
        # All replicas get the same setting, so a core can be reserved only for a single one.
        decoder["bind_cores"] = str(setup.engine_cores[0])
    if setup.whole_prompts:
        decoder["prefill_chunk_tokens"] = None
    return {
        "model": model,
        "router": small,
        "preprocessor": small,
        "encoder": small,
        "decoder": small | decoder | {"enforce_eager": True},
        "Preprocessor": sized(setup.num_preprocessors),
        "Decoder": sized(setup.num_engines),
    }


def _vllm(stack: ExitStack, _: Setup, site: LaunchSite, log: Path) -> list[psutil.Process]:
    return [stack.enter_context(process(vllm_line(site.checkpoint, site.port), site.environment, log, site.port))]


def vllm_line(checkpoint: Path, port: int) -> list[str]:
    """The command line that starts a bare vLLM engine."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--host={LOOPBACK}", f"--port={port}"),
        *(
            f"--model={checkpoint}",
            f"--served-model-name={MODEL}",
            f"--dtype={DTYPE}",
            f"--max-model-len={MAX_MODEL_LEN}",
        ),
        *(f"--max-num-seqs={MAX_NUM_SEQS}", "--enforce-eager"),
        f"--limit-mm-per-prompt={json.dumps({'image': MAX_PICTURES})}",
    ]


def _ray_serve_llm(stack: ExitStack, setup: Setup, site: LaunchSite, log: Path) -> list[psutil.Process]:
    engine = {
        "dtype": DTYPE,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": MAX_NUM_SEQS,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": MAX_PICTURES},
        "distributed_executor_backend": "mp",
    }
    llm = {
        "model_loading_config": {"model_id": MODEL, "model_source": str(site.checkpoint)},
        "accelerator_config": {"kind": "cpu"},
        "deployment_config": {"num_replicas": setup.num_engines},
        "engine_kwargs": engine,
    }
    application = {"name": "llm", "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app"}
    content = {
        "http_options": {"host": LOOPBACK, "port": site.port},
        "applications": [application | {"args": {"llm_configs": [llm]}}],
    }
    file = site.folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    hello = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
    line = [str(PEERS_PYTHON), "-c", RAY_SERVE, str(file)]
    return [stack.enter_context(process(line, site.environment, log, site.port, ready=PATH, hello=hello))]


def _vllm_router(policy: str) -> Callable[[ExitStack, Setup, LaunchSite, Path], list[psutil.Process]]:
    def start(stack: ExitStack, setup: Setup, site: LaunchSite, log: Path) -> list[psutil.Process]:
        ports = [free_port() for _ in range(setup.num_engines)]
        lines = [vllm_line(site.checkpoint, port) for port in ports]
        engines = [
            stack.enter_context(process(line, site.environment, log.with_suffix(f".{port}.log"), port))
            for line, port in zip(lines, ports, strict=True)
        ]
        urls = [f"http://{LOOPBACK}:{port}" for port in ports]
        line = [str(PEERS_PYTHON), "-m", "vllm_router.launch_router", "--host", LOOPBACK, "--port", str(site.port)]
        line += ["--prometheus-port", str(free_port()), "--policy", policy, "--log-level", "warning"]
        line += ["--worker-urls", *urls]
        stack.enter_context(process(line, site.environment, log, site.port))
        return engines

    return start


SYSTEMS: Final[Mapping[str, Callable[[ExitStack, Setup, LaunchSite, Path], list[psutil.Process]]]] = {
    "prism": _prism,
    "vllm": _vllm,
    "ray-serve-llm": _ray_serve_llm,
    "vllm-router": _vllm_router("cache_aware"),
    "vllm-router-session": _vllm_router("consistent_hash"),
}


def versions() -> dict[str, str]:
    """The versions of the main packages in Prism's environment and in the peers', as text."""
    names = ("vllm-cpu", "ray", "torch", "transformers", "vllm-router", "prism-serve")
    script = (
        "import json, sys, importlib.metadata as m\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': sys.version.split()[0], **{n: found[n] for n in sys.argv[1:] if n in found}}))"
    )
    said: dict[str, str] = {}
    for label, python in (("prism and vllm", sys.executable), ("peers", str(PEERS_PYTHON))):
        if not Path(python).exists():
            said[label] = "environment is missing"
            continue
        done = subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=True)  # noqa: S603
        said[label] = ", ".join(f"{name} {version}" for name, version in json.loads(done.stdout).items())
    return said
