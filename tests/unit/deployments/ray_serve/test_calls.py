"""The mapping of exceptions in calls between pools."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import ray.exceptions
import ray.serve.exceptions
import torch
from ray.exceptions import RayTaskError, TaskCancelledError

from cluster.errors import InternalError, InvalidPicture, PoolUnavailable, PrismError
from deployments.ray_serve.calls import answering, calling

if TYPE_CHECKING:
    from types import ModuleType


def exceptions_of(module: ModuleType) -> list[type[Exception]]:
    """Returns every exception class that a module defines or exports."""
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, Exception)]


KINDS = sorted(
    {
        *exceptions_of(ray.exceptions),
        *exceptions_of(ray.serve.exceptions),
        *exceptions_of(grpc),
        *exceptions_of(grpc.aio),
    }
    - {RayTaskError, grpc.FutureCancelledError, grpc.FutureTimeoutError},  # the last two: of gRPC's synchronous futures
    key=lambda kind: (kind.__module__, kind.__name__),
)
OWN = [kind for kind in KINDS if kind.__module__.startswith(("ray.", "grpc"))]


def bare(kind: type[Exception]) -> Exception:
    """Makes an exception of a class without calling its constructor."""
    if issubclass(kind, grpc.aio.AioRpcError):
        return kind(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    return kind.__new__(kind)


def outcome(error: BaseException) -> BaseException:
    """Raises an error inside ``calling`` and returns the exception that leaves it."""
    with pytest.raises(BaseException) as left, calling("decoder"):  # noqa: PT011 - the test looks at what comes out
        raise error
    return left.value


def in_replica(cause: Exception) -> Exception:
    """Returns the error by which Ray reports an exception of a replica in a call by reference."""
    kind: Any = RayTaskError  # which publishes no types
    error: Exception = kind("generate", "Traceback", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_whatever_ray_or_grpc_raises_is_mapped(kind: type[Exception]) -> None:
    """Each exception of Ray, Serve and gRPC becomes ``PoolUnavailable``, except for a cancelled call."""
    left = outcome(bare(kind))
    assert type(left) is (asyncio.CancelledError if issubclass(kind, TaskCancelledError) else PoolUnavailable)


def test_there_are_exceptions_to_map() -> None:
    """The list of exceptions in the test above contains the important ones."""
    names = {kind.__name__ for kind in OWN}
    assert names >= {"ActorDiedError", "ActorUnavailableError", "BackPressureError", "AioRpcError", "ObjectLostError"}
    assert len(names) > 40


@pytest.mark.parametrize("by_value", [True, False], ids=["by value", "by reference"])
def test_an_error_of_prisms_arrives_as_it_was_raised(by_value: bool) -> None:
    """A typed error of a replica keeps its type, message and field, in calls by value and by reference."""
    error = InvalidPicture("The picture is broken; send the whole file.", param="messages[0]")
    left = outcome(pickle.loads(pickle.dumps(error)) if by_value else in_replica(error))
    assert isinstance(left, InvalidPicture)
    assert left.to_openai() == error.to_openai()


@pytest.mark.parametrize("by_value", [True, False], ids=["by value", "by reference"])
@pytest.mark.parametrize(
    "cause", [ValueError("?"), RuntimeError("?"), KeyError("?"), torch.OutOfMemoryError("?")], ids=repr
)
def test_any_other_exception_is_a_defect(cause: Exception, by_value: bool) -> None:
    """Any other exception of a replica becomes a 500 that names the pool, in calls by value and by reference."""
    left = outcome(cause if by_value else in_replica(cause))
    assert type(left) is InternalError
    assert left.message == "The decoder failed on this request."


def test_a_replica_that_lost_another_is_unavailable_itself() -> None:
    """If a replica fails with Ray's exception about another replica, the called pool counts as unavailable."""
    assert type(outcome(in_replica(bare(ray.exceptions.ActorDiedError)))) is PoolUnavailable


def test_a_cancelled_call_stays_cancelled() -> None:
    """Cancelling a task during a call cancels the task; it does not become an error."""
    assert type(outcome(asyncio.CancelledError())) is asyncio.CancelledError


def refused(error: Exception) -> PrismError:
    """Raises an error inside ``answering`` and returns the exception that leaves it."""
    with pytest.raises(PrismError) as left, answering("encoder"):
        raise error
    return left.value


def test_only_typed_errors_leave_a_replica() -> None:
    """Typed errors leave a replica unchanged, and all others as a 500. Unpickling them imports none of the replica's
    libraries."""
    typed = InvalidPicture("No.")
    assert refused(typed) is typed
    left = refused(torch.OutOfMemoryError("no memory"))
    assert type(left) is InternalError
    script = "import pickle, sys; error = pickle.loads(sys.stdin.buffer.read()); print(error, 'torch' in sys.modules)"
    done: Any = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(left), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "The encoder failed on this request. False"
