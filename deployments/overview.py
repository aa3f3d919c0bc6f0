"""Answers operators about the whole cluster: whether it can serve, the states of its pools, and its metrics.

In: ``GET /health``, ``/status`` and ``/metrics``. Out: answers about every pool, or the metrics of one replica.

Questions about every pool have a time limit, at most one run at a time, and threads that nothing else uses.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from cluster import metrics
from cluster.errors import ControllerUnavailable, PoolUnavailable, RouteNotFound
from deployments.ray_serve.decisions import can_start, read_decisions
from deployments.ray_serve.replicas import GONE, actors_of, ask_all, call, check_health
from deployments.ray_serve.status import read_pool_states

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ray.serve.handle import DeploymentHandle

    from cluster.config import PrismConfig

Result = TypeVar("Result")

ANSWER_TIMEOUT_S: Final = 5.0
"""How long a run waits for the replicas of a pool, or for Serve's controller."""
STORE_TIMEOUT_S: Final = 1.0
"""How long a run waits for Ray's key-value store, which answers in a few milliseconds."""
CLUSTER: Final = "cluster"
"""The scrape target for what belongs to no replica."""
PAUSE_S: Final = 0.5
"""The shortest time between the beginnings of two runs of one kind."""


class SharedRun(Generic[Result]):
    """Runs a function for all callers that come at about the same time, one run after the other.

    A caller gets the result of a run that began after its call, so it never sees an old answer. However many callers
    there are, runs begin at least ``PAUSE_S`` apart.

    Args:
        function: The function to run.
    """

    def __init__(self, function: Callable[[], Awaitable[Result]]) -> None:
        self._function = function
        self._next: asyncio.Task[Result] | None = None
        self._lock = asyncio.Lock()
        self._began_s = -PAUSE_S

    async def __call__(self) -> Result:
        """Waits for the next run, and returns or raises what it does. The run goes on if the caller leaves."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> Result:
        loop = asyncio.get_running_loop()
        async with self._lock:
            await asyncio.sleep(self._began_s + PAUSE_S - loop.time())
            self._began_s = loop.time()
            self._next = None  # a later caller needs a later run
            return await self._function()


class ClusterOverview:
    """Answers ``/health``, ``/status`` and ``/metrics`` for one Router.

    Args:
        config: The application's configuration.
        own_pool: The opened handle of the Routers' pool.
        pools: The opened handles of the other pools, by their names.
    """

    def __init__(
        self, config: PrismConfig, own_pool: DeploymentHandle[Any], pools: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        self._needs = {pool.deployment: {"GPU": pool.num_gpus, "CPU": pool.resources.num_cpus} for pool in config.pools}
        self._pools = pools
        self._all_pools = {"router": own_pool, **pools}
        self._controller_thread = ThreadPoolExecutor(1, "controller")  # one that hangs stops no other
        self._store_thread = ThreadPoolExecutor(1, "decisions")
        self._merge_thread = ThreadPoolExecutor(1, "merge")
        self.check_ready = SharedRun(self._check_ready)
        self.pool_states = SharedRun(self._pool_states)
        self.cluster_metrics = SharedRun(self._cluster_metrics)

    def scrape_targets(self, host: str) -> list[dict[str, Any]]:
        """Every replica as a target of its own, in the form of Prometheus's HTTP service discovery. One more target has
        what belongs to no replica.

        Args:
            host: The address by which the caller reaches Prism. Every Router answers for every replica.
        """
        names = [f"{pool}/{name}" for pool, handle in self._all_pools.items() for name in sorted(actors_of(handle))]
        return [
            {
                "targets": [host],
                "labels": {"__metrics_path__": "/metrics", "__param_replica": name, "instance": name},
            }
            for name in [*names, CLUSTER]
        ]

    async def replica_metrics(self, name: str) -> bytes:
        """The metrics of one target of ``scrape_targets``, with the labels that the text of the whole cluster has.

        Args:
            name: ``pool/replica``, or ``CLUSTER``.

        Raises:
            RouteNotFound: There is no such replica now.
            PoolUnavailable: It did not answer in time.
        """
        if name == CLUSTER:
            return metrics.scaling_text(await self._decisions())
        pool, _, replica = name.partition("/")
        actor = actors_of(self._all_pools[pool]).get(replica) if pool in self._all_pools else None
        if actor is None:
            raise RouteNotFound("There is no such replica; GET /metrics/targets lists all.", param="replica")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                found = await call(actor, "metrics")
        except (TimeoutError, *GONE):
            raise PoolUnavailable(f"The replica did not answer within {ANSWER_TIMEOUT_S:g} s.", pool=pool) from None
        return metrics.merge([({"pool": pool, "replica": replica}, found.text)])

    async def _check_ready(self) -> None:
        """Checks that every pool can serve, or can start: a pool that may have no replica starts one for a call.

        Raises:
            PoolUnavailable: A pool can do neither; the message names it.
        """
        found = await asyncio.gather(
            *(ask_all(pool, check_health, timeout_s=ANSWER_TIMEOUT_S) for pool in self._pools.values())
        )
        empty = [name for name, answers in zip(self._pools, found, strict=True) if not answers.given]
        decisions = await self._decisions() if empty else {}
        for name in empty:
            if not can_start(decisions.get(self._pools[name].deployment_name)):
                raise PoolUnavailable(f"No replica of the {name} pool can serve now.")

    async def _pool_states(self) -> dict[str, Any]:
        """Each pool with the states of its replicas, as Serve's controller knows them, and the last decision on its
        size, if a policy makes any.

        Raises:
            ControllerUnavailable: The controller did not answer in time, or is gone.
        """
        states, decisions = await asyncio.gather(self._controller_states(), self._decisions())
        return {name: {**state, "scaling": decisions.get(name)} for name, state in states.items()}

    async def _controller_states(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._controller_thread, read_pool_states, self._needs)
        except (TimeoutError, *GONE):
            message = f"Serve's controller did not answer within {ANSWER_TIMEOUT_S:g} s; ask again."
            raise ControllerUnavailable(message) from None

    async def _cluster_metrics(self) -> bytes:
        """The metrics of every replica, vLLM's own included, and the names of those that gave none, as one text."""
        ask = partial(call, method="metrics")
        pools = (ask_all(pool, ask, timeout_s=ANSWER_TIMEOUT_S) for pool in self._all_pools.values())
        found, decisions = await asyncio.gather(asyncio.gather(*pools), self._decisions())
        texts = [
            ({"pool": name, "replica": reply.replica}, reply.text)
            for name, answers in zip(self._all_pools, found, strict=True)
            for reply in answers.given
        ]
        answered = {
            name: {**dict.fromkeys(answers.missing, False), **{reply.replica: True for reply in answers.given}}
            for name, answers in zip(self._all_pools, found, strict=True)
        }
        texts += [({}, metrics.answered_text(answered)), ({}, metrics.scaling_text(decisions))]
        return await asyncio.get_running_loop().run_in_executor(self._merge_thread, metrics.merge, texts)

    async def _decisions(self) -> dict[str, dict[str, Any]]:
        """The policy's last decisions; none if Ray's key-value store does not answer in time."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._store_thread, read_decisions)
        except (TimeoutError, *GONE):
            return {}
