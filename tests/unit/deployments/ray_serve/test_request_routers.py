"""The request routers inside Serve's own machinery, with replicas that only say how long their queue is."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from cluster.checkpoint import ProcessorSettings
from cluster.config import DecoderConfig, EncoderConfig
from cluster.errors import PoolUnavailable
from cluster.messages import Call, Picture
from cluster.routing.pictures import rendezvous
from deployments.ray_serve.request_routers import (
    DecoderRequestRouter,
    EncoderRequestRouter,
    description,
    routing_options,
)
from deployments.ray_serve.retries import Attempts
from tests.helpers.waiting import settled, until

if TYPE_CHECKING:
    from ray.serve.request_router import RunningReplica

POOL = DeploymentID("pool", "prism")
DEADLINE_S = 5
GONE = PoolUnavailable("Gone.", pool="encoder")


@dataclass
class Replica:
    """A replica with a given length and limit of its queue."""

    name: str
    queue_len: int = 0
    max_ongoing_requests: int = 4
    routing_stats: dict[str, Any] = field(default_factory=dict)
    probed: asyncio.Event = field(default_factory=asyncio.Event, compare=False)
    checks: asyncio.Queue[Exception | None] = field(default_factory=asyncio.Queue, compare=False)
    """The outcomes of health checks. A check waits for the next one."""

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, POOL)

    @property
    def _actor_handle(self) -> Any:
        return SimpleNamespace(check_health=SimpleNamespace(remote=self._check))

    async def _check(self) -> None:
        if (error := await self.checks.get()) is not None:
            raise error

    @property
    def replica_metadata(self) -> dict[str, Any]:
        return description(ProcessorSettings())

    async def get_queue_len(self, *, deadline_s: float) -> int:  # noqa: ARG002
        self.probed.set()
        return self.queue_len


async def encoders(*replicas: Replica) -> EncoderRequestRouter:
    """Returns an encoder pool's request router that knows the given replicas."""
    router = EncoderRequestRouter(
        deployment_id=POOL, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    router.initialize_state(routing=EncoderConfig().routing.model_dump())
    router.update_replicas(cast("list[RunningReplica]", list(replicas)))
    for replica in replicas:
        await replica.probed.wait()
        router.on_new_queue_len_info(replica.replica_id, replica.queue_len)
        replica.probed.clear()
    return router


def encode(digest: str) -> PendingRequest:
    """Returns a call to ``encode`` that belongs to one client request."""
    metadata = RequestMetadata(request_id="request", internal_request_id="request")
    return PendingRequest(args=[Picture(digest, b"", 448, 448, "")], kwargs={}, metadata=metadata)


async def chosen(router: EncoderRequestRouter, *digests: str) -> list[str]:
    """Returns the replicas that are chosen for calls which wait at the same time."""
    async with asyncio.timeout(DEADLINE_S):
        replicas = await asyncio.gather(*(router._choose_replica_for_request(encode(digest)) for digest in digests))
    return [replica.replica_id.unique_id for replica in replicas]


async def test_calls_of_one_request_wait_together_and_none_for_ever() -> None:
    """Forty calls that belong to one client request all get a replica within the bound, and calls for the same
    picture get the same replica."""
    router = await encoders(Replica("a", max_ongoing_requests=100), Replica("b", max_ongoing_requests=100))
    digests = [str(number) for number in range(20)]
    where = await chosen(router, *digests, *digests)
    assert where[:20] == where[20:]
    assert max(Counter(where[:20]).values()) <= 1.25 * 10 + 1


async def test_no_replica_is_asked_for_its_queue_on_the_way() -> None:
    """If all queue lengths are known and no queue is full, choosing a replica needs no call to any replica."""
    replicas = Replica("a"), Replica("b")
    router = await encoders(*replicas)
    await chosen(router, *map(str, range(6)))
    assert not any(replica.probed.is_set() for replica in replicas)


async def test_a_full_replica_is_passed_over() -> None:
    """A picture whose home is full goes to the other replica. If all replicas are full, it waits until one has room."""
    home, other = (
        Replica(name, queue_len) for name, queue_len in zip(rendezvous("0", ["a", "b"]), [4, 3], strict=True)
    )
    router = await encoders(home, other)
    assert await chosen(router, "0") == [other.name]
    other.queue_len = 4
    router.on_new_queue_len_info(other.replica_id, 4)
    waiting = asyncio.ensure_future(chosen(router, "1"))
    await asyncio.gather(home.probed.wait(), other.probed.wait())
    assert not waiting.done()
    other.queue_len = 3
    assert await waiting == [other.name]


async def test_a_call_that_names_a_replica_goes_there() -> None:
    """``at`` takes precedence over home and load. If that replica is gone, the call is routed as usual."""
    home, other = (Replica(name) for name in rendezvous("0", ["a", "b"]))
    router = await encoders(home, other)
    for at, where in [(home.name, home.name), (other.name, other.name), ("gone", home.name)]:
        pending = encode("0")
        pending.kwargs["at"] = at
        assert (await router._choose_replica_for_request(pending)).replica_id.unique_id == where


async def test_a_call_that_names_a_full_replica_waits_a_while() -> None:
    """A call to a named replica that is full waits for a short time and is then routed to another one."""
    named, other = Replica("a", 4), Replica("b")
    router = await encoders(named, other)
    for comes_free in (True, False):
        pending = encode("0")
        pending.kwargs["at"] = "a"
        waiting = asyncio.ensure_future(router._choose_replica_for_request(pending))
        await named.probed.wait()
        assert not waiting.done()
        if comes_free:
            named.queue_len = 3
        assert (await waiting).replica_id.unique_id == ("a" if comes_free else "b")
        named.queue_len = 4
        router.on_new_queue_len_info(named.replica_id, 4)
        named.probed.clear()


async def test_a_replica_is_told_whom_it_stands_in_for() -> None:
    """A call that passes over a picture's home names the home. A call to the home names nobody. Both hold for a
    second attempt."""
    home, other = (
        Replica(name, queue_len) for name, queue_len in zip(rendezvous("0", ["a", "b"]), [4, 3], strict=True)
    )
    router = await encoders(home, other)
    pending = encode("0")
    await router._choose_replica_for_request(pending)
    assert pending.kwargs == {"home": home.name}
    router.on_request_completed(other.replica_id, pending.metadata.internal_request_id)
    router.routes.retain([])
    home.queue_len = 0
    router.on_new_queue_len_info(home.replica_id, 0)
    await router._choose_replica_for_request(pending, is_retry=True)
    assert pending.kwargs == {}


async def test_what_ends_weighs_no_more() -> None:
    """Calls that ended, were refused or were cancelled before they had a replica leave no counted work."""
    router = await encoders(Replica("a"), Replica("b"))
    for digest in map(str, range(10)):
        pending = encode(digest)
        replica = await router._choose_replica_for_request(pending)
        router.on_request_completed(replica.replica_id, pending.metadata.internal_request_id)
    left = asyncio.ensure_future(router._choose_replica_for_request(encode("left")))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait({left})
    assert [router.routes._state(name).work.total(0) for name in "ab"] == [0, 0]
    assert router._waiting == {}


async def test_reports_of_others_work_count() -> None:
    """A replica that reports other Routers' work is passed over until it reports that the work is done."""
    new, newer = [digest for digest in map(str, range(20)) if rendezvous(digest, ["a", "b"])[0] == "a"][:2]
    home, other = Replica("a"), Replica("b")
    router = await encoders(home, other)
    home.routing_stats = {"patches": 5_000, "max_held": 1_000_000}
    router.update_replicas(cast("list[RunningReplica]", [home, other]))
    assert await chosen(router, new) == ["b"]
    home.routing_stats = {"patches": 0, "max_held": 1_000_000}
    router.update_replicas(cast("list[RunningReplica]", [home, other]))
    assert await chosen(router, newer) == ["a"]


async def test_calls_without_hints_take_the_shortest_queue() -> None:
    """A call that names no picture goes to the shortest queue."""
    router = await encoders(Replica("a", queue_len=2), Replica("b", queue_len=1))
    metadata = RequestMetadata(request_id="request", internal_request_id="request")
    replica = await router._choose_replica_for_request(PendingRequest(args=[], kwargs={}, metadata=metadata))
    assert replica.replica_id.unique_id == "b"


def test_decoders_are_routed_by_what_was_said() -> None:
    """A decoder pool's request router reads the conversation and not the embeddings."""
    router = DecoderRequestRouter(deployment_id=POOL, handle_source=DeploymentHandleSource.REPLICA)
    metadata = RequestMetadata(request_id="request", internal_request_id="request")
    call = Call("chat", "", {"messages": [{"role": "user", "content": "Hello"}]})
    nothing: Any = None  # there is no loop to make a future in
    pending = PendingRequest(args=[call, object()], kwargs={}, metadata=metadata, future=nothing)
    item = router.item(pending, ProcessorSettings())
    assert item is not None
    assert len(item.links) == 1


@pytest.mark.parametrize(
    ("pool", "kind"), [(EncoderConfig(), EncoderRequestRouter), (DecoderConfig(), DecoderRequestRouter)]
)
def test_the_application_names_the_request_routers(pool: EncoderConfig | DecoderConfig, kind: type) -> None:
    """A pool with affinity has a request router that Serve can import by its name, and a period of reports."""
    [config] = routing_options(pool.routing).values()
    assert config.get_request_router_class() is kind
    assert config.request_routing_stats_period_s == pool.routing.report_period_s


def test_balanced_pools_keep_serves_own_choice() -> None:
    """``routing: {policy: balanced}`` leaves the choice to Serve."""
    assert routing_options(DecoderConfig.model_validate({"routing": {"policy": "balanced"}}).routing) == {}


async def test_a_replica_that_failed_is_avoided_until_its_health_check_passes() -> None:
    """A replica that failed a call gets no other one while its health check fails, and gets calls again afterwards."""
    home, other = (Replica(name, max_ongoing_requests=100) for name in rendezvous("0", ["a", "b"]))
    router = await encoders(home, other)
    assert await chosen(router, "0") == [home.name]
    router.suspect(home.name)
    assert await chosen(router, "0") == [other.name]
    home.checks.put_nowait(RayActorError())
    await settled()
    assert await chosen(router, "0", "1", "2", "3") == [other.name] * 4
    home.checks.put_nowait(None)

    async def is_trusted() -> bool:
        return home.name in router.trusted()

    await until(is_trusted, DEADLINE_S, "the replica that passed its check is avoided")
    assert {*await chosen(router, *map(str, range(20)))} == {home.name, other.name}


async def test_a_silent_replica_is_avoided_until_it_reports_otherwise() -> None:
    """A replica that reports that its tower does not answer gets no call, unless all replicas report that. It is then
    no home of pictures. With its next report it gets calls again."""
    silent, well = ({"patches": 0, "max_held": 1_000_000, "is_silent": told} for told in (True, False))
    home, other = (Replica(name, max_ongoing_requests=100) for name in rendezvous("0", ["a", "b"]))
    router = await encoders(home, other)
    for number, (home_says, other_says, may_be_chosen) in enumerate(
        [
            (silent, well, {other.name}),
            (silent, silent, {home.name, other.name}),
            (well, well, {home.name, other.name}),
        ]
    ):
        home.routing_stats, other.routing_stats = home_says, other_says
        router.update_replicas(cast("list[RunningReplica]", [home, other]))
        new = (f"{number} {picture}" for picture in range(20))
        assert {*await chosen(router, *new)} == may_be_chosen
        assert {*router.trusted()} == (may_be_chosen if home_says is not other_says or home_says is well else set())


async def test_replicas_are_asked_even_if_all_have_failed() -> None:
    """If every replica has failed a call, calls go to them as before."""
    router = await encoders(Replica("a"), Replica("b"))
    for name in "ab":
        router.suspect(name)
    assert {*await chosen(router, "0", "1", "2")} <= {"a", "b"}


async def test_a_failed_call_is_sent_once_more_to_another_replica() -> None:
    """After the error of the called pool a call is retried once, on a replica that has not failed it."""
    router, attempts = await encoders(Replica("a"), Replica("b")), Attempts("encoder")
    first = await sent(router, attempts)
    attempts.note(GONE)
    assert attempts.can_retry()
    assert await sent(router, attempts) != first
    attempts.note(GONE)
    assert not attempts.can_retry()
    assert attempts.failed == {"a", "b"}
    assert pickle.loads(pickle.dumps(attempts)) is None


async def test_a_call_that_kills_its_replicas_ends_two_at_most() -> None:
    """A call under which every replica dies is tried twice, however many replicas the pool has, and then has failed."""
    replicas = [Replica(name) for name in "abc"]
    router, attempts = await encoders(*replicas), Attempts("encoder")
    dead: list[str] = []
    while not dead or attempts.can_retry():
        dead.append(await sent(router, attempts))
        attempts.note(GONE)
    await settled()
    assert len(set(dead)) == len(dead) == 2
    assert router.trusted() == [replica.name for replica in replicas if replica.name not in dead]


async def test_a_replica_that_is_under_suspicion_is_better_than_the_one_that_failed() -> None:
    """A retry goes to a replica that failed another call before it goes to the one that failed this call."""
    router, attempts = await encoders(Replica("a"), Replica("b")), Attempts("encoder")
    first = await sent(router, attempts)
    router.suspect({"a": "b", "b": "a"}[first])
    attempts.note(GONE)
    await settled()  # both are suspects now
    assert attempts.can_retry()
    assert await sent(router, attempts) != first


async def test_an_error_further_on_is_not_the_replicas() -> None:
    """An error of another pool, and one after the replica has answered, are not retried and raise no suspicion."""
    router = await encoders(Replica("a"), Replica("b"))
    attempts = Attempts("encoder")
    await sent(router, attempts)
    attempts.note(PoolUnavailable("Gone.", pool="preprocessor"))
    assert not attempts.can_retry()
    attempts = Attempts("encoder")
    await sent(router, attempts)
    attempts.answered()
    attempts.note(GONE)
    assert not attempts.can_retry()
    await settled()
    assert router.trusted() == ["a", "b"]


async def test_a_pool_that_shrinks_ends_the_retries() -> None:
    """If the other replica has gone as well by the time of the retry, the second error is final."""
    router, attempts = await encoders(Replica("a"), Replica("b")), Attempts("encoder")
    first = await sent(router, attempts)
    attempts.note(GONE)
    assert attempts.can_retry()
    left = Replica({"a": "b", "b": "a"}[first])
    router.update_replicas(cast("list[RunningReplica]", [left]))
    assert await sent(router, attempts) == left.name
    for _ in range(3):  # also of tries for which no replica was chosen
        attempts.note(GONE)
        assert not attempts.can_retry()
    await settled()
    assert router.trusted() == []


async def test_a_call_to_the_only_replica_is_not_retried() -> None:
    """With one replica an error is final, and the replica is suspected all the same."""
    router, attempts = await encoders(Replica("a")), Attempts("encoder")
    assert await sent(router, attempts) == "a"
    attempts.note(GONE)
    assert not attempts.can_retry()
    await settled()
    assert router.trusted() == []
    assert await chosen(router, "0") == ["a"]


async def sent(router: EncoderRequestRouter, attempts: Attempts) -> str:
    """Has a replica chosen for a call with these attempts, and returns its name."""
    call = encode("0")
    call.kwargs["attempts"] = attempts
    async with asyncio.timeout(DEADLINE_S):
        return (await router._choose_replica_for_request(call)).replica_id.unique_id
