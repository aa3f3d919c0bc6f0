"""The ingress pool: each replica takes requests from their bodies to their last bytes.

The stages **request**, **media** and **stream** run here. A decoder makes the answer: it pulls the embeddings that it
lacks from the encoders, and these pull pixels from the preprocessors. The Router itself routes nothing: which replica
of a pool takes a call is decided by that pool's request router (``deployments/ray_serve/request_routers.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from cluster.access.control import AccessControl
from cluster.access.keys import KeysError
from cluster.access.salt import separate
from cluster.admission.slots import Admission
from cluster.checkpoint import Checkpoint
from cluster.concurrency import all_or_first_error
from cluster.config import RouterUserConfig
from cluster.errors import PoolUnavailable
from cluster.media.reader import MediaReader
from cluster.messages import Begun, Call, FirstPiece, Piece, cache_salt
from cluster.request import read_request
from cluster.scaling.readings import ScalingSettings
from cluster.scaling.work import OfferedWork
from cluster.stream import Answer
from cluster.tracing import Tracing
from deployments.api import build_api
from deployments.continuation import Continuation, texts
from deployments.gates import PoolGates
from deployments.overview import ClusterOverview
from deployments.ray_serve.calls import BySize, calling, cancelled_if_left
from deployments.ray_serve.ingress import AsgiIngress
from deployments.ray_serve.replica import ProcessMetrics, UserConfig, freeze_heap
from deployments.ray_serve.replicas import actors_of, opened, own_pool
from deployments.ray_serve.retries import Attempts
from deployments.ray_serve.status import read_http_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.serve.handle import DeploymentHandle
    from starlette.applications import Starlette

    from cluster.access_log import AccessRecord
    from cluster.admission.kept import KeptPictures
    from cluster.admission.slots import Slot
    from cluster.config import PrismConfig
    from cluster.deadline import Deadline
    from cluster.messages import Endpoint, Picture
    from cluster.request import ClientRequest

log: Final = logging.getLogger("ray.serve")

STREAMING: Final[frozenset[Endpoint]] = frozenset({"chat", "completions"})
"""The endpoints whose answers are streamed on demand. The others ignore the field ``stream``."""


class Router(AsgiIngress):
    """Reads requests, fetches their pictures, and calls decoders for the answers. It holds no model."""

    def __init__(self, config: PrismConfig, **pools: DeploymentHandle[Any]) -> None:
        self.config = config
        self._own_pool = own_pool()
        self._pools = {name: opened(pool) for name, pool in pools.items()}
        self._overview = ClusterOverview(config, self._own_pool, self._pools)
        self._generate = BySize(pools["decoder"].options(stream=True).generate)
        self._user_config = UserConfig(RouterUserConfig())
        self.limits = self._user_config.settings
        self.admission = Admission(self.limits.max_in_flight, self.limits.max_held_bytes)
        self.access = AccessControl()
        self._watch: asyncio.Task[None] | None = None
        self._offered = OfferedWork()
        self._num_reported = 0
        self._reported_s = time.process_time()
        self._idle_s = self._reported_s
        self.tracing = Tracing(config.tracing.endpoint)
        checkpoint = Checkpoint(config.model)
        self._media = MediaReader(config.media, revision=checkpoint.revision)
        self._settings = checkpoint.processor
        self.gates = PoolGates(config, self._own_pool, self._pools)
        self.admission.retry_after_s = self.gates.stages.retry_after_s
        freeze_heap()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with the ``user_config`` at the start and after each change.

        Raises:
            KeysError: The Router is starting, and its keys cannot be read.
            ValidationError: A setting is wrong.
        """
        self.limits = self._user_config.take(user_config)
        self.admission.set_limits(self.limits.max_in_flight, self.limits.max_held_bytes)
        await self._follow_keys()

    async def _follow_keys(self) -> None:
        """Uses the keys that the settings name. A Router that starts fails if they cannot be read. One that serves lets
        nobody in until they can."""
        is_starting = self._watch is None
        if is_starting:
            self.access.listens_on(await asyncio.to_thread(read_http_host))
        try:
            await self.access.follow(self.limits.keys_file)
        except KeysError as error:
            log.error("the keys cannot be read, so nobody gets in: %s: %s", self.limits.keys_file, error)
            if is_starting:
                raise
        if is_starting:
            self._watch = asyncio.create_task(self.access.watch(lambda: len(actors_of(self._own_pool))))

    def build_api(self) -> Starlette:
        """The HTTP surface of this replica."""
        return build_api(self)

    async def serve(
        self, endpoint: Endpoint, raw: bytes, slot: Slot, deadline: Deadline, record: AccessRecord
    ) -> Answer:
        """Serves one request up to its first piece. The answer's ``rest`` gives the other pieces as the decoder makes
        them.

        Args:
            endpoint: The endpoint of vLLM's API that was called.
            raw: The request's body.
            slot: Holds the bytes of the request: first of its body and its pictures as they are read, then of the call.
            deadline: The time that the request may take at most. It may ask for less.
            record: Takes down where the request went and which stage its time was spent in.

        Raises:
            PrismError: The request failed before its first piece, so the client gets a proper HTTP status.
        """
        config, waterfall = self.config, record.waterfall
        self._offered.arrived(1)
        waterfall.reach("receive")
        request = read_request(raw, served_name=config.model.served_name, max_pictures=config.media.max_pictures)
        separate(request.body, record.tenant)
        deadline, record.num_pictures = deadline.within(request.timeout_s), len(request.pictures)
        waterfall.reach("parse")
        num_text_bytes = len(raw) - request.num_url_chars
        self.gates.judge(
            endpoint,
            request,
            raw,
            deadline,
            record,
            max_wait_s=self.limits.max_wait_s,
            num_free_slots=self.admission.num_free,
        )
        try:
            async with asyncio.timeout_at(deadline.at_s):
                pictures = await self._read_pictures(request, slot.hold)
        except TimeoutError:
            raise deadline.exceeded(cause="reading the pictures") from None
        waterfall.reach("fetch")
        if record.caller is not None:
            record.caller.spend_picture_tokens(sum(self._settings.num_tokens(one.num_pixels) for one in pictures))
        record.call_id = call_id = uuid4().hex
        call = Call(
            endpoint,
            request_id=call_id,
            body=request.body_with([picture.digest for picture in pictures]),
            num_pixels={picture.digest: picture.num_pixels for picture in pictures},
            traceparent=None if record.trace is None else record.trace.traceparent,
        )
        kept = slot.keep({picture.digest: picture for picture in pictures}.values(), num_text_bytes)
        is_stream, wants_waterfall = request.stream and endpoint in STREAMING, request.wants_waterfall
        del raw, request, pictures  # an answer that is not streamed takes long, and only ``slot`` counts what stays
        answering = await self.gates.enter(call, kept, num_text_bytes, slot, deadline, record)
        attempts = Attempts("decoder", record.decoders)
        decode = partial(self._decode, kept=kept, num_text_bytes=num_text_bytes, deadline=deadline, attempts=attempts)
        first, pieces = await self._begin(decode, call, kept, attempts)
        waterfall.reach_first_piece(first.spent)
        record.tokens = first.tokens
        rest = texts(pieces)
        if is_stream:
            rest = Continuation(
                lambda replay: decode(replace(call, replay=replay)),
                attempts,
                deadline,
                waits=self.limits.wait_for_decoder,
                went_on=record.went_on,
            ).texts(first, pieces)
        if answering is not None:
            rest = answering.watched(rest, lambda: not attempts.failed)
        return Answer(first.text, rest, is_stream, wants_waterfall, deadline)

    async def _read_pictures(self, request: ClientRequest, hold: Callable[[int], None]) -> list[Picture]:
        """Reads all pictures of a request concurrently; gives one for each of its picture fields, in their order."""
        salt = cache_salt(request.body)
        return await all_or_first_error(
            self._media.read(found.url, found.param, hold, salt=salt) for found in request.pictures
        )

    async def _begin(
        self,
        decode: Callable[[Call], AsyncGenerator[Begun | FirstPiece | Piece]],
        call: Call,
        kept: KeptPictures,
        attempts: Attempts,
    ) -> tuple[FirstPiece, AsyncGenerator[Begun | FirstPiece | Piece]]:
        """The first piece of an answer, and the rest. If a decoder fails before its first piece, another one is asked,
        once. The pictures may be evicted as soon as the decoder has begun."""
        while True:
            pieces = decode(call)
            try:
                while isinstance(first := await anext(pieces), Begun):
                    kept.release()
                kept.release()
                return cast(FirstPiece, first), pieces
            except PoolUnavailable:
                if not attempts.can_retry():
                    raise

    async def _decode(
        self, call: Call, kept: KeptPictures, num_text_bytes: int, deadline: Deadline, attempts: Attempts
    ) -> AsyncGenerator[Begun | FirstPiece | Piece]:
        """Calls a decoder and yields its answer piece by piece: ``Begun`` if there are pictures, a ``FirstPiece``, then
        others.

        Raises:
            DeadlineExceeded: A piece did not come in time; the call is cancelled.
            PrismError: The decoder's own error.
        """
        # A text that is parsed and packed again may take three times its bytes.
        generate = self._generate.for_size(
            3 * num_text_bytes + kept.num_bytes + len(call.replay.steps if call.replay else b"")
        )
        asked = generate.remote(call, *kept.pictures, attempts=attempts)
        try:
            with cancelled_if_left(asked) as response, calling("decoder"):
                pieces = cast(AsyncIterator[Begun | FirstPiece | Piece], response)
                while True:
                    try:
                        async with asyncio.timeout_at(deadline.at_s):
                            piece = await anext(pieces, None)
                    except TimeoutError:
                        raise deadline.exceeded(cause="waiting for the decoder") from None
                    if piece is None:
                        return
                    yield piece
        except PoolUnavailable as error:
            attempts.note(error)
            raise

    async def check_ready(self) -> None:
        """Checks that every pool can serve, or can start.

        Raises:
            PoolUnavailable: A pool can do neither; the message names it.
        """
        await self._overview.check_ready()

    async def pool_states(self) -> dict[str, Any]:
        """Each pool with the states of its replicas, and the last decision on its size.

        Raises:
            ControllerUnavailable: Serve's controller did not answer in time.
        """
        return await self._overview.pool_states()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns figures for the scaling policy: the requests that came, the CPU time of this process for them, the
        requests that wait here by pool, and the policy's settings. Serve calls it regularly."""
        fullness = self.admission.num_requests / self.limits.max_in_flight
        if self._offered.num_calls == self._num_reported:
            self._idle_s += time.process_time() - self._reported_s  # health checks and reports are no work
        self._num_reported, self._reported_s = self._offered.num_calls, time.process_time()
        work = self._offered.stats(self._num_reported, self._reported_s - self._idle_s, fullness=fullness)
        return {**work, **self.gates.num_held(), **ScalingSettings.of(self.limits).stats()}

    async def cluster_metrics(self) -> bytes:
        """The metrics of every replica, vLLM's own included, as one Prometheus text."""
        return await self._overview.cluster_metrics()

    async def replica_metrics(self, name: str) -> bytes:
        """The metrics of one replica: see ``ClusterOverview.replica_metrics``."""
        return await self._overview.replica_metrics(name)

    def scrape_targets(self, host: str) -> list[dict[str, Any]]:
        """All replicas for Prometheus's HTTP service discovery."""
        return self._overview.scrape_targets(host)

    def metrics(self) -> ProcessMetrics:
        """This process's metrics."""
        self.gates.stages.observe()
        return ProcessMetrics.of_this_replica()
