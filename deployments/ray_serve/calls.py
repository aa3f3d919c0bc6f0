"""Calls between pools: by value or by reference, cancelled with their caller, and every failure a ``PrismError``."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grpc import RpcError
from grpc.aio import BaseError
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException

from cluster.errors import InternalError, PoolUnavailable, PrismError
from deployments.ray_serve.replicas import name_of_this_replica, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

    Response = TypeVar("Response", bound=DeploymentResponse[Any] | DeploymentResponseGenerator[Any])

log: Final = logging.getLogger("ray.serve")

TRANSPORT_ERRORS: Final = (RayError, RayServeException, RpcError, BaseError)
"""What Ray, Serve and gRPC raise when a call does not come to its end: the base classes of all their exceptions."""


class BySize:
    """One method of a pool, called by value when little data travels and by reference otherwise.

    A call by value is gRPC from process to process. It needs a third of the time per piece of a stream, but copies
    every byte. A call by reference puts large arguments and results into Ray's object store, once.
    """

    MAX_VALUE_BYTES: Final = 2**20
    """gRPC refuses messages above 4 MiB."""

    def __init__(self, method: DeploymentHandle[Any]) -> None:
        opened(method)  # so that both handles share one request router, which sees all calls
        self._by_value: Final = method.options(_by_reference=False)
        self._by_reference: Final = method.options(_by_reference=True)

    def for_size(self, num_bytes: int) -> DeploymentHandle[Any]:
        """The handle to call when ``num_bytes`` are sent or come back."""
        return self._by_value if num_bytes <= self.MAX_VALUE_BYTES else self._by_reference


@contextmanager
def calling(pool: str) -> Iterator[None]:
    """Wraps a call to another pool; no exception of Ray, Serve or gRPC leaves the block.

    Args:
        pool: The pool's name, for messages.

    Raises:
        PrismError: The error that the pool raised; ``PoolUnavailable`` if the call was lost on its way;
            ``InternalError`` for
            anything else.
    """
    try:
        yield
    except RayTaskError as error:  # a call by reference: the exception of the replica is its cause
        if isinstance(error.cause, PrismError):
            raise error.cause from None
        if isinstance(error.cause, TRANSPORT_ERRORS):
            raise _unavailable(pool, error) from error
        raise _failed(pool, error) from error
    except TaskCancelledError:  # the client left
        raise asyncio.CancelledError from None
    except PrismError:  # a call by value: the exception of the replica itself
        raise
    except TRANSPORT_ERRORS as error:
        raise _unavailable(pool, error) from error
    except Exception as error:
        raise _failed(pool, error) from error


@contextmanager
def answering(pool: str) -> Iterator[None]:
    """Wraps a replica's work on a call from another pool; no exception but a ``PrismError`` leaves the block.

    Serve pickles exceptions to the caller. Unpickling a foreign one, such as torch's, would import its library there.

    Args:
        pool: The pool of the replica, for messages and for the log.

    Raises:
        PrismError: The error that the work raised, or ``InternalError`` for any other exception, which Serve logs as
            its cause.
    """
    try:
        yield
    except PrismError as error:
        error.replica = error.replica or f"{pool}/{name_of_this_replica()}"
        raise
    except Exception as error:
        failed = _internal(pool, error)
        failed.replica = f"{pool}/{name_of_this_replica()}"
        raise failed from error


@contextmanager
def cancelled_if_left(response: Response) -> Iterator[Response]:
    """Cancels a call whose caller leaves the block with an exception. Ray does not do this by itself."""
    try:
        yield response
    except BaseException:  # a cancelled task and a closed generator among them
        with suppress(RayError, RayServeException):  # the call may have failed already, and raises again
            response.cancel()  # type: ignore[no-untyped-call]
        raise


def _unavailable(pool: str, cause: Exception) -> PoolUnavailable:
    log.warning("the %s went away: %r", pool, cause)
    message = f"The {pool} went away while it had the request; send the request again."
    return PoolUnavailable(message, pool=pool).because(cause)


def _failed(pool: str, cause: Exception) -> InternalError:
    log.error("the %s failed", pool, exc_info=cause)
    return _internal(pool, cause)


def _internal(pool: str, cause: Exception) -> InternalError:
    return InternalError(f"The {pool} failed on this request.").because(cause)
