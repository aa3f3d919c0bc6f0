"""Locust's open loop: it sends each request at its scheduled time, and reports the times of every answer.

With a web page on port 8089, or headless with a table at the end:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --rate 8 -t 1m
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --schedule spike.jsonl --record run.jsonl

``--processes 2`` makes the same load with two workers, which share the schedule. ``chats`` lists the events in the
statistics. A run with a 99th percentile of the lag above ``MAX_LAG_MS`` is void, and Locust exits with ``VOID``.
Locust's own numbers of users (``-u``, ``-r``) mean nothing here.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import locust.stats
from locust import User, constant, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtest.fields import BadFields
from loadtest.report import LATENCIES, MAX_LAG_MS, NOT_REQUESTS, PERCENTILES, Row, table
from loadtest.schedule import read_load
from loadtest.workers import LoadCoordinator, LoadWorker
from loadtest.workload import add_options, from_options, positive

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from locust.env import Environment

    from loadtest.schedule import LoadArrival

log: Final = logging.getLogger(__name__)

VOID: Final = 2
"""The exit code of a run that says nothing about the server."""


class OpenLoopUser(User):  # type: ignore[misc]  # locust is read as untyped
    """Does nothing, because Locust starts no test without a user. ``workers`` makes the load."""

    wait_time = constant(1)

    @task  # type: ignore[untyped-decorator]
    def nothing(self) -> None:
        """Does nothing."""


def add_load_options(parser: ArgumentParser) -> None:
    """Adds the options of the load to Locust's."""
    add_options(parser)
    parser.add_argument("--schedule", help="send this schedule; the options of the load have no effect then")
    parser.add_argument("--record", help="write a record of each request into this file, for loadtest.verdict")
    parser.add_argument(
        "--drain", type=positive, default=30, help="seconds that requests under way at the end have to end"
    )


def read_arrivals(options: Namespace) -> Iterable[LoadArrival]:
    """The arrivals that the options describe.

    Raises:
        BadFields, OSError: The schedule file is wrong.
    """
    return read_load(Path(options.schedule))[1] if options.schedule else from_options(options).arrivals()


def take_part(environment: Environment, **_: Any) -> None:
    """Gives this process its part in the load, and ends it if its schedule is wrong."""
    try:
        read_arrivals(environment.parsed_options)
    except (BadFields, OSError) as error:
        log.error("%s", error)
        sys.exit(VOID)
    if not isinstance(environment.runner, WorkerRunner):
        coordinator = LoadCoordinator(environment)
        # Listeners of ``quitting`` run in reverse order, so this one is called before Locust's own.
        environment.events.quitting.add_listener(lambda **_: judge(environment, coordinator))
    if not isinstance(environment.runner, MasterRunner):
        LoadWorker(environment, read_arrivals)


def judge(environment: Environment, coordinator: LoadCoordinator) -> None:
    """Ends a run that is still going on, and makes Locust exit with ``VOID`` if the last run was void."""
    coordinator.finish(0.0)
    lag = environment.stats.entries.get(("schedule", "Lag"))
    reason = coordinator.failure
    late_ms = lag.get_response_time_percentile(0.99) if lag else 0.0
    if not reason and late_ms > MAX_LAG_MS:
        reason = f"the p99 of the lag is {late_ms:g} ms, and it must be at most {MAX_LAG_MS:g} ms; use more workers"
    if not reason and lag is None and environment.parsed_options.headless:
        reason = "no request was sent"
    if reason:
        log.error("This run is void: %s", reason)
        environment.process_exit_code = VOID


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
        if method in NOT_REQUESTS:
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
        locust.stats.console_logger.info("Latencies of whole answers, and the lag of all requests\n%s\n", table(rows))

    if not isinstance(environment.runner, WorkerRunner):
        environment.events.quit.add_listener(show)


locust.stats.bucket_response_time = three_digits
locust.stats.STATS_TYPE_WIDTH = max(map(len, NOT_REQUESTS)) + 1
events.init_command_line_parser.add_listener(add_load_options)
events.init.add_listener(keep_total_to_requests)
events.init.add_listener(print_latencies_at_the_end)
events.init.add_listener(take_part)
