"""Calls to single replicas of a pool, past their queues, so that even a full replica answers.

Serve has no public way to do this: a call to a deployment, and Serve's broadcast too, waits until a replica has room.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ray.actor import ActorHandle
    from ray.serve.handle import DeploymentHandle

    from cluster.messages import Replica

GONE: Final = (RayError, RayServeException)
"""The exceptions of Ray and Serve for a replica that is gone, or that raises one itself."""
POLL_S: Final = 0.05


def name_of_this_replica() -> Replica | None:
    """The name of the replica that this process is; None outside a cluster."""
    try:
        return serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None


def own_pool() -> DeploymentHandle[Any]:
    """The handle of the pool that this replica belongs to."""
    context = serve.get_replica_context()
    return opened(serve.get_deployment_handle(context.deployment, context.app_name))


def opened(pool: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Opens a handle, so that Serve begins to tell this process of the pool's replicas, and gives it back."""
    if not pool.is_initialized:
        pool._init()  # type: ignore[no-untyped-call]
    return pool


def actors_of(pool: DeploymentHandle[Any]) -> dict[Replica, ActorHandle[Any]]:
    """The actors of the replicas that calls to an opened pool may go to, as far as this process knows."""
    router = _router(pool)
    return {name.unique_id: replica._actor_handle for name, replica in router.curr_replicas.items()} if router else {}


def max_calls(pool: DeploymentHandle[Any]) -> list[int]:
    """The most calls that each replica of an opened pool takes at a time, as far as this process knows the pool."""
    router = _router(pool)
    return [replica.max_ongoing_requests for replica in router.curr_replicas.values()] if router else []


def call(actor: ActorHandle[Any], method: str, *arguments: Any) -> Awaitable[Any]:
    """Calls a method of a replica on its actor's event loop. The method must not be async."""
    return cast("Awaitable[Any]", actor.__ray_call__.remote(_call, method, *arguments))


def check_health(actor: ActorHandle[Any]) -> Awaitable[None]:
    """Runs Serve's own health check of a replica. It raises what the check raises."""
    return cast("Awaitable[None]", actor.check_health.remote())


@dataclass(frozen=True, slots=True)
class PoolAnswers:
    """The answers of a pool's replicas to one question, and the replicas that gave none in time."""

    given: list[Any]
    missing: list[Replica]


async def ask_all(
    pool: DeploymentHandle[Any], ask: Callable[[ActorHandle[Any]], Awaitable[Any]], *, timeout_s: float
) -> PoolAnswers:
    """Asks every replica of an opened pool at the same time.

    Args:
        pool: The opened pool.
        ask: Starts the question to one actor.
        timeout_s: Seconds to wait for all answers.

    Returns:
        The answers that came in time. A replica that is gone or fails gives none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    answers = PoolAnswers([], [])

    async def ask_one(name: Replica, actor: ActorHandle[Any]) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                answers.given.append(await ask(actor))
        except (TimeoutError, *GONE):
            answers.missing.append(name)

    while not _knows(pool) and loop.time() < deadline:  # noqa: ASYNC110 -- only right after the start
        await asyncio.sleep(POLL_S)
    await asyncio.gather(*(ask_one(name, actor) for name, actor in actors_of(pool).items()))
    return answers


def _knows(pool: DeploymentHandle[Any]) -> bool:
    """Returns True if Serve has told this process of the replicas of a pool."""
    return _router(pool) is not None and bool(pool.running_replicas_populated())


def _router(pool: DeploymentHandle[Any]) -> Any:
    """The pool's request router, once there is one. On plain Serve it belongs to another thread."""
    return cast(Any, pool._router)._asyncio_router._request_router


def _call(_: Any, method: str, *arguments: Any) -> Any:
    return getattr(serve.get_replica_context().servable_object, method)(*arguments)
