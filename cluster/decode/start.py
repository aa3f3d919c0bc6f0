"""Starts vLLM's engine and the serving objects of its OpenAI layer.

It does what vLLM's own launcher does, without an HTTP server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
from starlette.datastructures import State

from cluster import shared_memory
from cluster.checkpoint import Checkpoint
from cluster.decode.cores import bind_cores
from cluster.decode.flags import engine_flags, set_environment

if TYPE_CHECKING:
    from cluster.config import PrismConfig
    from cluster.decode.engine import Engine
    from cluster.decode.transport.handoff import Transport
    from cluster.decode.transport.shape import EmbeddingShape


async def start_engine(config: PrismConfig) -> Engine:
    """Loads the language model and waits until it can generate.

    Raises:
        ValueError: ``decoder.shared_bytes`` is smaller than the embedding of the largest picture.
        RuntimeError: vLLM could not start; its log says why.
    """
    set_environment(config)
    # vLLM reads its environment when it is imported, so these imports come after ``set_environment``.
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.openai.chat_completion import serving as chat_serving
    from vllm.entrypoints.openai.completion import serving as completion_serving
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from cluster.decode.answer import warm_up
    from cluster.decode.engine import Engine
    from cluster.decode.stats import SchedulerLog, TimedLLM
    from cluster.decode.steps import StreamClock
    from cluster.decode.transport.shape import EmbeddingShape
    from cluster.decode.transport.shared import SharedTransport

    chat_serving.time = completion_serving.time = StreamClock()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(engine_flags(config))
    validate_parsed_serve_args(args)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    if config.decoder.device == "cpu" and config.decoder.tensor_parallel_size == 1:
        # The class instead of the name "uni": on a CPU vLLM turns the name into "mp" in order to bind threads. Two
        # processes would wait for each other's steps in busy loops, on cores that other pools need. Measured (one
        # picture's request, two cores): 61 core-milliseconds in two processes → 43 in one.
        engine_args.distributed_executor_backend = UniProcExecutor
    vllm_config = engine_args.create_engine_config()
    shape = EmbeddingShape(
        hidden_size=vllm_config.model_config.get_inputs_embeds_size(),
        merge_size=Checkpoint(config.model).processor.merge_size,
        dtype=str(vllm_config.model_config.dtype).removeprefix("torch."),
    )
    transport = open_transport(config, shape)
    if isinstance(transport, SharedTransport):
        vllm_config.ec_transfer_config.ec_connector_extra_config.update(transport.settings)
    log, state = SchedulerLog(), State()
    llm = TimedLLM.from_vllm_config(vllm_config, stat_loggers=[lambda *_: log])
    segments = shared_memory.held_by(psutil.Process().children(recursive=True))
    engine = Engine(llm, state, shape, transport, log, segments)
    try:
        await init_app_state(llm, state, args, await llm.get_supported_tasks())
        await warm_up(engine)
        bind_cores(config.decoder)
        await engine.measure_patience(shares_cores=config.decoder.shares_cores)
    except BaseException:
        engine.stop()
        raise
    return engine


def open_transport(config: PrismConfig, shape: EmbeddingShape) -> Transport:
    """Opens the transport for embeddings that the configuration names.

    Raises:
        ValueError: ``decoder.shared_bytes`` is smaller than the embedding of the largest picture.
    """
    from cluster.decode.transport.inline import InlineTransport
    from cluster.decode.transport.shared import SharedTransport

    if config.decoder.transport == "inline":
        return InlineTransport(shape)
    processor = Checkpoint(config.model).processor
    largest_bytes = min(processor.max_tokens, config.model.max_model_len) * shape.row_bytes
    if config.decoder.shared_bytes < largest_bytes:
        raise ValueError(
            f"decoder.shared_bytes must be at least {largest_bytes}, the size of the largest picture's embedding"
        )
    return SharedTransport(shape, config.decoder.shared_bytes)
