"""The open loop."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from loadtest import openloop
from loadtest.bodies import BodyBuilder
from loadtest.openloop import LookAhead, OpenLoop
from loadtest.schedule import LoadArrival, PlannedRequest, plan

if TYPE_CHECKING:
    import pytest


@dataclass
class Server:
    """Answers the n-th request when the n-th event is set."""

    gates: dict[int, Event]
    sent_s: dict[int, float] = field(default_factory=dict)
    due_s: dict[int, float] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)

    def __call__(self, request: PlannedRequest, body: bytes, due_s: float) -> str | None:
        index = request.index
        self.sent_s[index], self.due_s[index], self.bodies[index] = time.perf_counter(), due_s, body
        self.gates[index].wait()
        self.ended.append(index)
        return f"answer {index}"


def loop_of(arrivals: list[LoadArrival]) -> tuple[OpenLoop, Server]:
    """A loop that is ready, and a server without answers."""
    loop = OpenLoop(plan(arrivals), BodyBuilder("m"))
    loop.wait_until_ready()
    return loop, Server({index: Event() for index in range(len(arrivals))})


def wait_until(condition: object) -> None:
    """Lets greenlets run until a condition holds."""
    with gevent.Timeout(10):
        while not condition():  # type: ignore[operator]
            gevent.sleep(0.001)


def test_a_slow_server_delays_no_arrival() -> None:
    """Requests start at their times although no earlier one has been answered, and none starts early."""
    loop, server = loop_of([LoadArrival(number * 0.01, "c", 5, 1) for number in range(20)])
    began_s = time.perf_counter()
    running = gevent.spawn(loop.run, began_s, server)
    wait_until(lambda: len(server.sent_s) == 20)
    assert not server.ended
    early_s = [server.sent_s[index] - began_s - index * 0.01 for index in range(20)]
    assert all(lag_s >= 0 for lag_s in early_s)
    for gate in server.gates.values():
        gate.set()
    running.get(timeout=10)
    assert sorted(server.ended) == [*range(20)]


def test_a_later_turn_waits_for_the_earlier_one() -> None:
    """It is sent after the earlier turn has ended, with that turn's answer, and its scheduled time has moved."""
    loop, server = loop_of([LoadArrival(0.0, "c", 5, 1, conversation="x", turn=turn) for turn in range(3)])
    running = gevent.spawn(loop.run, time.perf_counter(), server)
    for index in range(3):
        wait_until(lambda index=index: len(server.sent_s) == index + 1)
        before_s = time.perf_counter()
        server.gates[index].set()
        wait_until(lambda index=index: server.ended[-1:] == [index])
        if index < 2:
            wait_until(lambda index=index: index + 1 in server.due_s)
            assert server.due_s[index + 1] >= before_s
    running.get(timeout=10)
    messages = [json.loads(server.bodies[index])["messages"] for index in range(3)]
    assert [len(each) for each in messages] == [1, 3, 5]
    assert messages[2][:3] == messages[1]
    assert [one["content"] for one in messages[2] if one["role"] == "assistant"] == ["answer 0", "answer 1"]


def test_a_failed_turn_is_left_out_of_later_ones() -> None:
    """The turn after a failed one is sent without it."""
    loop, server = loop_of([LoadArrival(0.0, "c", 5, 1, conversation="x", turn=turn) for turn in range(2)])

    def fail_first(request: PlannedRequest, body: bytes, due_s: float) -> str | None:
        server.gates[request.index].set()
        answer = server(request, body, due_s)
        return answer if request.index else None

    loop.run(time.perf_counter(), fail_first)
    assert len(json.loads(server.bodies[1])["messages"]) == 1


def test_a_stop_ends_what_is_under_way() -> None:
    """Requests that do not end in time are killed, and later arrivals are not sent."""
    loop, server = loop_of([LoadArrival(0.0, "c", 5, 1), LoadArrival(0.0, "c", 5, 1), LoadArrival(3600.0, "c", 5, 1)])
    running = gevent.spawn(loop.run, time.perf_counter(), server)
    wait_until(lambda: len(server.sent_s) == 2)
    server.gates[0].set()
    running.kill()
    loop.stop(timeout_s=0.05)
    assert server.ended == [0]
    assert len(server.sent_s) == 2


def test_building_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless schedule of large messages is built only until the limit of bytes is reached."""
    monkeypatch.setattr(openloop, "MAX_AHEAD_BYTES", 50_000)
    built = []

    class Large(BodyBuilder):
        def message(self, request: PlannedRequest) -> bytes:
            built.append(request.index)
            return bytes(10_000)

    endless = plan(LoadArrival(0.0, "c", 1, 1) for _ in itertools.count())
    ahead = LookAhead(endless, Large("m"))
    with gevent.Timeout(0.2, False):
        wait_until(lambda: len(built) > 7)
    assert ahead.is_ready.is_set()
    assert len(built) <= 7
    assert [request.index for request, _ in itertools.islice(ahead, 100)] == [*range(100)]
    ahead.stop()
