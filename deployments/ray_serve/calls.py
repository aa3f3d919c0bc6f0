"""Calls between pools: whatever Ray raises on the way becomes one of Prism's errors."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException

from cluster.errors import InternalError, PoolUnavailable, PrismError
from deployments.ray_serve.replicas import opened

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

    Result = TypeVar("Result")
    Response = TypeVar("Response", bound=DeploymentResponse[Any] | DeploymentResponseGenerator[Any])

log: Final = logging.getLogger("ray.serve")


class BySize:
    """One method of a pool, called by value or by reference.

    By value is gRPC from process to process: a third of the time per piece of a stream, but it copies every byte.
    By reference, what is large goes through Ray's object store, once.
    """

    MAX_VALUE_BYTES: Final = 2**20
    """gRPC refuses what is above 4 MiB."""

    def __init__(self, method: DeploymentHandle[Any]) -> None:
        opened(method)  # or each of the two would route by what it alone has seen
        self._by_value: Final = method.options(_by_reference=False)
        self._by_reference: Final = method.options(_by_reference=True)

    def for_size(self, num_bytes: int) -> DeploymentHandle[Any]:
        """The method to call, where so many bytes go there or come back."""
        return self._by_value if num_bytes <= self.MAX_VALUE_BYTES else self._by_reference


async def all_or_first_error(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Runs coroutines together; on the first error the others are cancelled, and that error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def calling(pool: str) -> Iterator[None]:
    """Around a call to another pool.

    Args:
        pool: Whom it goes to.

    Raises:
        PrismError: The one that the pool raised, or ``PoolUnavailable`` or ``InternalError`` for what
            became of the call on the way.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, PrismError):
            raise error.cause from None
        if isinstance(error.cause, RayError | RayServeException):
            raise _unavailable(pool, error) from error
        log.exception("the %s failed", pool)
        raise InternalError(f"The {pool} failed on this request.") from error
    except TaskCancelledError:  # Ray's word for it: the client left
        raise asyncio.CancelledError from None
    except (RayError, RayServeException, AioRpcError) as error:
        raise _unavailable(pool, error) from error


@contextmanager
def cancelled_if_left(response: Response) -> Iterator[Response]:
    """When a call is left before its end, its replica stops working on it: Ray does not do that by itself."""
    try:
        yield response
    except BaseException:  # a cancelled task and a closed generator among them
        with suppress(RayError, RayServeException):  # it has failed by itself, and says so once more
            response.cancel()  # type: ignore[no-untyped-call]
        raise


def _unavailable(pool: str, cause: Exception) -> PoolUnavailable:
    log.warning("the %s went away: %r", pool, cause)
    return PoolUnavailable(f"The {pool} went away while it had the request; send the request again.")
