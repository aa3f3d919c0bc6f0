"""The whole configuration, in typed and frozen models.

``PrismConfig`` is filled from the ``args:`` of the application file. It says what a process is, and a change of it
restarts every replica. The two ``UserConfig`` models are filled from the ``user_config:`` of a deployment. They hold
what can be changed while replicas run. How many replicas there are is Serve's matter: ``num_replicas``,
``autoscaling_config`` and ``max_ongoing_requests`` of a deployment.

Unknown keys are refused by name, and bad values with a sentence that says what would be right. Derived values are
properties. This module reads no file and downloads nothing. ``cluster.checkpoint`` reads the files of the checkpoint
that is named here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

CORES = r"\d+(-\d+)?(,\d+(-\d+)?)*"
"""A pattern for the CPU cores of one worker, such as ``0-3,6``."""

POOLS: Final = ("router", "preprocessor", "encoder", "decoder")
SIZES: Final = frozenset({"num_replicas", "max_ongoing_requests"})
"""Keys of Serve that every deployment has. They used to be keys of the pools in ``args:``."""

MIN_MAX_PIXELS: Final = 28 * 28
"""The pixels of one token."""

Dtype = Literal["float32", "bfloat16"]


class Frozen(BaseModel):
    """A model that cannot be changed and that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Frozen):
    """The model that is served."""

    checkpoint: str = "demo"
    """``demo`` for the small checkpoint that comes with Prism, a directory, or a name on the Hugging Face Hub such
    as ``Qwen/Qwen2.5-VL-32B-Instruct``."""
    hub_revision: str | None = None
    """A commit, tag or branch on the Hub. Name a commit: with a branch, replicas that start later may serve other
    weights."""
    served_name: str = "prism-demo"
    """The name that clients give in the field ``model``."""
    max_model_len: int = Field(default=4096, ge=1)
    """The most tokens of prompt and answer together."""
    dtype: Dtype = "bfloat16"
    """The type of the weights and activations, in the encoders and in the decoders."""
    max_pixels: int | None = Field(default=None, ge=MIN_MAX_PIXELS)
    """Larger pictures are scaled down to so many pixels, before the vision tower. Less than the checkpoint's own limit
    saves time and memory in every pool, and small print may become unreadable. A token is 28 × 28 pixels. Unset, or
    above the checkpoint's limit: the checkpoint's."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Smaller pictures are scaled up to so many pixels. Unset: the checkpoint's."""

    @model_validator(mode="after")
    def _bounds_of_pixels_are_in_order(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not be more than max_pixels")
        return self


class MediaConfig(Frozen):
    """Limits on pictures, and the places that they may be fetched from."""

    max_pictures: int = Field(default=16, ge=0)
    """The most pictures that one request may carry."""
    max_picture_bytes: int = Field(default=20 * 2**20, ge=1)
    """The most bytes of one picture file."""
    max_picture_pixels: int = Field(default=50_000_000, ge=1, le=178_956_970)
    """The most pixels of one picture as stored. Pillow never decodes more than the upper bound."""
    fetch_timeout_s: float = Field(default=10.0, gt=0)
    """The longest time for fetching one ``https:`` picture, from name lookup to last byte."""
    max_redirects: int = Field(default=3, ge=0)
    """The most redirects that are followed for one picture."""
    trusted_hosts: frozenset[str] = frozenset()
    """Host names that may resolve to private addresses, such as an object store inside the cluster."""
    ca_file: str | None = None
    """A PEM file with certificate authorities that are trusted in addition to the system's."""


class TracingConfig(Frozen):
    """Traces of requests."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """The URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request, such as
    ``http://collector:4318/v1/traces``. Unset: no traces."""


class Resources(Frozen):
    """The resources that Ray reserves for each replica of a pool, and the nodes that it may use."""

    num_cpus: float = Field(default=1.0, ge=0)
    """CPU cores that Ray reserves for one replica. Nothing binds a replica to them."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for one replica. Leave it out for decoders: a decoder with ``device: cuda`` reserves one
    GPU per tensor-parallel worker."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Memory that Ray reserves for one replica."""
    pool_label: str | None = None
    """The value of the Ray label ``pool`` on nodes that this pool prefers. If they are full or missing, other
    nodes are used, but never those that carry the label of another pool of Prism."""
    pool_label_required: bool = False
    """``true`` allows no other nodes than those with ``pool_label``."""


class PoolConfig(Frozen):
    """The settings that every pool has."""

    deployment: ClassVar[str]
    """The name of the pool's Serve deployment."""

    resources: Resources = Resources()
    """The resources that Ray reserves for each replica, and the nodes that it may use."""

    @classmethod
    def new_place(cls, key: str) -> str | None:
        """The new place of a key that this pool once had, in words; None for any other key."""
        if key in SIZES:
            return f"it belongs below deployments: {{name: {cls.deployment}, {key}: …}}"
        if key in USER_CONFIGS.get(cls.deployment, Frozen).model_fields:
            return f"it belongs below deployments: {{name: {cls.deployment}, user_config: {{{key}: …}}}}"
        return None

    @model_validator(mode="before")
    @classmethod
    def _moved_keys_are_refused(cls, values: Any) -> Any:
        places = {key: cls.new_place(str(key)) for key in values} if isinstance(values, dict) else {}
        if moved := [f"{key}: {place}" for key, place in places.items() if place]:
            raise ValueError("; ".join(moved))
        return values

    @property
    def num_gpus(self) -> float:
        """The GPUs that Ray reserves for one replica, all on one node."""
        return self.resources.num_gpus


class RouterConfig(PoolConfig):
    """The Router pool: the HTTP surface of Prism."""

    deployment: ClassVar[str] = "Router"

    request_timeout_s: float = Field(default=600.0, gt=0)
    """The longest time that a request may take. A client may ask for less with ``prism.timeout_s``."""


class PreprocessorConfig(PoolConfig):
    """The preprocessor pool. Each replica works on one picture at a time, in a child process on a CPU."""

    deployment: ClassVar[str] = "Preprocessor"


class RoutingConfig(Frozen):
    """The settings that decide which replica of a pool gets a call."""

    policy: Literal["affinity", "balanced"] = "affinity"
    """``affinity`` sends a call to the replica that already holds what it needs, unless too much work waits there.
    ``balanced`` is Serve's own choice: the shorter of two queues. With ``balanced`` several encoders may encode the
    same picture."""
    report_period_s: float = Field(default=1.0, gt=0)
    """The time between two reports of a replica about its work. A Router learns from the reports about calls
    that other Routers have sent."""


class EncoderRoutingConfig(RoutingConfig):
    """The settings that decide which encoder gets a picture."""

    load_factor: float = Field(default=1.25, ge=1)
    """A replica with more than this many times the mean work gets no new pictures, even if it is their home."""


class EncoderConfig(PoolConfig):
    """The encoder pool: each replica holds one vision tower."""

    deployment: ClassVar[str] = "VisionEncoder"

    device: Literal["cpu", "cuda"] = "cpu"
    """The kind of device that runs the vision tower."""
    num_threads: int = Field(default=1, ge=1)
    """CPU threads of the vision tower. It has no effect on a GPU."""
    routing: EncoderRoutingConfig = EncoderRoutingConfig()
    """The settings that decide which encoder gets a picture."""


class DecoderConfig(PoolConfig):
    """The decoder pool: each replica holds one vLLM engine without a vision tower."""

    deployment: ClassVar[str] = "Decoder"

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """Workers that share the weights of one engine; on GPUs, one GPU for each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """The kind of device that runs the language model."""
    max_num_seqs: int = Field(default=64, ge=1)
    """The most sequences that the engine computes in one step."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of each worker on a CPU, in whole GiB because vLLM takes no fractions. On a GPU,
    ``gpu_memory_utilization`` decides."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """The share of the GPU memory that vLLM may use. It has no effect on a CPU."""
    prefill_chunk_tokens: int | None = Field(default=None, ge=1)
    """Maximum prompt tokens prefilled per engine step while other requests run. Lower values keep other streams
    smooth and delay the first token of long prompts. Unset: vLLM's per-step limit."""
    enforce_eager: bool = False
    """``true`` turns off compilation and CUDA graphs: a faster start, and slower steps on a GPU."""
    bind_cores: str | None = Field(default=None, pattern=rf"^{CORES}(\|{CORES})*$")
    """CPU cores that are reserved for the engine's workers, in vLLM's notation: ``0|1`` gives each of two workers
    one core, ``0-3,6`` gives one worker five. An engine without reserved cores runs at low priority on shared ones."""
    transport: Literal["shared", "inline"] = "shared"
    """The way that embeddings take to the engine's workers: ``shared`` is shared memory, ``inline`` sends them within
    the request."""
    shared_bytes: int = Field(default=2**30, ge=1)
    """The most shared memory that one replica uses for embeddings, in use or kept for reuse. This memory is part of the
    machine's RAM. A request waits until its own embeddings fit, before they are pulled from the encoders. A decoder
    does not start if the embedding of the largest picture does not fit. The setting has no effect with
    ``transport: inline``."""
    tool_call_parser: str | None = None
    """vLLM's parser for tool calls that the model makes by itself (``tool_choice: auto``), such as ``hermes``.
    Unset: such requests are refused."""
    routing: RoutingConfig = RoutingConfig()
    """The settings that decide which decoder gets a conversation."""

    @model_validator(mode="after")
    def _devices_follow_from_tensor_parallel_size(self) -> Self:
        if self.resources.num_gpus:
            raise ValueError("leave out resources.num_gpus: a decoder with device cuda reserves one GPU per worker")
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
    def num_gpus(self) -> float:
        """The GPUs that Ray reserves for one replica, all on one node: one per tensor-parallel worker."""
        return self.tensor_parallel_size if self.device == "cuda" else 0

    @property
    def shares_cores(self) -> bool:
        """True if the engine computes on CPU cores that are not reserved for it."""
        return self.device == "cpu" and self.bind_cores is None

    @property
    def cores(self) -> set[int]:
        """Every core that ``bind_cores`` names."""
        spans = [span.split("-") for span in (self.bind_cores or "").replace("|", ",").split(",") if span]
        return {core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)}


class PrismConfig(Frozen):
    """The root of the tree: one model, the limits on its pictures, and the four pools."""

    model: ModelConfig = ModelConfig()
    """The model that is served."""
    encode: Literal["split"] = "split"
    """The pool that encodes pictures. ``split``, an encoder pool of its own, is the only value so far."""
    tracing: TracingConfig = TracingConfig()
    """Traces of requests, for an OpenTelemetry collector."""
    media: MediaConfig = MediaConfig()
    """Limits on pictures, and the places that they may be fetched from."""
    router: RouterConfig = RouterConfig()
    """The Router pool: HTTP surface."""
    preprocessor: PreprocessorConfig = PreprocessorConfig()
    """The preprocessor pool: CPU processes that prepare pictures."""
    encoder: EncoderConfig = EncoderConfig()
    """The encoder pool: vision towers."""
    decoder: DecoderConfig = DecoderConfig()
    """The decoder pool: vLLM engines."""

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """The settings of the four pools, in the order of ``POOLS``."""
        return tuple(getattr(self, name) for name in POOLS)

    @property
    def pool_labels(self) -> list[str]:
        """The Ray labels of all pools, sorted and without duplicates."""
        return sorted({pool.resources.pool_label for pool in self.pools if pool.resources.pool_label is not None})


class RouterUserConfig(Frozen):
    """The settings of the Router that can be changed while it runs: keys, limits, and how pools are scaled."""

    keys_file: str | None = Field(default=None, pattern="^/")
    """The absolute path of a file with API keys, or of a directory such as a mounted Kubernetes Secret, on each machine
    with a Router. Requests then need a key. A change of its content counts within seconds. Unset: everybody gets in."""

    max_in_flight: int = Field(default=256, ge=1)
    """The requests for answers that one Router replica works on at a time. Further ones are refused with 429."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    """The most bytes of a request body."""
    max_held_bytes: int = Field(default=2**30, ge=1)
    """The bytes of bodies and pictures that one Router replica holds for its requests. Pictures whose embeddings have
    reached a decoder make way for new requests. A request that does not fit is refused with 429. The process needs up
    to three times as much memory: raw, parsed and decoded."""
    max_wait_s: float = Field(default=30.0, gt=0)
    """The longest time that a new request may wait in the Router while the stages behind it are full, as estimated. If
    it would wait longer, it is refused with 429, and ``Retry-After`` says when a retry succeeds."""
    wait_for_decoder: bool = True
    """A stream whose decoder has failed waits for another one, if the pool has none left, until its deadline. False
    ends it with an error at once."""
    scaling: Literal["advise", "act"] = "advise"
    """``advise`` only shows the decisions on the sizes of pools, and ``act`` carries them out. There are decisions if
    the application has Prism's ``autoscaling_policy``."""
    ttft_slo_s: float = Field(default=2.0, gt=0)
    """The time to the first token that the sizes of pools aim at, in seconds."""
    scale_down_window_s: float = Field(default=300.0, ge=0, le=86_400)
    """A pool shrinks only to the largest size that it needed within so many seconds, or within three times the time
    that its replicas take to start, if that is longer."""

    @model_validator(mode="after")
    def _a_body_can_be_held(self) -> Self:
        if self.max_held_bytes < 2 * self.max_body_bytes:
            raise ValueError("max_held_bytes must be at least twice max_body_bytes: a body, and the pictures within it")
        return self


class EncoderUserConfig(Frozen):
    """The settings of an encoder that can be changed while it runs."""

    cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Memory for finished embeddings that one replica keeps for reuse. One token takes hidden size × bytes per
    number. With less than before, the oldest embeddings are dropped at once."""
    batch_patches: int = Field(default=768, ge=1)
    """The most patches of 14 × 14 pixels in one run of the vision tower, over all its pictures. A larger picture
    runs alone. The default suits a CPU core; a GPU wants about ten times as many."""


USER_CONFIGS: Final[dict[str, type[Frozen]]] = {"Router": RouterUserConfig, "VisionEncoder": EncoderUserConfig}
"""The schema of ``user_config:``, by the name of the Serve deployment. The other deployments have none."""
