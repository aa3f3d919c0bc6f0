"""A second client for the load that ``locustfile`` makes, written independently to check Locust's figures.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 4 -r 4 -t 1m --csv run
    python -m loadtest.probe --host http://127.0.0.1:8000 -u 4 --seconds 60 --compare run_stats.csv

It sends the same requests as Locust and uses the definitions in ``client``'s docstring. Its transport (aiohttp on
asyncio, not geventhttpclient on gevent) and its parser are its own. Run the two one after the other against the same
server, on a machine with nothing else to do; otherwise a change of load between the runs shows as disagreement. The
probe does not use httpx, which spends about a millisecond more on each request than the other two: a tenth of the time
to a first token here.

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

from loadtest.report import LATENCIES, Row, compare, locust_medians_ms, table
from loadtest.workload import PATH, Kind, Workload, add_options, from_options, mix, positive

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
        self.times_s["ITL", name] += [texts_s[index] - texts_s[index - 1] for index in range(1, len(texts_s))]
        if num_tokens > 1:
            self.times_s["TPOT", name].append((texts_s[-1] - texts_s[0]) / (num_tokens - 1))

    def rows(self) -> list[Row]:
        """The rows of the table, sorted by latency and then by name."""
        keys = sorted(
            (key for key, times_s in self.times_s.items() if times_s), key=lambda key: (LATENCIES.index(key[0]), key[1])
        )
        return [Row.from_times(*key, self.times_s[key]) for key in keys]


async def load(host: str, workload: Workload, num_users: int, seconds: float) -> Tally:
    """Lets users chat in a closed loop for some seconds; requests that are still running then are dropped, as in
    Locust."""
    tally = Tally()
    connector = aiohttp.TCPConnector(limit=num_users)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=HEADERS) as client:
        users = [asyncio.create_task(_chat_on(client, host + PATH, workload, kind, tally)) for kind in mix(num_users)]
        ended, _ = await asyncio.wait(users, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        for user in ended:
            user.result()
    return tally


async def _chat_on(client: aiohttp.ClientSession, url: str, workload: Workload, kind: Kind, tally: Tally) -> None:
    while True:
        body = workload.body(kind)
        try:
            await _chat(client, url, body, f"chat {kind}", tally)
        except Failed as failure:
            tally.failures[str(failure)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.failures[f"connection: {type(error).__name__}"] += 1
        await asyncio.sleep(workload.pause_s())


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
    parser.add_argument("-u", "--users", type=positive, default=4, help="how many users chat at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they chat")
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
    tally = asyncio.run(load(options.host, from_options(options), options.users, options.seconds))
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
    sys.exit(main())
