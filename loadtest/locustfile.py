"""Locust's users: each streams chats, one after another, and reports the times of every answer.

With a web page on port 8089, or headless with a table at the end:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 4 -r 4 -t 1m

A whole answer fires one POST event, one TTFT event, one ITL event per gap and one TPOT event; ``client`` defines them.
A failed answer fires only one failed POST event, so all latencies are those of whole answers.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

import locust.stats
from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS

from loadtest.client import ChatAnswer, ChatFailed, read_answer, refusal
from loadtest.report import LATENCIES, PERCENTILES, Row, table
from loadtest.workload import PATH, WEIGHTS, Kind, add_options, from_options

if TYPE_CHECKING:
    from locust.env import Environment

log: Final = logging.getLogger(__name__)

HEADERS: Final = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
EXPLAINED: Final[set[str]] = set()  # causes of failure whose details were logged once; Locust counts the others


class Chatter(FastHttpUser):  # type: ignore[misc]  # locust is read as untyped
    """A user that sends a chat, reads the answer to its end, pauses, and starts again."""

    abstract = True
    kind: ClassVar[Kind]
    network_timeout = 120.0  # for one read; long, because a queue before the first token is no error
    concurrency = 1

    def on_start(self) -> None:
        """Reads the options, once per user, because the web page can change them between runs."""
        self.workload = from_options(self.environment.parsed_options)

    def wait_time(self) -> float:
        """Seconds until the next chat."""
        return self.workload.pause_s()

    @task  # type: ignore[untyped-decorator]
    def chat(self) -> None:
        """Sends one chat and reports the times of its answer."""
        name = f"chat {self.kind}"
        body = self.workload.body(self.kind)
        answer = None
        started_s = time.perf_counter()
        with self.client.post(
            PATH, data=body, headers=HEADERS, name=name, stream=True, catch_response=True
        ) as response:
            try:
                answer = _read(response, started_s)
            except ChatFailed as failure:
                self._fail(response, str(failure), failure.detail)
            except FAILURE_EXCEPTIONS as error:
                self._fail(response, f"connection: {type(error).__name__}", str(error))
            total_s = answer.total_s if answer else time.perf_counter() - started_s
            response.request_meta["response_time"] = total_s * 1000
        if answer:
            self._report(name, answer)

    def _fail(self, response: Any, cause: str, detail: str) -> None:
        response.failure(cause)
        if cause not in EXPLAINED:
            EXPLAINED.add(cause)
            log.warning("first failure of its kind, %s: %s", cause, detail)

    def _report(self, name: str, answer: ChatAnswer) -> None:
        """Fires the events of the latencies, after the stream has ended, so that this never delays reading a token."""
        for latency, time_s in answer.latencies():
            self.environment.events.request.fire(
                request_type=latency,
                name=name,
                response_time=time_s * 1000,
                response_length=0,
                exception=None,
                context={},
            )


class NewPictureChatter(Chatter):
    """A user that asks about a new picture in each chat."""

    kind = "new picture"
    weight = WEIGHTS["new picture"]


class SeenPictureChatter(Chatter):
    """A user that asks about one of the pictures that all users of this kind share, so that caches can help."""

    kind = "seen picture"
    weight = WEIGHTS["seen picture"]


class TextChatter(Chatter):
    """A user that asks without a picture."""

    kind = "text"
    weight = WEIGHTS["text"]


def _read(response: Any, started_s: float) -> ChatAnswer:
    """Reads an answer with ``readline``, which returns a line as soon as it has arrived.

    FastHttpUser's ``iter_lines`` and ``iter_content`` wait for 1,024 bytes; all tokens of a short answer would seem to
    come at once.
    """
    if not response.status_code:
        raise response.error
    if response.status_code != 200:
        raise refusal(response.status_code, response.content or b"")
    try:
        return read_answer(iter(lambda: response.stream.readline(b"\n"), b""), started_s)
    finally:
        response.release()


def three_digits(time_ms: float) -> float:
    """Rounds a time to three digits for Locust's histograms. Locust rounds to whole milliseconds by default, which is
    too coarse for gaps between tokens."""
    return float(f"{time_ms:.3g}")


def keep_total_to_requests(environment: Environment, **_: Any) -> None:
    """Keeps latencies out of the "Aggregated" row and of the web page's charts, so that requests per second there count
    requests only."""
    stats = environment.stats
    log_request = stats.log_request

    def log_by_type(method: str, name: str, response_time: float, content_length: int) -> None:
        if method in LATENCIES:
            stats.entries[name, method].log(response_time, content_length)
        else:
            log_request(method, name, response_time, content_length)

    stats.log_request = log_by_type


def print_latencies_at_the_end(environment: Environment, **_: Any) -> None:
    """Makes Locust print a table of the latencies, with decimals, when it ends."""

    def show(**_: Any) -> None:
        entries = sorted(environment.stats.entries.items())
        rows = [
            Row(latency, name, entry.num_requests, *map(entry.get_response_time_percentile, PERCENTILES))
            for latency in LATENCIES
            for (name, method), entry in entries
            if method == latency and entry.num_requests
        ]
        locust.stats.console_logger.info("Latencies of whole answers\n%s\n", table(rows))

    environment.events.quit.add_listener(show)


locust.stats.bucket_response_time = three_digits
events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(keep_total_to_requests)
events.init.add_listener(print_latencies_at_the_end)
