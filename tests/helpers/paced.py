"""Pools whose stages take a given time, in place of the time that computing takes on this machine.

A second real encoder adds no capacity on two cores, because it computes on the same cores. A stage that sleeps leaves
them free, so more replicas serve more. Calls, routing, caches, batches and statistics are the product's own. What
computes is replaced, because importing it would keep two cores busy for half a minute when six replicas start.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as it stands.

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final
from unittest.mock import MagicMock, patch

import numpy as np
from ray.serve import Application

from cluster.access_log import AccessRecord
from cluster.admission.slots import Slot
from cluster.checkpoint import Checkpoint, ProcessorSettings
from cluster.concurrency import all_or_first_error
from cluster.config import PrismConfig
from cluster.deadline import Deadline
from cluster.embeddings.cache import EmbeddingCache
from cluster.messages import Begun, Call, Embedding, Endpoint, FirstPiece, Grid, Picture, Piece, Pixels
from cluster.stream import Answer
from deployments import app, decoder, encoder, preprocessor, router
from deployments.ray_serve.calls import BySize, answering
from deployments.ray_serve.replica import freeze_heap, log_refusals_briefly
from tests.helpers.pace import Pace
from tests.helpers.paced_engine import PacedEngine


class PacedConfig(PrismConfig):
    """Prism's configuration, and the pace of its stages."""

    pace: Pace = Pace()


TENANT: Final = re.compile(rb'"user": ?"([^"]*)"')


class Router(router.Router):
    """A Router that takes the field ``user`` of a request for its tenant, in place of an API key."""

    async def serve(
        self, endpoint: Endpoint, raw: bytes, slot: Slot, deadline: Deadline, record: AccessRecord
    ) -> Answer:
        """See ``Router.serve``."""
        found = TENANT.search(raw)
        record.tenant = record.tenant or (found[1].decode() if found else "")
        return await super().serve(endpoint, raw, slot, deadline, record)


class PacedChildren:
    """Stands for the child processes of a preprocessor: it sleeps and makes empty patches, for one picture at a time.

    Args:
        pace: Seconds for each pixel.
        settings: How pictures become patches.
    """

    def __init__(self, pace: Pace, settings: ProcessorSettings) -> None:
        self._pace = pace
        self._settings = settings
        self._turn = asyncio.Lock()
        self.slowness = 1.0

    async def start(self) -> None:
        """Has nothing to start."""

    async def prepare(self, picture: Picture) -> Pixels:
        """Sleeps for the pixels of the picture."""
        async with self._turn:
            started_s = time.perf_counter()
            await asyncio.sleep(picture.num_pixels * self._pace.pixel_s * self.slowness)
            num_patches = self._settings.num_patches(picture.num_pixels)
            ran_s = time.perf_counter() - started_s
            patches = np.zeros((num_patches, 1), np.uint8)
            return Pixels(picture.digest, patches, (1, 2, num_patches // 2), ran_s)

    is_warm = True

    @property
    def worked_at_s(self) -> float:
        """Always now: nothing can be stuck here."""
        return time.monotonic()

    async def probe(self) -> None:
        """Is never called."""


class Preprocessor(preprocessor.Preprocessor):
    """A preprocessor with ``PacedChildren``. Its ``user_config`` may slow it down."""

    async def __init__(self, config: PacedConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        with patch.object(preprocessor, "Children", lambda settings, _: PacedChildren(config.pace, settings)):
            await super().__init__(config)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the factor by which the stage is slower than its pace."""
        paced: Any = self._children
        paced.slowness = user_config.get("slowness", 1.0)


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


class Decoder(decoder.Decoder):
    """A decoder with a ``PacedEngine``."""

    async def __init__(self, config: PacedConfig, encoders: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        log_refusals_briefly()
        self._encode = BySize(encoders.encode)
        self._pulls = EmbeddingCache(0)
        self._engine: Any = PacedEngine(config.pace, row_bytes=4)
        self._watch = self._watch_engine()
        self._settings = Checkpoint(config.model).processor
        freeze_heap()

    async def generate(
        self,
        call: Call,
        *pictures: Picture,
        attempts: None = None,  # noqa: ARG002 -- for the request router
    ) -> AsyncIterator[Begun | FirstPiece | Piece]:
        """Pulls the embeddings, and streams the engine's words."""
        with answering("decoder"):
            found = await all_or_first_error(self._pulls.embedding_for(picture, self._encoded) for picture in pictures)
            embeddings, spent = {one.digest: one for one in found}, found[-1].spent if found else {}
            if found:
                yield Begun()
            async with aclosing(self._engine.generate(call, embeddings, spent)) as pieces:
                async for piece in pieces:
                    yield piece

    def _grid(self, picture: Picture) -> Grid:
        """The grid without torch, which makes the process smaller."""
        return 1, 2, self._settings.num_patches(picture.num_pixels) // 2


def build(config: PacedConfig) -> Application:
    """Builds Prism's application with the paced pools."""
    with patch.multiple(app, Router=Router, Preprocessor=Preprocessor, VisionEncoder=VisionEncoder, Decoder=Decoder):
        return app.build(config)
