"""Single replicas of a pool: their heap, and calls by name and past their queues, for what a full one must answer, too.

Serve has nothing public for such calls: one to a deployment, and its broadcast as well, waits until a replica has room.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
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
"""What Ray and Serve raise for a replica that cannot be asked, or that raises itself."""
POLL_S: Final = 0.05


def own_pool() -> DeploymentHandle[Any]:
    """The pool that this replica is one of."""
    context = serve.get_replica_context()
    return opened(serve.get_deployment_handle(context.deployment, context.app_name))


def opened(pool: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """The same, and Serve begins to tell this process of its replicas."""
    if not pool.is_initialized:
        pool._init()  # type: ignore[no-untyped-call]
    return pool


def actors_of(pool: DeploymentHandle[Any]) -> dict[Replica, ActorHandle[Any]]:
    """The actors of the replicas that calls to an opened pool are routed to now, as far as this process knows."""
    router = _router(pool)
    return {name.unique_id: replica._actor_handle for name, replica in router.curr_replicas.items()} if router else {}


def call(actor: ActorHandle[Any], method: str, *arguments: Any) -> Awaitable[Any]:
    """Calls a replica's method, one that is not async, on its actor's event loop."""
    return cast("Awaitable[Any]", actor.__ray_call__.remote(_call, method, *arguments))


def check_health(actor: ActorHandle[Any]) -> Awaitable[None]:
    """Serve's own health check of a replica; raises what that raises."""
    return cast("Awaitable[None]", actor.check_health.remote())


async def ask_all(
    pool: DeploymentHandle[Any], ask: Callable[[ActorHandle[Any]], Awaitable[Any]], *, timeout_s: float
) -> list[Any]:
    """Asks every replica of an opened pool; the answers of those that gave one in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s

    async def ask_one(actor: ActorHandle[Any]) -> list[Any]:
        with suppress(TimeoutError, *GONE):
            async with asyncio.timeout_at(deadline):
                return [await ask(actor)]
        return []

    while not _knows(pool) and loop.time() < deadline:  # noqa: ASYNC110 -- this process has just begun
        await asyncio.sleep(POLL_S)
    answers = await asyncio.gather(*map(ask_one, actors_of(pool).values()))
    return [answer for found in answers for answer in found]


def _knows(pool: DeploymentHandle[Any]) -> bool:
    """Whether Serve has told this process of the pool's replicas."""
    return _router(pool) is not None and bool(pool.running_replicas_populated())


def _router(pool: DeploymentHandle[Any]) -> Any:
    """What chooses the pool's replicas, once there is one. On plain Serve it belongs to another thread."""
    return cast(Any, pool._router)._asyncio_router._request_router


def _call(_: Any, method: str, *arguments: Any) -> Any:
    return getattr(serve.get_replica_context().servable_object, method)(*arguments)
