"""Starts vLLM's engine and the serving objects of its OpenAI layer, as vLLM's own launcher does, without an HTTP server."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import psutil
from starlette.datastructures import State

from cluster import priority, segments
from cluster.errors import StageUnavailable
from cluster.messages import Call, Embedding, picture_part
from cluster.metrics import CACHE_LOOKUPS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from vllm.v1.engine.async_llm import AsyncLLM

    from cluster.config import DecoderConfig, PrismConfig
    from cluster.decode.embeddings import EmbeddingShape
    from cluster.decode.load import SchedulerLog
    from cluster.decode.transport import Transport
    from cluster.messages import Digest, FirstPiece, Spent

MAX_NICENESS: Final = 19

ONEDNN_PRIMITIVES: Final = 64
"""What oneDNN keeps of its compiled matrix products, one for each shape. By itself it keeps 1,024: 150 MiB after five minutes
of the demo's load, and growing after twenty, for no gain in speed."""


class Engine:
    """A running vLLM engine. Make one with ``await Engine.start(config)``; it dies with its process."""

    def __init__(self, llm: AsyncLLM, state: State, shape: EmbeddingShape, transport: Transport, log: SchedulerLog) -> None:
        self.serving = state
        self.embedding_shape = shape
        self.transport = transport
        self._llm = llm
        self._log = log
        self._segments: set[Path] = set()
        self.num_streams = 0
        """Answers that are sent token by token now."""

    @classmethod
    async def start(cls, config: PrismConfig) -> Self:
        """Loads the language model and waits until it can generate.

        Raises:
            ValueError: ``decoder.shared_bytes`` would not hold the largest picture.
            RuntimeError: vLLM could not start; its log says why.
        """
        _set_environment(config)
        # Only now: vLLM reads its environment when it is imported.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        from cluster.decode.embeddings import EmbeddingShape
        from cluster.decode.load import SchedulerLog
        from cluster.decode.shared import SharedTransport
        from cluster.decode.times import TimedLLM

        args = make_arg_parser(FlexibleArgumentParser()).parse_args(engine_flags(config))
        validate_parsed_serve_args(args)
        engine_args = AsyncEngineArgs.from_cli_args(args)
        if config.decoder.device == "cpu" and config.decoder.tensor_parallel_size == 1:
            # Not by its name, which vLLM takes for "mp" on a CPU to bind threads. Two processes spin for each other's steps, on
            # cores that others need: 61 core-milliseconds for a picture's request on two cores, against 43 in one process.
            engine_args.distributed_executor_backend = UniProcExecutor
        vllm_config = engine_args.create_engine_config()
        shape = EmbeddingShape(
            hidden_size=vllm_config.model_config.get_inputs_embeds_size(),
            merge_size=config.model.processor.merge_size,
            dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
        )
        transport = open_transport(config, shape)
        if isinstance(transport, SharedTransport):
            vllm_config.ec_transfer_config.ec_connector_extra_config.update(transport.settings)
        log, state = SchedulerLog(), State()
        llm = TimedLLM.from_vllm_config(vllm_config, stat_loggers=[lambda *_: log])
        engine = cls(llm, state, shape, transport, log)
        engine._segments = segments.held_by(psutil.Process().children(recursive=True))
        try:
            await init_app_state(llm, state, args, await llm.get_supported_tasks())
            await engine._warm_up()
            _place(config.decoder)
        except BaseException:
            engine.stop()
            raise
        return engine

    async def _warm_up(self) -> None:
        """Runs one picture through, so that no client waits for what vLLM does on first use."""
        shape = self.embedding_shape
        rows = np.zeros((1, shape.row_bytes), dtype=np.uint8)
        blank = Embedding("0" * 64, rows, shape.dtype, (1, shape.merge_size, shape.merge_size))
        message = {"role": "user", "content": [picture_part(blank.digest), {"type": "text", "text": "?"}]}
        async for _ in self.answer(
            Call("chat", "warm-up", {"messages": [message], "max_tokens": 2}), {blank.digest: blank}, {}
        ):
            pass

    def answer(self, call: Call, embeddings: Mapping[Digest, Embedding], spent: Spent) -> AsyncGenerator[FirstPiece | str]:
        """Runs one call; see ``cluster.decode.answer``."""
        from cluster.decode.answer import answer

        return answer(self, call, embeddings, spent)

    def kept(self, digest: Digest) -> Embedding | None:
        """An embedding that the engine still holds from before, to be offered again."""
        kept = self.transport.kept(digest)
        if kept is not None:
            CACHE_LOOKUPS.labels("hit").inc()
        return kept

    @property
    def is_dead(self) -> bool:
        """Whether the engine's process is gone."""
        return bool(self._llm.errored)

    @property
    def num_requests(self) -> int:
        """Requests that the engine holds now, waiting or running."""
        return int(self._llm.get_num_unfinished_requests())

    @property
    def kv_tokens(self) -> int:
        """How many tokens the KV cache takes."""
        cache = self._llm.vllm_config.cache_config
        return int(cache.block_size * (cache.num_gpu_blocks or 0))

    def load(self) -> dict[str, float]:
        """What the engine has to do: requests that wait and run, tokens of prompts not done yet, the KV cache's used share."""
        for_room = self.transport.num_waiting
        if not self.num_requests:  # the scheduler's last word may be of a step before the end
            return {"waiting": for_room, "running": 0, "queued_tokens": 0, "kv_use": 0.0}
        running = min(self._log.num_running, self.num_requests)
        return {
            "waiting": self.num_requests - running + for_room,
            "running": running,
            "queued_tokens": int(self._llm.get_num_queued_tokens()),
            "kv_use": round(self._log.kv_use, 2),
        }

    async def check_health(self) -> None:
        """Raises:
        StageUnavailable: The engine's process is gone; only a new replica helps.
        """
        if self.is_dead:
            raise engine_died()

    async def parameter_names(self) -> list[list[str]]:
        """The name of every weight, worker by worker: none of a vision tower, or the split is not one."""
        return list(await self._llm.collective_rpc("parameter_names"))

    def stop(self) -> None:
        """Ends the engine's processes, and removes what shared memory they leave when they were killed."""
        self._llm.shutdown()
        self.transport.close()
        segments.unlink(self._segments)


def engine_died() -> StageUnavailable:
    """What becomes of the requests of an engine that is gone."""
    return StageUnavailable("The decoder's engine has died and is being replaced; send the request again.")


def open_transport(config: PrismConfig, shape: EmbeddingShape) -> Transport:
    """The way in for embeddings that the configuration names.

    Raises:
        ValueError: ``decoder.shared_bytes`` would not hold the largest picture.
    """
    from cluster.decode.inline import InlineTransport
    from cluster.decode.shared import SharedTransport

    if config.decoder.transport == "inline":
        return InlineTransport(shape)
    largest_bytes = min(config.model.processor.max_tokens, config.model.max_model_len) * shape.row_bytes
    if config.decoder.shared_bytes < largest_bytes:
        raise ValueError(f"decoder.shared_bytes must be at least {largest_bytes}: what the largest picture takes")
    return SharedTransport(shape, config.decoder.shared_bytes)


def engine_flags(config: PrismConfig) -> list[str]:
    """The engine's settings as flags of ``vllm serve``, so that a flag's meaning is looked up in one place: vLLM's manual."""
    decoder, model = config.decoder, config.model
    flags: dict[str, Any] = {
        "model": model.path,
        "served-model-name": model.served_name,
        "max-model-len": model.max_model_len,
        "dtype": model.dtype,
        "tensor-parallel-size": decoder.tensor_parallel_size,
        "max-num-seqs": decoder.max_num_seqs,
        "limit-mm-per-prompt": json.dumps({"image": 0, "video": 0}),
        "mm-processor-cache-gb": 0,
        "worker-extension-cls": "cluster.decode.worker.WorkerExtension",
    }
    switches = ["--enable-mm-embeds"]
    if decoder.device == "cuda":
        flags["gpu-memory-utilization"] = decoder.gpu_memory_utilization
        flags["distributed-executor-backend"] = "ray" if decoder.tensor_parallel_size > 1 else "uni"
    elif decoder.tensor_parallel_size > 1:
        flags["distributed-executor-backend"] = "mp"
    if decoder.transport == "shared":
        connector = {"ec_connector": "SharedMemoryConnector", "ec_connector_module_path": "cluster.decode.connector"}
        flags["ec-transfer-config"] = json.dumps({**connector, "ec_role": "ec_consumer"})
    if decoder.prefill_chunk_tokens is not None:
        flags["long-prefill-token-threshold"] = decoder.prefill_chunk_tokens
    if decoder.enforce_eager:
        switches.append("--enforce-eager")
    if decoder.tool_call_parser:
        flags["tool-call-parser"] = decoder.tool_call_parser
        switches.append("--enable-auto-tool-choice")
    return [*switches, *(f"--{name}={value}" for name, value in flags.items())]


def _place(decoder: DecoderConfig) -> None:
    """Puts an engine on the CPU cores that it has to itself, or behind whatever else uses them. vLLM binds several workers."""
    if decoder.shares_cores:
        _let_others_first()
    elif decoder.device == "cpu" and decoder.tensor_parallel_size == 1:
        _bind(decoder.cores)


def _bind(cores: set[int]) -> None:
    """Binds the engine's threads to the cores that it has for itself; those that it starts later inherit it."""
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def _let_others_first() -> None:
    """Gives the engine's main thread what its cores' other users leave.

    It computes, and where a decoder has less than two CPUs no other thread does; those that talk to others stay as they are.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.nice(min(MAX_NICENESS, process.nice() + priority.SHARING_ENGINE))


def _set_environment(config: PrismConfig) -> None:
    from cluster.decode.inline import CONNECTOR

    os.environ["VLLM_MEDIA_CONNECTOR"] = CONNECTOR
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.decoder.device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.decoder.kv_cache_gib)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_PRIMITIVES))
        if config.decoder.bind_cores is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = config.decoder.bind_cores  # read where there are several workers
            if config.decoder.tensor_parallel_size == 1:
                os.environ["OMP_NUM_THREADS"] = str(len(config.decoder.cores))
        if config.decoder.enforce_eager:  # vLLM compiles its sampler even so, for seconds in the middle of a first request
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
