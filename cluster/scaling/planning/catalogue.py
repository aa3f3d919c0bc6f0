"""The catalogue that a plan is made from: a model, kinds of GPUs, and the share of their peak speed that is reached."""

from __future__ import annotations

from pydantic import Field

from cluster.config import Frozen


class ModelFigures(Frozen):
    """The sizes of a model, and the work that it is."""

    name: str
    """The name of the model."""
    source: str = Field(min_length=1)
    """The origin of the figures, in words."""
    weight_bytes: float = Field(gt=0)
    """Bytes of the language model's weights."""
    flops_per_token: float = Field(gt=0)
    """Floating-point operations to prefill one token."""
    kv_bytes_per_token: float = Field(gt=0)
    """Bytes of one token in the KV cache."""
    num_layers: int = Field(ge=1)
    """Layers of the language model."""
    hidden_size: int = Field(ge=1)
    """The width of the language model."""
    tower_flops_per_patch: float = Field(gt=0)
    """Floating-point operations of the vision tower for one patch."""
    tower_bytes: float = Field(gt=0)
    """Bytes of the vision tower's weights."""


class EfficiencyShares(Frozen):
    """The shares of the peak speeds that are reached, and the memory that is not for the KV cache."""

    source: str = Field(min_length=1)
    """The origin of the figures, in words."""
    tower: float = Field(gt=0, le=1)
    """The share of the peak of arithmetic that the vision tower reaches."""
    prefill: float = Field(gt=0, le=1)
    """The share of the peak of arithmetic that a prefill reaches."""
    memory: float = Field(gt=0, le=1)
    """The share of the memory bandwidth that a step without prompts reaches."""
    gpu_memory_utilization: float = Field(gt=0, le=1)
    """The share of a GPU's memory that vLLM takes."""
    reserved_bytes: float = Field(ge=0)
    """Bytes on each GPU that hold neither weights nor KV cache."""


class GpuKind(Frozen):
    """A kind of GPU and its price."""

    source: str = Field(min_length=1)
    """The origin of the figures, in words."""
    memory_bytes: float = Field(gt=0)
    """Bytes of its memory."""
    memory_bytes_per_s: float = Field(gt=0)
    """The peak of its memory bandwidth, in bytes per second."""
    flops_per_s: float = Field(gt=0)
    """The peak of its dense arithmetic in bfloat16, in floating-point operations per second."""
    link_bytes_per_s: float = Field(gt=0)
    """The bandwidth between two such GPUs in one direction, in bytes per second."""
    price_per_hour: float = Field(gt=0)
    """The price of one GPU for one hour, in any currency."""


class Catalogue(Frozen):
    """A model, and the GPUs that may serve it."""

    model: ModelFigures
    """The model."""
    efficiency: EfficiencyShares
    """The shares of the peak speeds that are reached."""
    gpus: dict[str, GpuKind] = Field(min_length=1)
    """The kinds of GPUs by their names."""
