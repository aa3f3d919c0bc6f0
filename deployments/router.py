"""The ingress: takes one request from its body to its last byte.

The path, in the words of the stages: **request** reads the body, **media** makes bounded bytes of each picture, **encode**
(which pulls from **preprocess**) gives embeddings to **decode**, which makes the answer, and **stream** carries it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from cluster import metrics
from cluster.errors import DeadlineExceeded, StageUnavailable
from cluster.media import MediaReader
from cluster.messages import Call
from cluster.request import read_request
from deployments.api import Answer, build_api
from deployments.calls import ProcessMetrics, calling, cancelled_if_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig
    from cluster.messages import Endpoint, Picture
    from cluster.request import ClientRequest

ASK_TIMEOUT_S = 5.0


class Router:
    """Reads requests, fetches pictures, and joins encoders to decoders. Holds no model."""

    def __init__(self, config: PrismConfig, **pools: DeploymentHandle[Any]) -> None:
        self.config = config
        self._pools = pools
        self._media = MediaReader(config.media, revision=config.model.revision)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    async def answer(self, endpoint: Endpoint, raw: bytes, hold: Callable[[int], None]) -> Answer:
        """Serves one request up to its first piece; the rest follows as the decoder makes it.

        Args:
            endpoint: Which of vLLM's endpoints it is for.
            raw: The body.
            hold: Called before so many more bytes are held for it; may refuse.

        Raises:
            PrismError: Before the first piece, so that the client gets a proper status.
        """
        config = self.config
        request = read_request(raw, served_name=config.model.served_name, max_pictures=config.media.max_pictures)
        timeout_s = min(request.timeout_s or config.router.request_timeout_s, config.router.request_timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                pictures = await self._read_pictures(request, hold)
                num_pixels = {picture.digest: picture.width * picture.height for picture in pictures}
                pieces = self._generate(Call(endpoint, uuid4().hex, request.body, num_pixels), pictures)
                first = await anext(pieces)
        except TimeoutError:
            raise _too_late(timeout_s) from None
        return Answer(first, _until(pieces, deadline, timeout_s), stream=request.stream)

    async def _read_pictures(self, request: ClientRequest, hold: Callable[[int], None]) -> list[Picture]:
        """Reads the request's pictures together; gives each distinct one once, and puts their digests into the body."""
        pictures: list[Picture] = await all_or_first_error(
            self._media.read(slot.url, slot.param, hold) for slot in request.slots
        )
        request.put_pictures({slot.param: picture.digest for slot, picture in zip(request.slots, pictures, strict=True)})
        return list({picture.digest: picture for picture in pictures}.values())

    async def _generate(self, call: Call, pictures: Iterable[Picture]) -> AsyncGenerator[str]:
        """Has the pictures encoded and the call answered.

        An encoder's response is passed on unread: Ray hands the decoder the embedding itself, and starts it once all are
        there. (References made by the encoder and returned *inside* its answer are no way to do this: Ray 2.60 forgets
        about some of them, ray-project/ray#58080.)
        """
        with ExitStack() as calls:
            encode, generate = self._pools["encoder"].encode, self._pools["decoder"].options(stream=True).generate
            embeddings = [calls.enter_context(cancelled_if_left(encode.remote(picture))) for picture in pictures]
            response = calls.enter_context(cancelled_if_left(generate.remote(call, *embeddings)))
            del pictures  # nobody needs their bytes while tokens are made
            with calling("decoder", given_by="encoder"):
                async for text in cast(AsyncIterator[str], response):
                    yield text

    async def check_ready(self) -> None:
        """Raises:
        StageUnavailable: A pool cannot serve now; it is named.
        """
        replies = await asyncio.gather(*(ask_replicas(pool, "ready") for pool in self._pools.values()))
        for stage, answers in zip(self._pools, replies, strict=True):
            if True not in answers:
                raise StageUnavailable(f"No replica of the {stage} pool can serve now.", param=stage)

    async def pool_states(self) -> dict[str, Any]:
        """Each pool with the states of its replicas as the controller knows them."""
        return await asyncio.to_thread(read_pool_states)

    async def cluster_metrics(self) -> bytes:
        """Metrics of every process of the application, vLLM's own among them, as one Prometheus text."""
        context = serve.get_replica_context()
        pools = {"router": serve.get_deployment_handle(context.deployment, context.app_name), **self._pools}
        replies = await asyncio.gather(*(ask_replicas(pool, "metrics") for pool in pools.values()))
        texts = [
            ({"pool": stage, "replica": reply.replica}, reply.text)
            for stage, answers in zip(pools, replies, strict=True)
            for reply in answers
        ]
        return await asyncio.to_thread(metrics.merge, texts)

    async def metrics(self) -> ProcessMetrics:
        """This process's metrics."""
        return ProcessMetrics.of_this_replica()


async def ask_replicas(pool: DeploymentHandle[Any], method: str) -> list[Any]:
    """Asks every replica of a pool, past its queue; the answers of those that gave one in time."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            # What is public of a broadcast, `results_async`, gives nothing at all as soon as one replica is late.
            calls = await pool.broadcast(method)._fetch_replica_results_async()
    except (TimeoutError, RayError, RayServeException):
        return []
    waits = (asyncio.wait_for(call.get_async(), ASK_TIMEOUT_S) for call in calls)  # type: ignore[no-untyped-call]
    answers = await asyncio.gather(*waits, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def read_pool_states() -> dict[str, Any]:
    """Asks Serve's controller; blocks for a few milliseconds."""
    status = serve.status()
    return {
        name: {
            "status": str(deployment.status.value),
            "replicas": dict(deployment.replica_states),
            "message": deployment.message,
        }
        for application in status.applications.values()
        for name, deployment in application.deployments.items()
    }


async def all_or_first_error(coroutines: Any) -> list[Any]:
    """Runs coroutines together; on the first error the others are cancelled, and that error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


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
    message = f"The request did not finish within {timeout_s:g} s; ask for fewer tokens or allow more with prism.timeout_s."
    return DeadlineExceeded(message, timeout_s=timeout_s)
