"""Serve's side of routing: two request routers. Each process that calls a pool has one; the choice is
``cluster.routing.ledger``'s."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter

from cluster.checkpoint import ProcessorSettings
from cluster.config import EncoderRoutingConfig
from cluster.messages import Call, Picture
from cluster.routing.conversations import Conversation, ConversationRoutes, read_conversation
from cluster.routing.pictures import PictureRoutes, PictureWork, home

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

    from cluster.config import RoutingConfig
    from cluster.messages import Replica
    from cluster.routing.ledger import Routes

Item = TypeVar("Item")

NAMED_PATIENCE_S = 0.25
"""How long a call waits for room in the replica that it names, before any other will do."""


def routing_options(routing: RoutingConfig) -> dict[str, Any]:
    """Serve's options for how calls to a pool are routed."""
    if routing.policy == "balanced":
        return {}
    kind = EncoderRequestRouter if isinstance(routing, EncoderRoutingConfig) else DecoderRequestRouter
    options: dict[str, Any] = {
        "request_router_class": f"{kind.__module__}.{kind.__name__}",
        "request_router_kwargs": {"routing": routing.model_dump()},
        "request_routing_stats_period_s": routing.report_period_s,
    }
    return {"request_router_config": RequestRouterConfig(**options)}


def description(settings: ProcessorSettings, max_held: float) -> dict[str, Any]:
    """What a replica says about itself, once: how its pictures come to patches, and how much it can hold."""
    return {"processor": settings.model_dump(mode="json"), "max_held": max_held}


class AffinityRequestRouter(RequestRouter, Generic[Item]):
    """Asks ``Routes`` for the order of the replicas, and tells it what becomes of each call.

    A call with the argument ``at`` goes to the replica of that name; if that is gone, or full for long, to any: Serve
    looks for room for a few calls at a time, and the others must not wait behind one.

    Serve gives a chosen replica to the waiting call that has the id of the client's request. All calls that a request
    causes have the same: of several that wait at a time, one is found and the others wait for ever. Here each call has
    its own, and each new try as well, so that the end of one is not taken for the end of another.
    """

    routes: Routes[Item]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reported: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, Item] = {}
        self._settings = ProcessorSettings()

    @abstractmethod
    def item(self, call: PendingRequest, settings: ProcessorSettings) -> Item | None:
        """What routing looks at in a call; none, if there is nothing."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """The controller says which replicas there are, and what they reported last."""
        before, self._reported = self._reported, {_name(replica): replica.routing_stats for replica in replicas}
        self.routes.retain(self._reported)
        for replica in replicas:
            name, stats = _name(replica), replica.routing_stats
            if name not in before and replica.replica_metadata:  # one of other code has none, and routes as it may
                self.routes.describe(name, max_held=replica.replica_metadata["max_held"])
                self._settings = ProcessorSettings(**replica.replica_metadata["processor"])
            if stats and stats != before.get(name):
                self.routes.report(name, stats, time.monotonic())
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas one by one, the best one first; those whose queue is full, as far as is known, behind the
        others."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or Serve asks again without a pause while all are full
        call = pending_request.metadata.internal_request_id
        by_name, now_s = {_name(replica): replica for replica in candidate_replicas}, time.monotonic()
        if (named := by_name.get(pending_request.kwargs.get("at", ""))) is not None:
            is_late = time.time() - pending_request.created_at > NAMED_PATIENCE_S
            return [[named], *([candidate_replicas] if is_late else [])]
        if (item := self._waiting.get(call)) is None:
            return [candidate_replicas]
        order = [by_name[name] for name in self.routes.rank(item, by_name, now_s)]
        free = self.select_available_replicas(order)
        order = free + [replica for replica in order if replica not in free]
        # At once: others choose before this one is on its way.
        self.routes.sent(call, item, _name(order[0]), now_s, is_sure=False)
        return [[replica] for replica in order]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        call = uuid4().hex
        pending_request.metadata = replace(pending_request.metadata, internal_request_id=call)
        pending_request.kwargs.pop("home", None)  # of an earlier try
        # Read here and not where it is needed: what is raised there leaves the call waiting.
        item = self.item(pending_request, self._settings) if len(self.curr_replicas) != 1 else None
        if item is None:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        self._waiting[call] = item
        try:
            replica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except BaseException:
            self.routes.ended(call)
            raise
        finally:
            del self._waiting[call]
        self.routes.sent(call, item, _name(replica), time.monotonic())
        self.complete(pending_request, item, _name(replica))
        return replica

    def complete(self, call: PendingRequest, item: Item, replica: Replica) -> None:
        """Adds to a call what the replica should know that it goes to."""

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:  # noqa: ARG002
        """A replica has answered, failed or refused."""
        self.routes.ended(internal_request_id)


class EncoderRequestRouter(AffinityRequestRouter[PictureWork]):
    """By the picture."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.routes = PictureRoutes(kwargs["routing"]["load_factor"])

    def item(self, call: PendingRequest, settings: ProcessorSettings) -> PictureWork | None:
        match call.args:
            case [Picture(digest=digest, width=width, height=height), *_]:
                return PictureWork(digest, settings.num_patches(width * height))
        return None

    def complete(self, call: PendingRequest, item: PictureWork, replica: Replica) -> None:
        """Who else to ask about the picture: its home, if that is another."""
        where = home(item.digest, [_name(other) for other in self.curr_replicas.values()] or [replica])
        if where != replica:
            call.kwargs["home"] = where


class DecoderRequestRouter(AffinityRequestRouter[Conversation]):
    """By the conversation and its pictures."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.routes = ConversationRoutes(kwargs["routing"]["report_period_s"])

    def item(self, call: PendingRequest, settings: ProcessorSettings) -> Conversation | None:
        match call.args:
            case [Call() as asked, *_]:
                return read_conversation(asked, settings)
        return None


def _name(replica: RunningReplica) -> Replica:
    name: Replica = replica.replica_id.unique_id
    return name
