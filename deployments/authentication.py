"""Lets HTTP requests through by their API keys, before anything of them is read but their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from cluster.access_log import AccessRecord
from cluster.errors import PrismError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cluster.access.control import AccessControl, Caller

OPEN_PATHS: Final = frozenset({"/health", "/version"})
"""The paths that need no key: load balancers ask for the first one, and neither says anything about users."""
CALLER: Final = "prism_caller"
"""The name of the ``Caller`` in the scope of a request."""


class Authentication:
    """An ASGI application in front of another one.

    It passes on requests with a valid key, and requests for ``OPEN_PATHS``. It answers others itself: 401, or 503 until
    the Router knows its settings. Without keys it passes on all requests. Each answer to a request with a key tells
    what is left of the key's limits.

    Args:
        app: The application behind.
        access: Knows the keys.
        respond: Makes the response of an error.
        endpoints: The endpoint of each path that has one, for the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: AccessControl,
        respond: Callable[[Request, Exception], Response],
        endpoints: Mapping[str, str],
    ) -> None:
        self._app = app
        self._gate = access
        self._respond = respond
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gate.is_open or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            caller = self._gate.caller([value for name, value in scope["headers"] if name == b"authorization"])
        except PrismError as error:
            request = Request(scope)
            endpoint = self._endpoints.get(scope["path"], "other")
            AccessRecord(endpoint, request.headers.get("x-request-id", "")).end(error)
            await self._respond(request, error)(scope, receive, send)
            return
        if caller is None:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *caller.headers()]}
            await send(message)

        scope[CALLER] = caller
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            caller.leave()


def caller_of(request: Request) -> Caller | None:
    """The holder of a request's key; None if no key was needed."""
    caller: Caller | None = request.scope.get(CALLER)
    return caller


def admit(request: Request, record: AccessRecord, model: str) -> None:
    """Lets a request for an answer of a model begin, and puts its tenant into its record.

    Without keys nothing happens. A refusal ends the record.

    Raises:
        ModelNotAllowed: The key may not use the model.
        RateLimited: The key has no request left now.
    """
    if (caller := caller_of(request)) is None:
        return
    record.caller, record.tenant, record.priority = caller, caller.tenant, caller.priority
    try:
        caller.enter(model)
    except PrismError as error:
        record.end(error)
        raise
