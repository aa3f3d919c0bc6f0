"""Sends the requests of an open loop with Locust's HTTP client, and reports each to Locust's statistics.

A whole answer fires one event each of the types POST, TTFT, "TTFT scheduled" and ITL, and one ICL event per gap;
``client`` defines them. Every request fires a Lag event. A failed request fires a failed POST event. A request that the
server refused with 429 and ``Retry-After`` fires a Refused event instead, and one that had not ended at the end of the
run fires an Unfinished event. So all latencies are those of whole answers.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from gevent import GreenletExit
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, FastHttpSession

from loadtest.client import ChatAnswer, ChatFailed, ChatRefused, read_answer, refusal
from loadtest.records import Outcome, RequestRecord
from loadtest.workload import PATH

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from loadtest.schedule import PlannedRequest

log: Final = logging.getLogger(__name__)

HEADERS: Final = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
READ_TIMEOUT_S: Final = 120.0
"""The limit for one read. It is long, because a queue before the first token is no error."""
MAX_CONNECTIONS: Final = 100_000
"""More than the open files that a process may have, so the client's pool never delays a request."""
EXPLAINED: Final[set[str]] = set()
"""Causes of failure whose details were logged once. Locust counts the others."""


class ChatSender:
    """Sends requests to one server.

    Args:
        environment: Locust's environment; its ``host`` is the server.
        began_s: The value of ``time.perf_counter`` at which the schedule begins.
        record: Takes the record of each request that has ended.
    """

    def __init__(self, environment: Environment, began_s: float, record: Callable[[RequestRecord], None]) -> None:
        self._fire: Final = environment.events.request.fire
        self._began_s: Final = began_s
        self._record: Final = record
        self._session: Final = FastHttpSession(
            base_url=environment.host,
            request_event=environment.events.request,
            user=None,
            network_timeout=READ_TIMEOUT_S,
            connection_timeout=READ_TIMEOUT_S,
            max_retries=0,
            insecure=True,
            concurrency=MAX_CONNECTIONS,
        )

    def __call__(self, request: PlannedRequest, body: bytes, due_s: float) -> str | None:
        """Sends one request, reports it, and returns its answer, or None if there is none."""
        outcome: Outcome = "unfinished"
        cause, answer = "", None
        sent_s = time.perf_counter()
        try:
            answer = self._ask(request, body, sent_s)
            outcome = "answered"
        except ChatFailed as failure:
            outcome = "refused" if isinstance(failure, ChatRefused) else "failed"
            cause = str(failure)
        except GreenletExit:
            cause = "the run ended first"
            self._event("Unfinished", f"chat {request.kind}", time.perf_counter() - sent_s)
        lag_s = sent_s - due_s
        self._report(f"chat {request.kind}", lag_s, answer)
        self._record(
            RequestRecord(
                index=request.index,
                kind=request.kind,
                at_s=max(0.0, due_s - self._began_s),
                lag_s=lag_s,
                latency_s=answer.latency_s if answer else time.perf_counter() - sent_s,
                outcome=outcome,
                cause=cause,
                ttft_s=answer.ttft_s if answer else None,
                itl_s=answer.itl_s if answer else None,
                icl_s=answer.icl_s if answer else (),
                num_tokens=answer.num_tokens if answer else 0,
            )
        )
        return answer.text if answer else None

    def _ask(self, request: PlannedRequest, body: bytes, sent_s: float) -> ChatAnswer:
        """Sends a request and fires its POST or Refused event.

        Raises:
            ChatFailed: There is no whole answer.
        """
        with self._session.post(
            PATH, data=body, headers=HEADERS, name=f"chat {request.kind}", stream=True, catch_response=True
        ) as response:
            try:
                answer = _read(response, sent_s)
            except FAILURE_EXCEPTIONS as error:
                failure = ChatFailed(f"connection: {type(error).__name__}", str(error))
            except ChatFailed as error:
                failure = error
            else:
                response.request_meta["response_time"] = answer.latency_s * 1000
                return answer
            response.request_meta["response_time"] = (time.perf_counter() - sent_s) * 1000
            if isinstance(failure, ChatRefused):
                response.request_meta["request_type"] = "Refused"
                response.success()
            else:
                response.failure(str(failure))
                _explain(failure)
        raise failure

    def _report(self, name: str, lag_s: float, answer: ChatAnswer | None) -> None:
        """Fires the events of the latencies, after the stream has ended, so that this never delays reading a token."""
        self._event("Lag", "schedule", lag_s)
        if answer is None:
            return
        self._event("TTFT scheduled", name, answer.ttft_s + lag_s)
        for latency, time_s in answer.latencies():
            self._event(latency, name, time_s)

    def _event(self, kind: str, name: str, time_s: float) -> None:
        self._fire(
            request_type=kind, name=name, response_time=time_s * 1000, response_length=0, exception=None, context={}
        )


def _explain(failure: ChatFailed) -> None:
    """Logs the first failure of each cause with the server's own words."""
    if str(failure) not in EXPLAINED:
        EXPLAINED.add(str(failure))
        log.warning("first failure of its kind, %s: %s", failure, failure.detail)


def _read(response: Any, sent_s: float) -> ChatAnswer:
    """Reads an answer with ``readline``, which returns a line as soon as it has arrived.

    FastHttpSession's ``iter_lines`` and ``iter_content`` wait for 1,024 bytes; all tokens of a short answer would seem
    to come at once.
    """
    if not response.status_code:
        raise response.error
    if response.status_code != 200:
        retry_after = "retry-after" in response.headers
        raise refusal(response.status_code, response.content or b"", retry_after=retry_after)
    try:
        return read_answer(iter(lambda: response.stream.readline(b"\n"), b""), sent_s)
    finally:
        response.release()
