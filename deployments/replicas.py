"""Single replicas of a pool, called by name and past their queues: what must be answered also by a replica that is full.

Serve has nothing public for that: a call to a deployment, and its broadcast as well, waits until a replica has room.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from ray import serve
from ray.exceptions import RayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ray.actor import ActorHandle
    from ray.serve.handle import DeploymentHandle

    from cluster.messages import Replica


POLL_S: Final = 0.05


async def actors_of(pool: DeploymentHandle[Any]) -> dict[Replica, ActorHandle[Any]]:
    """The actors of the replicas that calls to a pool are routed to now; waits until the first are known."""
    if not pool.is_initialized:
        pool._init()  # type: ignore[no-untyped-call]
    router = cast(Any, pool._router)._asyncio_router
    while not (pool.running_replicas_populated() and router._request_router):  # noqa: ASYNC110 -- perhaps of another thread
        await asyncio.sleep(POLL_S)
    return {name.unique_id: replica._actor_handle for name, replica in router._request_router.curr_replicas.items()}


def call(actor: ActorHandle[Any], method: str, *arguments: Any) -> Awaitable[Any]:
    """Calls a replica's method, one that is not async, on its actor's event loop."""
    return cast("Awaitable[Any]", actor.__ray_call__.remote(_call, method, *arguments))


def check_health(actor: ActorHandle[Any]) -> Awaitable[None]:
    """Serve's own health check of a replica; raises what that raises."""
    return cast("Awaitable[None]", actor.check_health.remote())


async def ask_all(
    pool: DeploymentHandle[Any], ask: Callable[[ActorHandle[Any]], Awaitable[Any]], *, timeout_s: float
) -> list[Any]:
    """Asks every replica of a pool; the answers of those that gave one in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s

    async def ask_one(actor: ActorHandle[Any]) -> list[Any]:
        with suppress(TimeoutError, RayError):
            async with asyncio.timeout_at(deadline):
                return [await ask(actor)]
        return []

    try:
        async with asyncio.timeout_at(deadline):
            actors = await actors_of(pool)
    except TimeoutError:  # nothing is known of any replica yet
        return []
    answers = await asyncio.gather(*map(ask_one, actors.values()))
    return [answer for found in answers for answer in found]


def _call(_: Any, method: str, *arguments: Any) -> Any:
    return getattr(serve.get_replica_context().servable_object, method)(*arguments)
