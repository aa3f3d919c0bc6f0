"""The speeds and limits of one replica of each pool, as the simulator takes them.

A test, a measurement or a catalogue of GPUs gives these figures. All times are seconds of an idle machine.
"""

from __future__ import annotations

import math

from pydantic import Field

from cluster.checkpoint import ProcessorSettings
from cluster.config import Frozen


class RouterSpeeds(Frozen):
    """One Router: an event loop on one CPU core.

    The defaults are rounded from "What one Router carries" in docs/measurements.md.
    """

    request_s: float = Field(default=0.002, ge=0)
    """CPU seconds for one request, without its pictures and its answer."""
    token_s: float = Field(default=0.00005, ge=0)
    """CPU seconds for one token of an answer. The default is for decoders with many streams, which join two or three
    tokens to a piece. A piece takes 0.13 ms, whatever its number of tokens."""
    picture_s: float = Field(default=0.001, ge=0)
    """CPU seconds for one picture, whatever its size, each time that it is sent."""
    pixel_s: float = Field(default=1.5e-9, ge=0)
    """CPU seconds for one pixel of a picture as the client sent it, each time. The default assumes 0.3 bytes per pixel,
    and 4.6 ms per megabyte."""
    max_in_flight: int = Field(default=256, ge=1)
    """The most requests of one Router at the same time. It refuses others."""
    start_s: float = Field(default=10.0, ge=0)
    """Seconds from the decision to start a replica until it serves."""


class PreprocessorSpeeds(Frozen):
    """One preprocessor: a thread on one CPU core."""

    picture_s: float = Field(default=0.001, ge=0)
    """Seconds for one picture, whatever its size."""
    pixel_s: float = Field(default=20e-9, ge=0)
    """Seconds for one pixel of a picture as the client sent it."""
    max_ongoing_requests: int = Field(default=16, ge=1)
    """The most calls of one replica at the same time. Further calls wait for a replica with room."""
    start_s: float = Field(default=15.0, ge=0)
    """Seconds from the decision to start a replica until it serves."""


class EncoderSpeeds(Frozen):
    """One vision encoder: a vision tower on one GPU."""

    run_s: float = Field(default=0.001, ge=0)
    """Seconds for one run of the tower, whatever its size."""
    patch_s: float = Field(gt=0)
    """Seconds for one patch."""
    batch_patches: int = Field(default=24_576, ge=1)
    """The most patches of one run."""
    cache_patches: int = Field(default=3_000_000, ge=0)
    """The patches of all embeddings that one replica keeps."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """The most calls of one replica at the same time. Further calls wait for a replica with room."""
    start_s: float = Field(default=30.0, ge=0)
    """Seconds from the decision to start a replica until it serves."""


class DecoderSpeeds(Frozen):
    """One decoder: an engine on one GPU or several."""

    prefill_tokens_per_s: float = Field(gt=0)
    """Tokens of prompts that are computed in a second."""
    step_s: float = Field(gt=0)
    """Seconds for one step of the engine, without its sequences."""
    sequence_s: float = Field(default=0.0, ge=0)
    """Seconds of a step for each sequence that gets a token in it."""
    step_tokens: int = Field(default=8192, ge=1)
    """The most tokens of one step (vLLM's ``max_num_batched_tokens``). A longer prompt takes several steps."""
    kv_tokens: int = Field(ge=1)
    """The tokens that fit into the KV cache."""
    max_num_seqs: int = Field(default=256, ge=1)
    """The most sequences of one step."""
    max_ongoing_requests: int = Field(default=256, ge=1)
    """The most calls of one replica at the same time. Further calls wait for a replica with room."""
    picture_tokens: int = Field(default=800_000, ge=0)
    """The tokens of all embeddings that one replica keeps."""
    tower_patch_s: float | None = Field(default=None, gt=0)
    """Seconds for one patch if the engine has the vision tower itself (colocated). None: encoders have it (split)."""
    start_s: float = Field(default=300.0, ge=0)
    """Seconds from the decision to start a replica until it serves."""


class Speeds(Frozen):
    """The speeds and limits of one replica of each pool."""

    router: RouterSpeeds = RouterSpeeds()
    """The Routers."""
    preprocessor: PreprocessorSpeeds = PreprocessorSpeeds()
    """The preprocessors."""
    encoder: EncoderSpeeds
    """The vision encoders."""
    decoder: DecoderSpeeds
    """The decoders."""
    request_path_s: float = Field(default=0.0, ge=0)
    """Seconds before the first token of a request in which no pool works for it: the proxies, calls between processes,
    and the rendering of the prompt."""
    picture_path_s: float = Field(default=0.0, ge=0)
    """The same for a picture that a decoder gets from an encoder: calls between processes, and the embedding's way."""
    processor: ProcessorSettings = ProcessorSettings()
    """The settings of the checkpoint's processor: how many patches and tokens a picture has."""
    report_period_s: float = Field(default=1.0, gt=0)
    """Seconds between two reports of a replica to the request routers."""
    load_factor: float = Field(default=1.25, ge=1)
    """A new picture goes to its home as long as the home has at most this many times the mean work."""

    def start_s(self, pool: str) -> float:
        """Seconds from the decision to start a replica of a pool until it serves."""
        return {
            "router": self.router.start_s,
            "preprocessor": self.preprocessor.start_s,
            "encoder": self.encoder.start_s,
            "decoder": self.decoder.start_s,
        }[pool]

    def max_ongoing_requests(self, pool: str) -> float:
        """The most calls of one replica of a pool at the same time. A Router refuses calls instead."""
        return {
            "router": math.inf,
            "preprocessor": self.preprocessor.max_ongoing_requests,
            "encoder": self.encoder.max_ongoing_requests,
            "decoder": self.decoder.max_ongoing_requests,
        }[pool]
