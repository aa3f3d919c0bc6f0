"""A second client for the load that ``locustfile`` makes, written independently to check Locust's figures.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -t 1m --csv run
    python -m loadtest.probe --host http://127.0.0.1:8000 --seconds 60 --seed 1 --compare run_stats.csv

It sends the same kinds of requests at the same rate as Locust without a schedule file, and uses the definitions in
``client``'s docstring. Another seed draws other pictures, which the server has not seen in Locust's run. Its transport
(aiohttp on asyncio, not geventhttpclient on gevent) and its parser are its own. Run the two one after the other against
the same server, on a machine with nothing else to do; otherwise a change of load between the runs shows as
disagreement. The probe does not use httpx, which spends about a millisecond more on each request than the other two: a
tenth of the time to a first token here.

Exit codes: 0 all is well; 1 an answer failed, no answer came, or the clients differ; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from loadtest.bodies import BodyBuilder
from loadtest.priority import go_first
from loadtest.report import LATENCIES, Row, compare, locust_medians_ms, table
from loadtest.schedule import plan
from loadtest.workload import PATH, Workload, add_options, from_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

READ_TIMEOUT_S: Final = 120.0
HEADERS: Final = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}


class Failed(Exception):
    """An answer failed.

    Args:
        cause: What failed; the same for the same cause, because failures are counted by it.
        detail: The server's own words, if there are any.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause)
        self.detail: Final = detail


@dataclass
class Tally:
    """The answers so far: times in seconds by latency and name of the chat, and failures by cause."""

    times_s: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    num_answers: int = 0

    def add(self, name: str, started_s: float, texts_s: list[float], num_tokens: int) -> None:
        """Counts a whole answer.

        Args:
            name: The name of the chat.
            started_s: When the request was sent.
            texts_s: When each event with text came, at least one.
            num_tokens: The length of the answer by its usage; 0 if unknown.
        """
        self.num_answers += 1
        self.times_s["TTFT", name].append(texts_s[0] - started_s)
        self.times_s["ICL", name] += [texts_s[index] - texts_s[index - 1] for index in range(1, len(texts_s))]
        if num_tokens > 1:
            self.times_s["ITL", name].append((texts_s[-1] - texts_s[0]) / (num_tokens - 1))

    def rows(self) -> list[Row]:
        """The rows of the table, sorted by latency and then by name."""
        keys = sorted(
            (key for key, times_s in self.times_s.items() if times_s), key=lambda key: (LATENCIES.index(key[0]), key[1])
        )
        return [Row.from_times(*key, self.times_s[key]) for key in keys]


async def load(host: str, workload: Workload, model: str, seconds: float) -> Tally:
    """Sends the requests of some seconds, each at its time, and waits for all answers.

    Args:
        host: The address of the server.
        workload: The arrivals.
        model: The served name of the model.
        seconds: How long requests arrive.
    """
    tally, builder = Tally(), BodyBuilder(model)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, headers=HEADERS) as client,
        asyncio.TaskGroup() as requests,
    ):
        began_s = time.perf_counter()
        for request in plan(workload.arrivals()):
            if request.arrival.at_s > seconds:
                break
            body = builder.body([builder.message(request)], request.arrival.output_tokens)
            await asyncio.sleep(began_s + request.arrival.at_s - time.perf_counter())
            requests.create_task(_count(client, host + PATH, body, f"chat {request.kind}", tally))
    return tally


async def _count(client: aiohttp.ClientSession, url: str, body: bytes, name: str, tally: Tally) -> None:
    try:
        await _chat(client, url, body, name, tally)
    except Failed as failure:
        tally.failures[str(failure)] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        tally.failures[f"connection: {type(error).__name__}"] += 1


async def _chat(client: aiohttp.ClientSession, url: str, body: bytes, name: str, tally: Tally) -> None:
    texts_s: list[float] = []
    num_tokens = 0
    last = ""
    started_s = time.perf_counter()
    async with client.post(url, data=body) as response:
        if response.status != 200:
            raise Failed(f"{response.status} {_code(await response.read())}")
        async for at_s, last in events(response):
            if last == "[DONE]":
                continue
            text, usage_tokens = read_event(last)
            num_tokens = usage_tokens or num_tokens
            if text:
                texts_s.append(at_s)
    if last != "[DONE]":
        raise Failed("no [DONE]")
    if not texts_s:
        raise Failed("empty answer")
    tally.add(name, started_s, texts_s, num_tokens)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, str]]:
    """Yields the data of each event, with the ``time.perf_counter`` of the read that completed it."""
    unread = b""
    async for piece in response.content.iter_any():
        at_s = time.perf_counter()
        *whole, unread = (unread + piece).split(b"\n\n")
        for event in whole:
            yield at_s, event.decode().removeprefix("data: ")


def read_event(data: str) -> tuple[str, int]:
    """The text of one event and the number of tokens that its usage counts, 0 if the event has no usage.

    Raises:
        Failed: The event reports an error, or is not an event of a chat.
    """
    try:
        event = json.loads(data)
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise Failed(f"error event: {code}", str(error))
        text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        return text, (event.get("usage") or {}).get("completion_tokens", 0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Failed("malformed event") from error


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "without a typed error"


def _options(words: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.probe", description="Makes the load of the Locust file with another client."
    )
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="where Prism listens")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long requests arrive")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="STATS_CSV",
        help="the ..._stats.csv of a Locust run to compare the medians with",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.1, help="how far a median may be from Locust's, as a fraction of Locust's"
    )
    add_options(parser)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _options(words)
    tally = asyncio.run(load(options.host, from_options(options), options.model, options.seconds))
    rows = tally.rows()
    num_failures = tally.failures.total()
    lines = [f"{tally.num_answers} whole answers, {num_failures} failures", table(rows)]
    lines += [f"{count} x {cause}" for cause, count in tally.failures.most_common()]
    agree = True
    if options.compare:
        verdict = compare(rows, locust_medians_ms(options.compare), options.tolerance)
        agree = verdict.agree
        lines += ["", verdict.text]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if agree and tally.num_answers and not num_failures else 1


if __name__ == "__main__":
    go_first()  # as Locust's workers do
    sys.exit(main())
