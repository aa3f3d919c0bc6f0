"""A real Router on a real server on loopback, with a function in this process in place of its decoders."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from cluster.config import PrismConfig
from deployments import router
from tests.helpers.http_surface import listening

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from cluster.messages import Begun, Call, FirstPiece, Picture, Piece
    from deployments.ray_serve.retries import Attempts

    Generate = Callable[..., AsyncGenerator[Begun | FirstPiece | Piece]]


MAX_CALLS = 1024


class LocalPool:
    """Stands for Serve's handle of a pool and of its method.

    Args:
        num_replicas: The replicas that Serve would have told of.
        generate: Makes the answer to a call.
    """

    is_initialized = True

    def __init__(self, num_replicas: int, generate: Generate | None = None) -> None:
        self._generate = generate
        self._num_calls = 0
        self.replicas = {number: SimpleNamespace(max_ongoing_requests=MAX_CALLS) for number in range(num_replicas)}
        self._router = SimpleNamespace(
            _asyncio_router=SimpleNamespace(_request_router=SimpleNamespace(curr_replicas=self.replicas))
        )

    @property
    def generate(self) -> LocalPool:
        """The handle of the method."""
        return self

    def options(self, **_: Any) -> LocalPool:
        """The same handle: its options mean nothing here."""
        return self

    def remote(self, call: Call, *pictures: Picture, attempts: Attempts) -> LocalAnswer:
        """Calls the function."""
        assert self._generate is not None
        self._num_calls += 1
        attempts.sent(
            f"local#{self._num_calls}",
            has_other=len(self.replicas) > 1,
            suspect=lambda: None,
            trusted=lambda: [f"local#{self._num_calls + 1}"],
        )
        return LocalAnswer(self._generate(call, *pictures))


class LocalAnswer:
    """Stands for the response of a call that streams."""

    def __init__(self, pieces: AsyncGenerator[Begun | FirstPiece | Piece]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> LocalAnswer:
        return self

    async def __anext__(self) -> Begun | FirstPiece | Piece:
        return await anext(self._pieces)

    def cancel(self) -> None:
        """Ends the call."""
        asyncio.ensure_future(self._pieces.aclose())  # noqa: RUF006 -- it ends at once


@asynccontextmanager
async def routed(
    generate: Generate,
    *,
    config: PrismConfig | None = None,
    num_decoders: int = 1,
    num_encoders: int = 1,
    kind: type[router.Router] = router.Router,
    **user_config: Any,
) -> AsyncIterator[tuple[int, router.Router]]:
    """Runs a Router in this event loop. Yields its port and the Router.

    Args:
        generate: Stands for ``Decoder.generate``.
        config: The configuration.
        num_decoders: The decoders that the Router knows of.
        num_encoders: The encoders that the Router knows of.
        kind: The class of the Router.
        user_config: The Router's ``user_config``.
    """
    pools = {
        "decoder": LocalPool(num_decoders, generate),
        "encoder": LocalPool(num_encoders),
        "preprocessor": LocalPool(1),
    }
    parts: dict[str, Any] = {
        "own_pool": lambda: LocalPool(1),
        "freeze_heap": lambda: None,
        "read_http_host": lambda: "127.0.0.1",
    }
    with patch.multiple(router, **parts):
        replica = kind(config or PrismConfig(), **cast("dict[str, Any]", pools))
        await replica.reconfigure(user_config)
    async with listening(replica.build_api()) as port:
        yield port, replica
