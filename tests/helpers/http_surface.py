"""The Router's HTTP surface on a real server on loopback, with a function in place of the pools behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from cluster.access.control import AccessControl
from cluster.admission.slots import Admission
from cluster.config import PrismConfig, RouterConfig, RouterUserConfig
from cluster.tracing import Tracing
from deployments.api import build_api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from starlette.applications import Starlette

    from cluster.stream import Answer
    from deployments.api import Serving

    Serve = Callable[..., Awaitable[Answer]]


@asynccontextmanager
async def served(
    serve: Serve,
    *,
    timeout_s: float,
    max_requests: int = 8,
    access: AccessControl | None = None,
    traces_endpoint: str | None = None,
) -> AsyncIterator[tuple[int, Admission]]:
    """Runs the HTTP surface in this event loop. Yields its port and its admission.

    Args:
        serve: Stands for ``Router.serve``.
        timeout_s: The ``request_timeout_s`` of the Router.
        max_requests: The most requests in flight.
        traces_endpoint: The collector for traces.
        access: Decides who gets in. By default everybody does.
    """
    admission = Admission(max_requests, 2**20)
    tracing = Tracing(traces_endpoint)
    config = PrismConfig(router=RouterConfig(request_timeout_s=timeout_s))
    limits, access = RouterUserConfig(), access or AccessControl.without_keys()
    router = SimpleNamespace(
        config=config, limits=limits, admission=admission, access=access, serve=serve, tracing=tracing
    )
    async with listening(build_api(cast("Serving", router))) as port:
        yield port, admission


@asynccontextmanager
async def listening(api: Starlette) -> AsyncIterator[int]:
    """Runs an application in this event loop, and yields its port."""
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_config=None, lifespan="off", access_log=False))
    running = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await running


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collects the records that Prism logs inside the block, as dicts."""
    records: list[dict[str, Any]] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append({**vars(record), "message": record.getMessage()})

    log, handler = logging.getLogger("ray.serve"), Collector()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield records
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def post(path: str, body: dict[str, Any], **headers: str) -> bytes:
    """A POST request as it goes over the wire."""
    content = json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: prism\r\nContent-Length: {len(content)}\r\n{lines}\r\n".encode() + content


def here(port: int) -> str:
    """The address of a port on loopback."""
    return f"http://127.0.0.1:{port}"
