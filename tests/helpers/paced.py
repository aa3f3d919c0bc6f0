"""Pools whose stages take a given time, in place of the time that computing takes on this machine.

A second real encoder adds no capacity on two cores, because it computes on the same cores. A stage that sleeps leaves
them free, so more replicas serve more. Calls, routing, caches, batches and statistics are the product's own. What
computes is replaced, because importing it would keep two cores busy for half a minute when six replicas start.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as it stands.

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
from ray.serve import Application

from cluster.checkpoint import Checkpoint, ProcessorSettings
from cluster.config import Frozen, PrismConfig
from cluster.embeddings.cache import EmbeddingCache
from cluster.messages import Call, Embedding, FirstPiece, Picture, Pixels, Spent
from cluster.scaling.work import OfferedWork
from deployments import app, decoder, encoder, preprocessor
from deployments.ray_serve.calls import BySize, answering
from deployments.ray_serve.replica import freeze_heap, log_refusals_briefly

CHARS_PER_TOKEN = 4
KV_TOKENS = 100_000


class Pace(Frozen):
    """How long the stages take, and what a decoder sends. A request may change values for itself, in its field
    ``pace``."""

    pixel_s: float = 2.8e-5
    """Seconds of a preprocessor per stored pixel."""
    patch_s: float = 0.005
    """Seconds of an encoder per patch."""
    token_s: float = 0.0002
    """Seconds of a decoder per prompt token."""
    step_s: float = 0.02
    """Seconds between two pieces of an answer."""
    piece_tokens: int = 1
    """The tokens of a piece. Real decoders join tokens while they carry many streams."""
    event_chars: int = 0
    """The least length of the event of one token. An event of vLLM has about 230 characters."""
    max_running: int = 64
    """The answers that one decoder makes at a time."""


class PacedConfig(PrismConfig):
    """Prism's configuration, and the pace of its stages."""

    pace: Pace = Pace()


class Preprocessor(preprocessor.Preprocessor):
    """A preprocessor that sleeps and makes empty patches. Its ``user_config`` may slow it down."""

    def __init__(self, config: PacedConfig) -> None:
        with patch.dict(sys.modules, torch=MagicMock(), **{"cluster.preprocess": MagicMock()}):
            super().__init__(config)
        self._slowness = 1.0

        def paced(picture: Picture, settings: ProcessorSettings) -> Pixels:
            time.sleep(picture.num_pixels * config.pace.pixel_s * self._slowness)
            num_patches = settings.num_patches(picture.num_pixels)
            return Pixels(picture.digest, np.zeros((num_patches, 1), np.uint8), (1, 2, num_patches // 2))

        self._preprocess = paced

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the factor by which the stage is slower than its pace."""
        self._slowness = user_config.get("slowness", 1.0)


class PacedTower:
    """Stands for the vision tower: it sleeps and makes empty embeddings."""

    TOKEN_PATCHES = 4
    bytes_per_patch = 1

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def encode(self, batch: Sequence[Pixels]) -> list[Embedding]:
        """Sleeps for the patches of all pictures."""
        time.sleep(sum(pixels.num_patches for pixels in batch) * self._pace.patch_s)
        return [
            Embedding(one.digest, np.zeros((one.num_patches // self.TOKEN_PATCHES, 4), np.uint8), "float32", one.grid)
            for one in batch
        ]

    def check(self) -> None:
        """Always healthy."""


class VisionEncoder(encoder.VisionEncoder):
    """An encoder with a ``PacedTower``."""

    def __init__(self, config: PacedConfig, preprocessors: Any) -> None:
        tower = MagicMock(TOWER_PREFIXES=())
        tower.PictureEncoder.load.return_value = PacedTower(config.pace)
        with patch.dict(sys.modules, torch=MagicMock(), **{"cluster.encode.picture_encoder": tower}):
            super().__init__(config, preprocessors)


class PacedEngine:
    """Stands for vLLM's engine: it prefills one prompt at a time, and decodes up to ``max_running`` answers at once."""

    def __init__(self, pace: Pace, row_bytes: int) -> None:
        self.embedding_shape = SimpleNamespace(row_bytes=row_bytes)
        self.kv_tokens = KV_TOKENS
        self._pace = pace
        self._prefill = asyncio.Lock()
        self._running = asyncio.Semaphore(pace.max_running)
        self._offered = OfferedWork()
        self._num_done, self._busy_s = 0, 0.0
        self._num_waiting_tokens, self._num_requests, self._num_running = 0, 0, 0

    def find_embedding(self, digest: str) -> None:
        """Keeps no embeddings."""

    def stats(self) -> dict[str, float]:
        """The load that a real engine reports to the request routers."""
        waiting = self._num_requests - self._num_running
        return {
            "waiting": waiting,
            "running": self._num_running,
            "queued_tokens": self._num_waiting_tokens,
            "kv_use": 0.0,
        }

    def work(self) -> dict[str, float]:
        """The work that a real engine reports to the scaling policy."""
        fullness = self._num_running / self._pace.max_running
        waiting = self._num_waiting_tokens
        return self._offered.stats(self._num_done, self._busy_s, waiting=waiting, fullness=fullness)

    async def check_health(self) -> None:
        """Always healthy."""

    def stop(self) -> None:
        """Has nothing to stop."""

    async def generate(
        self, call: Call, embeddings: Mapping[str, Embedding], spent: Spent
    ) -> AsyncIterator[FirstPiece | str]:
        """Streams ``max_tokens`` words, the first one when the prompt has been prefilled."""
        pace = self._pace.model_copy(update=call.body.get("pace", {}))
        num_tokens = len(json.dumps(call.body)) // CHARS_PER_TOKEN + sum(len(one.rows) for one in embeddings.values())
        self._offered.arrived(num_tokens)
        self._num_requests += 1
        self._num_waiting_tokens += num_tokens
        came_s = time.perf_counter()
        try:
            async with self._running:
                self._num_running += 1
                try:
                    async with self._prefill:
                        began_s = time.perf_counter()
                        await asyncio.sleep(num_tokens * pace.token_s)
                    self._num_waiting_tokens -= num_tokens
                    took_s = time.perf_counter() - began_s
                    self._num_done += num_tokens
                    self._busy_s += took_s
                    num_tokens = 0  # none waits any more
                    first = _event("0 ", pace.event_chars)
                    yield FirstPiece(first, {**spent, "decode_queue": began_s - came_s, "prefill": took_s})
                    last = int(call.body["max_tokens"])
                    for begin in range(1, last, pace.piece_tokens):
                        await asyncio.sleep(pace.step_s)
                        numbers = range(begin, min(begin + pace.piece_tokens, last))
                        yield "".join(_event(f"{number} ", pace.event_chars) for number in numbers)
                    yield "data: [DONE]\n\n"
                finally:
                    self._num_running -= 1
        finally:
            self._num_waiting_tokens -= num_tokens
            self._num_requests -= 1


def _event(text: str, num_chars: int = 0) -> str:
    event = f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}"
    return f"{event:<{num_chars}}\n\n"


class Decoder(decoder.Decoder):
    """A decoder with a ``PacedEngine``."""

    async def __init__(self, config: PacedConfig, encoders: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        log_refusals_briefly()
        self._encode = BySize(encoders.encode)
        self._pulls = EmbeddingCache(0)
        self._engine: Any = PacedEngine(config.pace, row_bytes=4)
        self._settings = Checkpoint(config.model).processor
        freeze_heap()

    async def generate(
        self,
        call: Call,
        *pictures: Picture,
        attempts: None = None,  # noqa: ARG002 -- for the request router
    ) -> AsyncIterator[FirstPiece | str]:
        """Pulls the embeddings, and streams the engine's words."""
        with answering("decoder"):
            embeddings, spent = await self._pull(pictures)
            async for piece in self._engine.generate(call, embeddings, spent):
                yield piece


def build(config: PacedConfig) -> Application:
    """Builds Prism's application with the paced pools."""
    with patch.multiple(app, Preprocessor=Preprocessor, VisionEncoder=VisionEncoder, Decoder=Decoder):
        return app.build(config)
