"""The flags of ``vllm serve`` and the environment variables of vLLM that a configuration comes to."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from cluster.checkpoint import Checkpoint
from cluster.decode.transport.handoff import MEDIA_CONNECTOR
from cluster.tracing import PROTOCOL

if TYPE_CHECKING:
    from cluster.config import PrismConfig

ONEDNN_PRIMITIVES: Final = 64
"""The compiled matrix products that oneDNN keeps, one for each shape. Its own default is 1,024. Measured (demo's
load): that takes 150 MiB after five minutes and still grows after twenty, and is not faster."""


def engine_flags(config: PrismConfig) -> list[str]:
    """The engine's settings as flags of ``vllm serve``; vLLM's manual explains them."""
    decoder, model = config.decoder, config.model
    flags: dict[str, Any] = {
        "model": Checkpoint(model).path,
        "served-model-name": model.served_name,
        "max-model-len": model.max_model_len,
        "dtype": model.dtype,
        "tensor-parallel-size": decoder.tensor_parallel_size,
        "max-num-seqs": decoder.max_num_seqs,
        "limit-mm-per-prompt": json.dumps({"image": 0, "video": 0}),
        "mm-processor-cache-gb": 0,
        "worker-extension-cls": "cluster.decode.worker.WorkerExtension",
    }
    if (model.min_pixels, model.max_pixels) != (
        None,
        None,
    ):  # vLLM sizes its cache of embeddings by the largest picture
        processor = Checkpoint(model).processor
        bounds = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        flags["mm-processor-kwargs"] = json.dumps(bounds)
    switches = ["--enable-mm-embeds"]
    if decoder.device == "cpu":  # vLLM's model runner for GPUs has another interface
        flags["logits-processors"] = "cluster.decode.forcing:ForcedTokens"
    if decoder.device == "cuda":
        flags["gpu-memory-utilization"] = decoder.gpu_memory_utilization
    if decoder.tensor_parallel_size > 1:
        flags["distributed-executor-backend"] = "mp"
    elif decoder.device == "cuda":
        flags["distributed-executor-backend"] = "uni"
    if decoder.transport == "shared":
        connector = {
            "ec_connector": "SharedMemoryConnector",
            "ec_connector_module_path": "cluster.decode.transport.connector",
        }
        flags["ec-transfer-config"] = json.dumps({**connector, "ec_role": "ec_consumer"})
    if decoder.prefill_chunk_tokens is not None:
        flags["long-prefill-token-threshold"] = decoder.prefill_chunk_tokens
    if config.tracing.endpoint is not None:
        flags["otlp-traces-endpoint"] = config.tracing.endpoint
    if decoder.enforce_eager:
        switches.append("--enforce-eager")
    if decoder.tool_call_parser:
        flags["tool-call-parser"] = decoder.tool_call_parser
        switches.append("--enable-auto-tool-choice")
    return [*switches, *(f"--{name}={value}" for name, value in flags.items())]


def set_environment(config: PrismConfig) -> None:
    """Sets the environment variables of vLLM. Call it before vLLM is imported, because vLLM reads them then."""
    os.environ["VLLM_MEDIA_CONNECTOR"] = MEDIA_CONNECTOR
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.tracing.endpoint is not None:
        os.environ.update(PROTOCOL)
    if config.decoder.device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.decoder.kv_cache_gib)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_PRIMITIVES))
        if config.decoder.bind_cores is not None:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = config.decoder.bind_cores  # read where there are several workers
            if config.decoder.tensor_parallel_size == 1:
                os.environ["OMP_NUM_THREADS"] = str(len(config.decoder.cores))
        if config.decoder.enforce_eager:  # vLLM would still compile its sampler, for seconds of a first request
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
