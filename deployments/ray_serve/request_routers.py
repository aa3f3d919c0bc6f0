"""Request routers: Serve asks one of these classes for the replica of each call. ``cluster.routing`` makes the choice.

Each process that calls a pool has a request router of its own for that pool.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from uuid import uuid4

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

from cluster.checkpoint import ProcessorSettings
from cluster.config import EncoderRoutingConfig
from cluster.messages import Call, Picture
from cluster.routing.conversations import Conversation, ConversationRoutes, read_conversation
from cluster.routing.pictures import PictureRoutes, PictureWork, home
from deployments.ray_serve.replicas import GONE, check_health
from deployments.ray_serve.retries import Attempts

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

    from cluster.config import RoutingConfig
    from cluster.messages import Replica
    from cluster.routing.ledger import Routes

Item = TypeVar("Item")

NAMED_PATIENCE_S = 0.25
"""How long a call waits for the replica that it names to have room, before any other replica will do."""
PROBE_PERIOD_S = 0.5
"""The pause between two health checks of a replica that has failed a call."""
PROBE_TIMEOUT_S = 5.0
"""How long such a health check may take, in seconds."""


def routing_options(routing: RoutingConfig) -> dict[str, Any]:
    """Serve's options for the way in which calls to a pool are routed."""
    if routing.policy == "balanced":
        return {}
    kind = EncoderRequestRouter if isinstance(routing, EncoderRoutingConfig) else DecoderRequestRouter
    options: dict[str, Any] = {
        "request_router_class": f"{kind.__module__}.{kind.__name__}",
        "request_router_kwargs": {"routing": routing.model_dump()},
        "request_routing_stats_period_s": routing.report_period_s,
    }
    return {"request_router_config": RequestRouterConfig(**options)}


def description(settings: ProcessorSettings) -> dict[str, Any]:
    """The metadata that a replica reports once: how its pictures become patches."""
    return {"processor": settings.model_dump(mode="json")}


class AffinityRequestRouter(RequestRouter, Generic[Item]):
    """Orders the replicas of a pool by ``Routes``, and reports to it what becomes of each call.

    A call with the argument ``at`` goes to the replica of that name. If this replica is gone, or stays full, the call
    goes to any other: Serve places only a few calls at a time, and the others must not wait behind this one.

    A replica that has failed a call gets no other until it has passed its health check, unless all replicas are like
    that. An engine that has died would otherwise attract calls, because its queue is short. A replica that reports that
    its engine or vision tower is silent is avoided in the same way, until its next report.

    Serve matches a chosen replica to a pending call by request id, but all calls made for one client request share that
    id: with several pending, one is matched and the rest hang. This class gives every call, and every retry, a fresh
    id; this also keeps completion callbacks apart.
    """

    routes: Routes[Item]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reported: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, Item] = {}
        self._suspects: dict[Replica, asyncio.Task[None]] = {}
        self._silent: set[Replica] = set()
        self._settings = ProcessorSettings()

    @abstractmethod
    def item(self, call: PendingRequest, settings: ProcessorSettings) -> Item | None:
        """The part of a call that routing looks at, or None if there is nothing."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve with the replicas that there are, and their last reports."""
        before, self._reported = self._reported, {_name(replica): replica.routing_stats for replica in replicas}
        self.routes.retain(self._reported)
        self._silent = {name for name, stats in self._reported.items() if stats.get("is_silent")}
        for replica in replicas:
            name, stats = _name(replica), replica.routing_stats
            if name not in before and replica.replica_metadata:  # a replica of other code has none
                self._settings = ProcessorSettings(**replica.replica_metadata["processor"])
            if stats and stats != before.get(name):
                self.routes.describe(name, max_held=stats["max_held"])
                self.routes.report(name, stats, time.monotonic())
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in order of preference, one per group. Replicas whose queue seems full come last."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = (
            True  # otherwise Serve asks again without a pause while all are full
        )
        call = pending_request.metadata.internal_request_id
        for avoided in (_attempts(pending_request).failed, self._suspects, self._silent):
            candidate_replicas = [r for r in candidate_replicas if _name(r) not in avoided] or candidate_replicas
        by_name, now_s = {_name(replica): replica for replica in candidate_replicas}, time.monotonic()
        if (named := by_name.get(pending_request.kwargs.get("at", ""))) is not None:
            is_late = time.time() - pending_request.created_at > NAMED_PATIENCE_S
            return [[named], *([candidate_replicas] if is_late else [])]
        if (item := self._waiting.get(call)) is None:
            return [candidate_replicas]
        self.routes.ended(call)  # its booking of an earlier round
        order = [by_name[name] for name in self.routes.rank(item, by_name, now_s)]
        free = self.select_available_replicas(order)
        order = free + [replica for replica in order if replica not in free]
        # Book it now: other calls are placed before this one is sent.
        self.routes.sent(call, item, _name(order[0]), now_s, is_sure=False)
        return [[replica] for replica in order]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        self.routes.ended(pending_request.metadata.internal_request_id)  # an earlier try
        call = uuid4().hex
        pending_request.metadata = replace(pending_request.metadata, internal_request_id=call)
        pending_request.kwargs.pop("home", None)  # from an earlier try
        # Read it here: an exception in ``choose_replicas`` would leave the call pending.
        item = self.item(pending_request, self._settings) if len(self.curr_replicas) != 1 else None
        if item is None:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
            self._tell(_attempts(pending_request), _name(replica))
            return replica
        self._waiting[call] = item
        try:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except BaseException:
            self.routes.ended(call)
            raise
        finally:
            del self._waiting[call]
        name = _name(replica)
        self.routes.sent(call, item, name, time.monotonic())
        self.complete(pending_request, item, name)
        self._tell(_attempts(pending_request), name)
        return replica

    def _tell(self, attempts: Attempts, name: Replica) -> None:
        """Tells a caller which replica was chosen."""
        loop = asyncio.get_running_loop()  # on plain Serve the caller is in another thread
        suspect = partial(loop.call_soon_threadsafe, self.suspect, name)
        attempts.sent(name, has_other=len(self.curr_replicas) > 1, suspect=suspect, trusted=self.trusted)

    def trusted(self) -> list[Replica]:
        """The replicas that are not avoided."""
        names = map(_name, self.curr_replicas.values())
        return [name for name in names if name not in self._suspects and name not in self._silent]

    def suspect(self, name: Replica) -> None:
        """Avoids a replica until it has passed its health check."""
        if name not in self._suspects:
            self._suspects[name] = asyncio.create_task(self._watch(name), context=Context())

    async def _watch(self, name: Replica) -> None:
        try:
            while actors := [r._actor_handle for r in self.curr_replicas.values() if _name(r) == name]:
                with suppress(TimeoutError, *GONE):
                    async with asyncio.timeout(PROBE_TIMEOUT_S):
                        return await check_health(cast("ActorHandle[Any]", actors[0]))
                await asyncio.sleep(PROBE_PERIOD_S)
        finally:
            del self._suspects[name]

    def complete(self, call: PendingRequest, item: Item, replica: Replica) -> None:
        """Adds arguments to a call that depend on the chosen replica."""

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        """Called by Serve when a replica has answered, failed or refused a call."""
        self.routes.ended(internal_request_id)


class EncoderRequestRouter(AffinityRequestRouter[PictureWork]):
    """Routes a call to an encoder by its picture."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.routes = PictureRoutes(kwargs["routing"]["load_factor"])

    def item(self, call: PendingRequest, settings: ProcessorSettings) -> PictureWork | None:
        match call.args:
            case [Picture(digest=digest, width=width, height=height), *_]:
                return PictureWork(digest, settings.num_patches(width * height))
        return None

    def complete(self, call: PendingRequest, item: PictureWork, replica: Replica) -> None:
        """Tells a stand-in the home of the picture, in the argument ``home``."""
        where = home(item.digest, self.trusted() or [replica])
        if where != replica:
            call.kwargs["home"] = where


class DecoderRequestRouter(AffinityRequestRouter[Conversation]):
    """Routes a call to a decoder by its conversation and its pictures."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.routes = ConversationRoutes(kwargs["routing"]["report_period_s"])

    def item(self, call: PendingRequest, settings: ProcessorSettings) -> Conversation | None:
        match call.args:
            case [Call() as asked, *_]:
                return read_conversation(asked, settings)
        return None


def _attempts(call: PendingRequest) -> Attempts:
    """The attempts that the caller passed, or new ones for a call that is not retried."""
    found = call.kwargs.get("attempts")
    return found if isinstance(found, Attempts) else Attempts("")


def _name(replica: RunningReplica) -> Replica:
    name: Replica = replica.replica_id.unique_id
    return name
