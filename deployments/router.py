"""The ingress: takes one request from its body to its last byte.

The path, in the words of the stages: **request** reads the body, **media** makes bounded bytes of each picture, **encode**
(which pulls from **preprocess**) gives references to embeddings, **decode** makes the answer, **stream** carries it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
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
from deployments.calls import ProcessMetrics, calling

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

    from cluster.config import PrismConfig
    from cluster.messages import Digest, Endpoint, Picture
    from cluster.request import ClientRequest
    from deployments.calls import EmbeddingReference

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
                references = await self._encode(request, hold)
                pieces = self._decode(Call(endpoint, uuid4().hex, request.body), references)
                first = await anext(pieces)
        except TimeoutError:
            raise _too_late(timeout_s) from None
        return Answer(first, _until(pieces, deadline, timeout_s), stream=request.stream)

    async def _encode(self, request: ClientRequest, hold: Callable[[int], None]) -> list[EmbeddingReference]:
        """Reads and encodes the request's pictures together, each distinct one once."""
        if not request.slots:
            return []
        pictures = await all_or_first_error(self._media.read(slot.url, slot.param, hold) for slot in request.slots)
        digests = {slot.param: picture.digest for slot, picture in zip(request.slots, pictures, strict=True)}
        request.put_pictures(digests)
        distinct: dict[Digest, Picture] = {picture.digest: picture for picture in pictures}
        return await all_or_first_error(self._encode_one(picture) for picture in distinct.values())

    async def _encode_one(self, picture: Picture) -> EmbeddingReference:
        response = self._pools["encoder"].encode.remote(picture)
        with calling("encoder"), _cancelled_if_left(response):
            reference: EmbeddingReference = await response
        return reference

    async def _decode(self, call: Call, references: list[EmbeddingReference]) -> AsyncGenerator[str]:
        response = self._pools["decoder"].options(stream=True).generate.remote(call, references)
        with calling("decoder"), _cancelled_if_left(response):
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
        answers = await pool.broadcast(method).results_async(timeout_s=ASK_TIMEOUT_S, return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [answer for answer in answers if not isinstance(answer, Exception)]


@contextmanager
def _cancelled_if_left(response: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> Iterator[None]:
    """When a call is left before its end, its replica stops working on it: Ray does not do that by itself."""
    try:
        yield
    except BaseException:  # a cancelled task and a closed generator among them
        response.cancel()  # type: ignore[no-untyped-call]
        raise


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
