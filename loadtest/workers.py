"""Runs one schedule on one or many processes, with Locust's messages between the master and its workers.

A run goes like this:

1. Coordinator: sends each worker its share of the schedule.
2. Worker: reads the schedule, builds its first requests, and says that it is ready.
3. Coordinator: when all are ready, sends the moment at which all begin.
4. Worker: sends its requests, and every second its records. After its last request it says that it is done.
5. Coordinator: when all are done, ends the test. If the run time ends first, it stops the workers. Requests that are
   under way then have the time of ``--drain`` to end.

Without workers the only process has both parts, and Locust delivers the messages within it. The moment is wall time, so
workers on several machines need synchronized clocks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import AsyncResult, Event
from locust.runners import MasterRunner, WorkerRunner

from loadtest.bodies import BodyBuilder
from loadtest.chats import ChatSender
from loadtest.fields import BadFields
from loadtest.openloop import OpenLoop
from loadtest.priority import go_first
from loadtest.records import RecordWriter
from loadtest.schedule import plan, share

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable

    from locust.env import Environment

    from loadtest.records import RequestRecord
    from loadtest.schedule import LoadArrival

log: Final = logging.getLogger(__name__)

SHARE: Final = "load share"
READY: Final = "load ready"
BEGIN: Final = "load begin"
RECORDS: Final = "load records"
STOP: Final = "load stop"
DONE: Final = "load done"

BEGIN_AFTER_S: Final = 0.2
"""The time from the message to the moment at which all workers begin."""
REPORT_S: Final = 1.0
"""How often a worker sends its records, and the coordinator looks for lost workers."""
GRACE_S: Final = 10.0
"""How long the coordinator waits for the last messages of its workers, after the time to drain."""


class LoadWorker:
    """Sends a share of the schedule.

    Args:
        environment: Locust's environment.
        read: Returns all arrivals of the schedule that the options describe.
    """

    def __init__(self, environment: Environment, read: Callable[[Namespace], Iterable[LoadArrival]]) -> None:
        self._environment: Final = environment
        self._read: Final = read
        self._share: dict[str, int] | None = None
        self._begin: AsyncResult[float] = AsyncResult()
        self._loop: OpenLoop | None = None
        self._main: gevent.Greenlet[..., None] | None = None
        self._records: list[dict[str, Any]] = []
        go_first()
        environment.runner.register_message(SHARE, self._take_share)
        environment.runner.register_message(BEGIN, self._take_begin)
        environment.runner.register_message(STOP, self._take_stop, concurrent=True)
        environment.events.test_start.add_listener(self._start)
        for event in (environment.events.test_stopping, environment.events.quitting):  # Ctrl-C reaches workers too
            event.add_listener(lambda **_: self._stop(0.0))

    def _take_share(self, msg: Any, **_: Any) -> None:
        self._share = msg.data
        self._begin = AsyncResult()

    def _take_begin(self, msg: Any, **_: Any) -> None:
        self._begin.set(msg.data["at"])

    def _take_stop(self, msg: Any, **_: Any) -> None:
        self._stop(msg.data["timeout_s"])

    def _start(self, **_: Any) -> None:
        if self._share is None:
            log.warning("This worker came after the start of the run, so it has no share of the schedule.")
            return
        self._main = gevent.spawn(self._work, **self._share)
        self._share = None

    def _work(self, worker: int, num_workers: int) -> None:
        options = self._environment.parsed_options
        try:
            arrivals = self._read(options)
        except (BadFields, OSError, ValueError) as error:
            self._end(str(error))
            return
        loop = self._loop = OpenLoop(share(plan(arrivals), worker, num_workers), BodyBuilder(options.model))
        loop.wait_until_ready()
        self._say(READY)
        began_s = self._begin.get() - time.time() + time.perf_counter()
        reporting = gevent.spawn(self._report) if options.record else None
        try:
            loop.run(began_s, ChatSender(self._environment, began_s, self._record))
        finally:
            if reporting is not None:
                reporting.kill()
        self._end()

    def _stop(self, timeout_s: float) -> None:
        """Sends no more requests, gives those under way this time to end, and says that the worker is done."""
        if self._main is None:
            return
        self._main.kill()
        if self._loop is not None:
            self._loop.stop(timeout_s)
        self._end()

    def _end(self, failure: str = "") -> None:
        self._main = self._loop = None
        self._send_records()
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            # Locust sends statistics every three seconds and when a worker quits, which may be too late for the master.
            statistics: dict[str, Any] = {}
            self._environment.events.report_to_master.fire(client_id=runner.client_id, data=statistics)
            self._say("stats", statistics)
        self._say(DONE, {"failure": failure})

    def _record(self, record: RequestRecord) -> None:
        if self._environment.parsed_options.record:
            self._records.append(record.packed())

    def _report(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._send_records()

    def _send_records(self) -> None:
        records, self._records = self._records, []
        if records:
            self._say(RECORDS, {"records": records})

    def _say(self, kind: str, data: dict[str, Any] | None = None) -> None:
        self._environment.runner.send_message(kind, data)


class LoadCoordinator:
    """Starts and ends the runs, and collects the records.

    Args:
        environment: Locust's environment, of the master or of the only process.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment: Final = environment
        self._runner: Final = environment.runner
        self._waiting: set[str] = set()
        """The workers that are not ready yet."""
        self._working: set[str] = set()
        """The workers that are not done yet."""
        self._num_lost = 0
        self._writer: RecordWriter | None = None
        self._supervisor: gevent.Greenlet[[], None] | None = None
        self._changed: Final = Event()
        self.failure = ""
        """Why the last run could not be made; otherwise empty."""
        self._runner.register_message(READY, self._take_ready)
        self._runner.register_message(RECORDS, self._take_records)
        self._runner.register_message(DONE, self._take_done)
        environment.events.test_start.add_listener(self._start)
        environment.events.spawning_complete.add_listener(self._watch)
        environment.events.test_stopping.add_listener(lambda **_: self.finish(environment.parsed_options.drain))

    def finish(self, timeout_s: float) -> None:
        """Ends a run: stops the workers that are not done, and completes the file of records.

        Args:
            timeout_s: The time that requests under way have to end.
        """
        for worker in tuple(self._working):
            self._say(STOP, worker, {"timeout_s": timeout_s})
        deadline_s = time.monotonic() + timeout_s + GRACE_S
        while self._working and time.monotonic() < deadline_s:
            self._wait()
        self._num_lost += len(self._working)
        self._working = set()
        if self._writer is not None:
            self._writer.end(self._num_lost)
            self._writer = None
        if self._num_lost:
            self.failure = f"{self._num_lost} of the workers vanished"

    def _start(self, **_: Any) -> None:
        workers = self._connected()
        self._waiting, self._working, self._num_lost = {*workers}, {*workers}, 0
        options, host = self._environment.parsed_options, self._environment.host
        self.failure = "" if host else "--host is missing"
        try:
            if options.record and host:
                file = open(options.record, "w")  # noqa: SIM115 -- the writer closes it
                self._writer = RecordWriter(file, f"{_source(options)}, to {host}")
        except OSError as error:
            self.failure = f"--record: {error}"
        if self.failure:
            self._working = set()
        for place, worker in enumerate(sorted(self._working)):
            self._say(SHARE, worker, {"worker": place, "num_workers": len(workers)})

    def _watch(self, **_: Any) -> None:
        """Begins to supervise a run. Before Locust has started its users, it would not stop."""
        if not self._supervisor:
            self._supervisor = gevent.spawn(self._supervise)

    def _supervise(self) -> None:
        """Waits until all workers are done, then ends the test."""
        while self._working:
            self._wait()
        if self._environment.parsed_options.headless:
            self._runner.quit()
            return
        if self.failure:
            log.error("The load has failed: %s", self.failure)
        self._runner.stop()

    def _wait(self) -> None:
        """Waits until something has changed, and notices workers that have vanished."""
        self._changed.clear()
        self._changed.wait(REPORT_S)
        lost = self._working - {*self._connected()}
        self._working -= lost
        self._num_lost += len(lost)
        if lost & self._waiting:
            self._working.clear()  # the others would wait for it for ever

    def _connected(self) -> list[str]:
        if isinstance(self._runner, MasterRunner):
            clients = self._runner.clients
            return [client.id for client in (*clients.ready, *clients.spawning, *clients.running)]
        return ["local"]

    def _take_ready(self, msg: Any, **_: Any) -> None:
        self._waiting.discard(msg.node_id)
        if not self._waiting:
            at = time.time() + BEGIN_AFTER_S
            for worker in tuple(self._working):
                self._say(BEGIN, worker, {"at": at})

    def _take_records(self, msg: Any, **_: Any) -> None:
        if self._writer is not None:
            for record in msg.data["records"]:
                self._writer.add(record)

    def _take_done(self, msg: Any, **_: Any) -> None:
        self._working.discard(msg.node_id)
        if failure := msg.data["failure"]:
            self.failure = failure
            self._working.clear()
        self._changed.set()

    def _say(self, kind: str, worker: str, data: dict[str, Any]) -> None:
        self._runner.send_message(kind, data, client_id=worker)


def _source(options: Namespace) -> str:
    if options.schedule:
        return str(options.schedule)
    return f"{options.rate:g} requests/s of {options.mix} with seed {options.seed}"
