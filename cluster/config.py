"""The whole configuration: one typed, frozen tree, filled from the ``args:`` of the application file.

Unknown keys are refused by name, and bad values with a sentence that says what would be right. Derived values are
properties. This module reads no file and downloads nothing. ``cluster.checkpoint`` reads the files of the checkpoint
that is named here.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

CORES = r"\d+(-\d+)?(,\d+(-\d+)?)*"
"""CPU cores of one worker, such as ``0-3,6``."""

POOLS = ("router", "preprocessor", "encoder", "decoder")

Dtype = Literal["float32", "bfloat16"]


class Frozen(BaseModel):
    """A node of the tree: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Frozen):
    """Which model is served, and as what.

    ``checkpoint`` is ``demo`` (the small one that comes with Prism), a directory, or a name on the Hugging Face Hub.
    """

    checkpoint: str = "demo"
    hub_revision: str | None = None
    """A commit, tag or branch on the Hub. Name a commit, so that replicas which start later serve the same weights."""
    served_name: str = "prism-demo"
    max_model_len: int = Field(default=4096, ge=1)
    dtype: Dtype = "bfloat16"


class MediaConfig(Frozen):
    """What a picture may be, and where it may be fetched from."""

    max_pictures: int = Field(default=16, ge=0)
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1)
    max_picture_pixels: int = Field(default=50_000_000, ge=1, le=178_956_970)
    """Pixels of the stored picture; Pillow decodes no more than the upper bound, whatever is configured."""
    fetch_timeout_s: float = Field(default=10.0, gt=0)
    max_redirects: int = Field(default=3, ge=0)
    trusted_hosts: frozenset[str] = frozenset()
    """Host names that may resolve to private addresses, such as an object store inside the cluster."""
    ca_file: str | None = None
    """A PEM file of certificate authorities to trust besides the system's."""


class Resources(Frozen):
    """What Ray reserves for one replica, and on which nodes."""

    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    memory_bytes: int | None = Field(default=None, ge=1)
    pool_label: str | None = None
    """Prefer nodes whose Ray label ``pool`` has this value, then nodes that have no such label; with
    ``pool_label_required``, and for decoders over several GPUs, use no others. A node of another pool is never used."""
    pool_label_required: bool = False


class PoolConfig(Frozen):
    """What every pool has."""

    num_replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Calls that one replica works on at a time; others wait in line for it, until their request's time is up."""
    resources: Resources = Resources()

    def without_label(self) -> Self:
        """The same on any node."""
        anywhere = {"pool_label": None, "pool_label_required": False}
        return self.model_copy(update={"resources": self.resources.model_copy(update=anywhere)})


class RouterConfig(PoolConfig):
    max_ongoing_requests: int = Field(default=1024, ge=1)
    max_in_flight: int = Field(default=256, ge=1)
    """Requests that one Router replica works on at a time; more are refused with 429."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    max_held_bytes: int = Field(default=2**30, ge=1)
    """Bytes of bodies and pictures that one Router replica holds for requests which have not begun to answer; what does
    not fit is refused with 429. The process uses up to three times as much: raw, parsed and decoded."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """The longest that a request may take; a client may ask for less with ``prism.timeout_s``."""

    @model_validator(mode="after")
    def _a_body_can_be_held(self) -> Self:
        if self.max_held_bytes < 2 * self.max_body_bytes:
            raise ValueError("max_held_bytes must be at least twice max_body_bytes: a body, and the pictures within it")
        return self


class PreprocessorConfig(PoolConfig):
    """The CPU pool: each replica is one process that works on one picture at a time."""


class RoutingConfig(Frozen):
    """How calls are spread over a pool's replicas.

    ``affinity`` sends them to where something of them is kept, and weighs that against the work that waits there;
    ``balanced`` is Serve's own choice, the shorter queue of two: it knows no picture's home, and several encoders may
    each run one that comes to them together.
    """

    policy: Literal["affinity", "balanced"] = "affinity"
    report_period_s: float = Field(default=1.0, gt=0)
    """How often replicas report what they have to do, which tells each Router of the others' calls."""


class EncoderRoutingConfig(RoutingConfig):
    load_factor: float = Field(default=1.25, ge=1)
    """How many times the mean work a replica may have, and still be given the new pictures at home there."""


class EncoderConfig(PoolConfig):
    device: Literal["cpu", "cuda"] = "cpu"
    cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """What each replica keeps of the embeddings that it made, in its memory. One token takes hidden size × bytes per
    number."""
    batch_patches: int = Field(default=768, ge=1)
    """Patches of 14 x 14 pixels that the vision tower takes in one run, of however many pictures; a larger one runs
    alone. The default suits a CPU core, on which sharing pays for small pictures; a GPU wants ten times as many."""
    num_threads: int = Field(default=1, ge=1)
    """CPU threads that the vision tower computes with; of no effect on a GPU."""
    routing: EncoderRoutingConfig = EncoderRoutingConfig()


class DecoderConfig(PoolConfig):
    tensor_parallel_size: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    max_num_seqs: int = Field(default=64, ge=1)
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache per worker on CPU; vLLM takes whole GiB there. On a GPU, ``gpu_memory_utilization`` decides."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    prefill_chunk_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of one prompt in a step of the engine while other requests run. Fewer let streams flow more
    evenly while long prompts come, whose own first tokens come later; without it vLLM's limit for all of a step holds.
    """
    enforce_eager: bool = False
    bind_cores: str | None = Field(default=None, pattern=rf"^{CORES}(\|{CORES})*$")
    """CPU cores of the engine's workers as vLLM writes them: ``0|1`` gives each of two workers a core, ``0-3,6`` one
    worker five. For cores that nothing else needs much: an engine without its own gives way to what it shares cores
    with."""
    transport: Literal["shared", "inline"] = "shared"
    """How embeddings reach the engine's workers: by shared memory, or within the request."""
    shared_bytes: int = Field(default=2**30, ge=1)
    """What each replica holds of embeddings in shared memory, in use or kept for reuse; it counts as the machine's
    memory. A request waits until there is room for its own."""
    tool_call_parser: str | None = None
    """vLLM's parser for tools that the model calls by itself (``tool_choice: auto``), such as ``hermes``."""
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _devices_follow_from_tensor_parallel_size(self) -> Self:
        if self.resources.num_gpus:
            raise ValueError("leave out resources.num_gpus: a decoder has one GPU per tensor-parallel worker")
        if self.device == "cuda" and self.tensor_parallel_size > 1 and self.resources.memory_bytes is not None:
            raise ValueError(
                "leave out resources.memory_bytes: Ray does not reserve memory for a decoder over several GPUs"
            )
        return self

    @model_validator(mode="after")
    def _tensor_parallel_on_cpu_binds_cores(self) -> Self:
        num_entries = len((self.bind_cores or "").split("|"))  # one worker needs none: an empty entry
        if self.device == "cpu" and num_entries != self.tensor_parallel_size:
            example = "|".join(str(core) for core in range(self.tensor_parallel_size))
            raise ValueError(
                f"bind_cores needs one entry per worker on CPU: {example!r} for {self.tensor_parallel_size}"
            )
        return self

    @property
    def shares_cores(self) -> bool:
        """Whether the engine computes on CPU cores that nothing reserves for it."""
        return self.device == "cpu" and self.bind_cores is None

    @property
    def cores(self) -> set[int]:
        """Every core that ``bind_cores`` names."""
        spans = [span.split("-") for span in (self.bind_cores or "").replace("|", ",").split(",") if span]
        return {core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)}


class PrismConfig(Frozen):
    """The root: one model, the rules for its pictures, and the four pools.

    ``encode`` says where pictures are encoded. Today every model runs ``split``; ``colocated`` and ``auto`` are named
    in the design for models whose vLLM class takes no outside embeddings, and are refused until they exist.
    """

    model: ModelConfig = ModelConfig()
    encode: Literal["split"] = "split"
    media: MediaConfig = MediaConfig()
    router: RouterConfig = RouterConfig()
    preprocessor: PreprocessorConfig = PreprocessorConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        return tuple(getattr(self, name) for name in POOLS)

    @property
    def pool_labels(self) -> list[str]:
        """The Ray labels of all pools, each once."""
        return sorted({pool.resources.pool_label for pool in self.pools if pool.resources.pool_label is not None})

    def without_pool_labels(self) -> Self:
        """The same on whatever nodes there are."""
        return self.model_copy(update={name: getattr(self, name).without_label() for name in POOLS})
