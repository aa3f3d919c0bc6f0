"""Computes the speeds of replicas from the published figures of GPUs.

A prefill and the vision tower are bound by arithmetic, and a step of single tokens by memory bandwidth. With tensor
parallelism each GPU does its part of the work, and the parts are added up over the links twice per layer. The latency
of a link, the overhead of the engine and the work of attention over long prompts are left out. So the speeds are
hopeful, and more so for many small GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.scaling.simulation.speeds import DecoderSpeeds, EncoderSpeeds, Speeds

if TYPE_CHECKING:
    from cluster.scaling.planning.catalogue import Catalogue

BYTES_PER_NUMBER: Final = 2
"""Bytes of a number in bfloat16."""
COLOCATED_PICTURE_TOKENS: Final = 8192
"""The tokens of embeddings that a colocated engine keeps: vLLM's cache has room for about one step."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The GPUs of one replica of each pool.

    Args:
        decoder_gpu: The kind of the decoders' GPUs.
        tensor_parallel_size: The GPUs of one decoder.
        encoder_gpu: The kind of the encoders' GPU, one for each. None: the decoders have the vision tower (colocated).
    """

    decoder_gpu: str
    tensor_parallel_size: int
    encoder_gpu: str | None

    @property
    def is_split(self) -> bool:
        """Whether pictures are encoded in a pool of their own."""
        return self.encoder_gpu is not None


def kv_tokens(catalogue: Catalogue, layout: Layout) -> int:
    """The tokens that fit into the KV cache of a decoder; 0 or less if not even the weights fit."""
    model, shares = catalogue.model, catalogue.efficiency
    gpu, num_gpus = catalogue.gpus[layout.decoder_gpu], layout.tensor_parallel_size
    weight_bytes = model.weight_bytes + (0.0 if layout.is_split else model.tower_bytes)
    room_bytes = shares.gpu_memory_utilization * gpu.memory_bytes - weight_bytes / num_gpus - shares.reserved_bytes
    return int(room_bytes / (model.kv_bytes_per_token / num_gpus))


def speeds_of(catalogue: Catalogue, layout: Layout, context_tokens: float) -> Speeds:
    """The speeds of the replicas of a layout. The Routers' and preprocessors' are the defaults of ``Speeds``.

    Args:
        catalogue: The figures of the model and the GPUs.
        layout: The GPUs of the replicas. The weights must fit into their memory.
        context_tokens: The tokens that an answer has before it, on average: they are read from the KV cache in every
            step.
    """
    model, shares = catalogue.model, catalogue.efficiency
    gpu, num_gpus = catalogue.gpus[layout.decoder_gpu], layout.tensor_parallel_size
    memory_bytes_per_s = num_gpus * gpu.memory_bytes_per_s * shares.memory
    decoder = DecoderSpeeds(
        prefill_tokens_per_s=1 / (_compute_s(catalogue, layout) + _exchange_s(catalogue, layout)),
        step_s=model.weight_bytes / memory_bytes_per_s,
        sequence_s=context_tokens * model.kv_bytes_per_token / memory_bytes_per_s,
        kv_tokens=kv_tokens(catalogue, layout),
    )
    if layout.encoder_gpu is None:
        tower_s = model.tower_flops_per_patch / (num_gpus * gpu.flops_per_s * shares.tower)
        decoder = decoder.model_copy(update={"tower_patch_s": tower_s, "picture_tokens": COLOCATED_PICTURE_TOKENS})
    encoder_gpu = catalogue.gpus[layout.encoder_gpu or layout.decoder_gpu]
    patch_s = model.tower_flops_per_patch / (encoder_gpu.flops_per_s * shares.tower)
    return Speeds(encoder=EncoderSpeeds(patch_s=patch_s), decoder=decoder)


def _compute_s(catalogue: Catalogue, layout: Layout) -> float:
    """The seconds of arithmetic to prefill one token."""
    flops_per_s = layout.tensor_parallel_size * catalogue.gpus[layout.decoder_gpu].flops_per_s
    return catalogue.model.flops_per_token / (flops_per_s * catalogue.efficiency.prefill)


def _exchange_s(catalogue: Catalogue, layout: Layout) -> float:
    """The seconds in which the GPUs of a decoder add up their parts for one token, twice per layer.

    In a ring, each GPU sends its part ``2·(n - 1)/n`` times.
    """
    model, num_gpus = catalogue.model, layout.tensor_parallel_size
    row_bytes = model.hidden_size * BYTES_PER_NUMBER
    sent_bytes = 2 * model.num_layers * row_bytes * 2 * (num_gpus - 1) / num_gpus
    return sent_bytes / catalogue.gpus[layout.decoder_gpu].link_bytes_per_s
