"""Simulated Routers, preprocessors and encoders, against queueing theory and times computed by hand."""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest

from cluster.scaling.simulation.events import EventClock
from cluster.scaling.simulation.servers import EncoderReplica, OneThread, PreprocessorReplica, RouterReplica
from cluster.scaling.simulation.speeds import EncoderSpeeds, PreprocessorSpeeds, RouterSpeeds


def nothing(*_: float) -> None:
    """Does nothing."""


def mean_wait_s(load: float, *, num: int = 40_000, seed: int = 1) -> float:
    """Returns the mean wait of Poisson arrivals at a replica that works one second on each."""
    clock, draw, waits_s = EventClock(), random.Random(seed), list[float]()
    replica = OneThread("one", clock)
    for at_s in itertools.accumulate(draw.expovariate(load) for _ in range(num)):
        clock.at(at_s, lambda: replica.work(1, 1.0, waits_s.append, nothing))
    clock.run()
    assert len(waits_s) == num
    return sum(waits_s) / num


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_waits_are_those_of_an_m_d_1_queue(load: float) -> None:
    """The mean wait is within 6 % of the closed form for Poisson arrivals and equal service times."""
    assert mean_wait_s(load) == pytest.approx(load / (2 * (1 - load)), rel=0.06)


def test_a_thread_works_whenever_there_is_work() -> None:
    """Pieces of 2, 1 and 3 s that arrive within the first second end at 2, 3 and 6 s, and the busy time is 6 s."""
    clock, ends_s = EventClock(), list[tuple[float, float]]()
    replica = OneThread("one", clock)

    def arrive(duration_s: float) -> None:
        replica.work(10, duration_s, nothing, lambda: ends_s.append((duration_s, clock.now_s)))

    for at_s, duration_s in ((0.0, 2.0), (0.5, 1.0), (1.0, 3.0)):
        clock.at(at_s, partial(arrive, duration_s))
    clock.run(until_s=1.0)
    assert replica.waiting == 20
    clock.run()
    assert ends_s == [(2.0, 2.0), (1.0, 3.0), (3.0, 6.0)]
    assert (replica.done, replica.busy_s, replica.waiting) == (30, 6.0, 0)


def test_counters_of_a_router_are_requests_and_cpu_seconds() -> None:
    """A Router counts arrivals at once, and its CPU time for requests, pictures and answers when it is spent."""
    clock = EventClock()
    speeds = RouterSpeeds(request_s=0.5, token_s=0.01, picture_s=0.1, pixel_s=0.001, max_in_flight=4)
    router = RouterReplica("router", clock, speeds, 1.0)
    router.num_ongoing = 3
    router.read([100, 150], nothing, nothing)
    offered, served = router.counters()
    assert (offered.work, served.work, served.busy_s, served.fullness) == (1, 0, 0, 0.75)
    router.stream(100)
    clock.run()
    assert router.counters()[1].work == 1
    assert router.counters()[1].busy_s == pytest.approx(1.95)


def test_counters_of_a_preprocessor_are_pixels_of_the_picture_as_sent() -> None:
    """A picture of 100 pixels takes the time of a picture and of its pixels, and counts as 100."""
    clock = EventClock()
    replica = PreprocessorReplica("one", clock, PreprocessorSpeeds(picture_s=1.0, pixel_s=0.01))
    replica.prepare(100, nothing, nothing)
    clock.run()
    assert (replica.offered, replica.done, replica.busy_s) == (100, 100, 2.0)


def encoder(clock: EventClock) -> EncoderReplica:
    """Returns an encoder with runs of 1 s and 0.01 s per patch, of at most 100 patches."""
    return EncoderReplica("one", clock, EncoderSpeeds(run_s=1.0, patch_s=0.01, batch_patches=100))


def test_pictures_that_wait_share_a_run_up_to_the_budget() -> None:
    """Three pictures of 40 patches arrive during a run. Two of them share the next run, and the third has its own."""
    clock, ends_s = EventClock(), list[float]()
    tower = encoder(clock)
    for at_s in (0.0, 0.5, 0.6, 0.7):
        tower.expect(40)
        clock.at(at_s, lambda: tower.encode(40, nothing, lambda: ends_s.append(round(clock.now_s, 6))))
    clock.run(until_s=1.0)
    assert (tower.offered, tower.waiting, tower.num_open_patches, tower.done) == (160, 160, 160, 0)
    clock.run()
    assert ends_s == [1.401, 3.201, 3.201, 4.601]  # the first one waits a millisecond for the others
    assert (tower.done, tower.waiting, tower.num_open_patches) == (160, 0, 0)
    assert tower.busy_s == pytest.approx(4.6)


def test_a_tower_tells_pictures_how_long_they_waited() -> None:
    """A picture that arrives half a second after a run of 1.4 s began waits 0.9 s."""
    clock, waits_s = EventClock(), list[float]()
    tower = encoder(clock)
    tower.expect(40)
    tower.encode(40, waits_s.append, nothing)
    tower.expect(40)
    clock.at(0.5, lambda: tower.encode(40, waits_s.append, nothing))
    clock.run()
    assert waits_s == [0.0, pytest.approx(0.9)]
