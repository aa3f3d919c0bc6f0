"""The access log: one line and one count for each request, when it ends.

In: facts that become known while a request passes through the Router. Out: its line, whether it got an answer, an
    error, or its client left. Nothing that a client sent becomes part of a line, except the request's id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import InternalError, PrismError
from cluster.metrics import REQUESTS, TENANT_REQUESTS
from cluster.waterfall import Waterfall

if TYPE_CHECKING:
    from cluster.access.control import Caller
    from cluster.messages import Replica, TokenCounts
    from cluster.tracing import RequestTrace

log: Final = logging.getLogger("ray.serve")

OK: Final = 200
CLIENT_GONE: Final = 499
"""The status of a request whose client left before its answer; nginx uses the same number."""

TRACED: Final[tuple[str, ...]] = ("endpoint", "pictures", "call_id", "decoders", "failed_replica", "cause")
"""The facts of a line that are attributes of the request's span too."""


class ClientGone(Exception):
    """The client left before its answer, or in the middle of it."""


class AccessRecord:
    """The record of one request, from its arrival to its end.

    Attributes:
        call_id: The id that Prism gives the call, before a decoder gets it. vLLM's own id contains it.
        num_pictures: The number of the request's pictures, once its body has been read.
        decoders: The decoders that it was sent to, in order.
        trace: The request's trace, if there is a collector for it.
        tenant: The tenant whose API key the request has; empty without keys.
        priority: The priority of that key: higher ones go first where requests wait.
        caller: The holder of that key; None without keys.
        tokens: Its tokens, once the decoder has told them.
        num_continuations: How often another decoder went on with its stream.

    Args:
        endpoint: The endpoint of vLLM's API that was called, or ``other``.
        request_id: The value of the header ``X-Request-Id``.
        ingress_s: Seconds that the request spent on its way to the Router, if known.
    """

    def __init__(self, endpoint: str, request_id: str, ingress_s: float | None = None) -> None:
        self.endpoint: Final = endpoint
        self.request_id: Final = request_id
        self.waterfall: Final = Waterfall(ingress_s)
        self.call_id: str | None = None
        self.num_pictures: int | None = None
        self.decoders: list[Replica] = []
        self.trace: RequestTrace | None = None
        self.tenant = ""
        self.priority = 0
        self.caller: Caller | None = None
        self.tokens: TokenCounts | None = None
        self.num_continuations = 0
        self._started_s: Final = time.perf_counter()

    def went_on(self) -> None:
        """Counts a continuation."""
        self.num_continuations += 1

    def end(self, error: BaseException | None) -> None:
        """Counts the request, and writes its line into the log.

        Args:
            error: None for an answer that was sent whole; ``ClientGone`` or a cancellation if the client left.
        """
        status, code = _outcome(error)
        REQUESTS.labels(self.endpoint, status, code).inc()
        if self.tenant:
            TENANT_REQUESTS.labels(self.tenant, code).inc()
        if status == OK:
            self.waterfall.observe()
        facts: dict[str, Any] = {
            "endpoint": self.endpoint,
            "status": status,
            "code": code,
            "tenant": self.tenant or None,
            "total_ms": round((time.perf_counter() - self._started_s) * 1000, 3),
            "pictures": self.num_pictures,
            **self._token_facts(),
            "call_id": self.call_id,
            "decoders": self.decoders or None,
            "continuations": self.num_continuations or None,
            "waterfall_ms": self.waterfall.milliseconds(),
        }
        if isinstance(error, PrismError):
            facts |= {"failed_replica": error.replica, "cause": error.cause}
        level = logging.WARNING if status >= InternalError.status else logging.INFO
        message = "answered" if status == OK else "client gone" if status == CLIENT_GONE else "failed"
        facts = {name: fact for name, fact in facts.items() if fact is not None}
        log.log(level, message, extra=facts)
        if self.trace is not None:
            known = {name: facts[name] for name in TRACED if name in facts}
            self.trace.end(self.waterfall.spent, status, code, {**known, "request_id": self.request_id})

    def _token_facts(self) -> dict[str, int | None]:
        if self.tokens is None:
            return {}
        facts = {"prompt_tokens": self.tokens.prompt, "picture_tokens": self.tokens.picture}
        return {**facts, "completion_tokens": self.tokens.completion}


def _outcome(error: BaseException | None) -> tuple[int, str]:
    """The HTTP status and the error code that a request is counted by."""
    if error is None:
        return OK, "ok"
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return CLIENT_GONE, "client_gone"
    return (error.status, error.code) if isinstance(error, PrismError) else (InternalError.status, InternalError.code)
