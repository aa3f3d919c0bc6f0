"""Calls between pools: whatever Ray raises on the way becomes one of Prism's errors."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from grpc.aio import AioRpcError
from prometheus_client import generate_latest
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RayServeException

from cluster.errors import InternalError, PrismError, StageUnavailable
from deployments.replicas import opened

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

    Result = TypeVar("Result")
    Response = TypeVar("Response", bound=DeploymentResponse[Any] | DeploymentResponseGenerator[Any])

log: Final = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """One replica's metrics, as Prometheus text, under the replica's own name."""

    replica: str
    text: bytes

    @classmethod
    def of_this_replica(cls) -> ProcessMetrics:
        """What this process has counted."""
        return cls(serve.get_replica_context().replica_id.unique_id, generate_latest())


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

    def of(self, num_bytes: int) -> DeploymentHandle[Any]:
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
def calling(stage: str) -> Iterator[None]:
    """Around a call to another pool.

    Args:
        stage: Whom it goes to.

    Raises:
        PrismError: The one that the stage raised, or ``StageUnavailable`` or ``InternalError`` for what
            became of the call on the way.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, PrismError):
            raise error.cause from None
        if isinstance(error.cause, RayError | RayServeException):
            raise _unavailable(stage, error) from error
        log.exception("the %s failed", stage)
        raise InternalError(f"The {stage} failed on this request.") from error
    except TaskCancelledError:  # Ray's word for it: the client left
        raise asyncio.CancelledError from None
    except (RayError, RayServeException, AioRpcError) as error:
        raise _unavailable(stage, error) from error


@contextmanager
def cancelled_if_left(response: Response) -> Iterator[Response]:
    """When a call is left before its end, its replica stops working on it: Ray does not do that by itself."""
    try:
        yield response
    except BaseException:  # a cancelled task and a closed generator among them
        with suppress(RayError, RayServeException):  # it has failed by itself, and says so once more
            response.cancel()  # type: ignore[no-untyped-call]
        raise


def log_refusals_briefly() -> None:
    """Serve logs every exception of a call with its traceback; for a request's typed end, one line is enough."""
    logging.getLogger("ray.serve").addFilter(_Refusals())


class _Refusals(logging.Filter):
    """Takes the traceback from records about errors that are a client's."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, PrismError) and error.status < 500:
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args, record.exc_info = "Request refused: %s %s", (error.status, error.code), None
        return True


def _unavailable(stage: str, cause: Exception) -> StageUnavailable:
    log.warning("the %s went away: %r", stage, cause)
    return StageUnavailable(f"The {stage} went away while it had the request; send the request again.")
