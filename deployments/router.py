"""The ingress: takes one request from its body to its last byte.

The path, in the words of the stages: **request** reads the body, **media** makes bounded bytes of each picture,
**decode** makes the answer, and **stream** carries it. What a stage lacks it pulls: **decode** pulls embeddings from
**encode**, and that pulls pixels from **preprocess**.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from cluster import metrics
from cluster.checkpoint import Checkpoint
from cluster.errors import DeadlineExceeded, PoolUnavailable
from cluster.media.reader import MediaReader
from cluster.messages import Call, FirstPiece, cache_salt
from cluster.request import read_request
from cluster.stream import Answer
from deployments.api import build_api
from deployments.ray_serve.calls import BySize, all_or_first_error, calling, cancelled_if_left
from deployments.ray_serve.ingress import AsgiIngress
from deployments.ray_serve.replica import ProcessMetrics, freeze_heap
from deployments.ray_serve.replicas import ask_all, call, check_health, opened, own_pool
from deployments.ray_serve.status import read_pool_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.serve.handle import DeploymentHandle
    from starlette.applications import Starlette

    from cluster.config import PrismConfig
    from cluster.messages import Endpoint, Picture
    from cluster.request import ClientRequest
    from cluster.waterfall import Waterfall

STATUS_TIMEOUT_S = 5.0


class Router(AsgiIngress):
    """Reads requests, fetches their pictures, and has decoders answer. Holds no model."""

    def __init__(self, config: PrismConfig, **pools: DeploymentHandle[Any]) -> None:
        self.config = config
        self._pools = {name: opened(pool) for name, pool in pools.items()}
        self._own_pool = own_pool()
        self._generate = BySize(pools["decoder"].options(stream=True).generate)
        self._media = MediaReader(config.media, revision=Checkpoint(config.model).revision)
        freeze_heap()

    def build_api(self) -> Starlette:
        """The HTTP surface of this replica."""
        return build_api(self)

    async def serve(self, endpoint: Endpoint, raw: bytes, hold: Callable[[int], None], waterfall: Waterfall) -> Answer:
        """Serves one request up to its first piece; the rest follows as the decoder makes it.

        Args:
            endpoint: Which of vLLM's endpoints it is for.
            raw: The body.
            hold: Called before so many more bytes are held for it; may refuse.
            waterfall: Told what its time went to.

        Raises:
            PrismError: Before the first piece, so that the client gets a proper status.
        """
        config = self.config
        waterfall.reach("receive")
        request = read_request(raw, served_name=config.model.served_name, max_pictures=config.media.max_pictures)
        timeout_s = min(request.timeout_s or config.router.request_timeout_s, config.router.request_timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        waterfall.reach("parse")
        try:
            async with asyncio.timeout_at(deadline):
                pictures = await self._read_pictures(request, hold)
                waterfall.reach("fetch")
                num_pixels = {picture.digest: picture.num_pixels for picture in pictures}
                call = Call(endpoint, uuid4().hex, request.body, num_pixels)
                # Parsed and packed again, a text may take three times what it had.
                num_bytes = 3 * (len(raw) - request.num_url_chars) + sum(len(picture.data) for picture in pictures)
                pieces = self._decode(call, pictures, num_bytes)
                first = cast(FirstPiece, await anext(pieces))
        except TimeoutError:
            raise _too_late(timeout_s) from None
        waterfall.reach_first_piece(first.spent)
        rest = _until(cast(AsyncGenerator[str], pieces), deadline, timeout_s)
        return Answer(first.text, rest, stream=request.stream, wants_waterfall=request.wants_waterfall)

    async def _read_pictures(self, request: ClientRequest, hold: Callable[[int], None]) -> list[Picture]:
        """Reads the request's pictures together; gives each distinct one once, and puts their digests into the body."""
        salt = cache_salt(request.body)
        pictures: list[Picture] = await all_or_first_error(
            self._media.read(slot.url, slot.param, hold, salt=salt) for slot in request.slots
        )
        request.put_pictures(
            {slot.param: picture.digest for slot, picture in zip(request.slots, pictures, strict=True)}
        )
        return list({picture.digest: picture for picture in pictures}.values())

    async def _decode(
        self, call: Call, pictures: Sequence[Picture], num_bytes: int
    ) -> AsyncGenerator[FirstPiece | str]:
        """Has a decoder answer: first a ``FirstPiece``, then text. It pulls the embeddings that it lacks from the
        encoders."""
        generate = self._generate.for_size(num_bytes)
        with cancelled_if_left(generate.remote(call, *pictures)) as response:
            del pictures  # nobody needs their bytes while tokens are made
            with calling("decoder"):
                async for piece in cast(AsyncIterator[FirstPiece | str], response):
                    yield piece

    async def check_ready(self) -> None:
        """Raises:
        PoolUnavailable: A pool cannot serve now; it is named.
        """
        replies = await asyncio.gather(
            *(ask_all(pool, check_health, timeout_s=STATUS_TIMEOUT_S) for pool in self._pools.values())
        )
        for name, answers in zip(self._pools, replies, strict=True):
            if not answers:
                raise PoolUnavailable(f"No replica of the {name} pool can serve now.")

    async def pool_states(self) -> dict[str, Any]:
        """Each pool with the states of its replicas as the controller knows them."""
        return await asyncio.to_thread(read_pool_states)

    async def cluster_metrics(self) -> bytes:
        """Metrics of every process of the application, vLLM's own among them, as one Prometheus text."""
        pools = {"router": self._own_pool, **self._pools}
        ask = partial(call, method="metrics")
        replies = await asyncio.gather(*(ask_all(pool, ask, timeout_s=STATUS_TIMEOUT_S) for pool in pools.values()))
        texts = [
            ({"pool": name, "replica": reply.replica}, reply.text)
            for name, answers in zip(pools, replies, strict=True)
            for reply in answers
        ]
        return await asyncio.to_thread(metrics.merge, texts)

    def metrics(self) -> ProcessMetrics:
        """This process's metrics."""
        return ProcessMetrics.of_this_replica()


async def _until(pieces: AsyncGenerator[str], deadline: float, timeout_s: float) -> AsyncIterator[str]:
    async with aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise _too_late(timeout_s) from None
            yield piece


def _too_late(timeout_s: float) -> DeadlineExceeded:
    message = (
        f"The request did not finish within {timeout_s:g} s; ask for fewer tokens or allow more with prism.timeout_s."
    )
    return DeadlineExceeded(message, timeout_s=timeout_s)
