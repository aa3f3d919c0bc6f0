"""The clock of a simulation."""

from __future__ import annotations

from functools import partial

from cluster.scaling.simulation.events import EventClock


def test_actions_run_in_the_order_of_their_times() -> None:
    """Earlier actions run first, and actions of one time in the order in which they were added."""
    clock, seen = EventClock(), list[tuple[str, float]]()

    def see(name: str) -> None:
        seen.append((name, clock.now_s))

    for name, at_s in (("late", 2.0), ("first", 1.0), ("second", 1.0)):
        clock.at(at_s, partial(see, name))
    clock.run()
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]


def test_an_action_in_the_past_runs_now() -> None:
    """The time never goes back, even if an action is added for a time that has passed."""
    clock, seen = EventClock(), list[float]()
    clock.at(5.0, lambda: clock.at(1.0, lambda: seen.append(clock.now_s)))
    clock.run()
    assert seen == [5.0]


def test_it_stops_at_a_time_and_goes_on_later() -> None:
    """A run ends before the first action that is later than its end. The next run goes on with it."""
    clock, seen = EventClock(), list[float]()
    for at_s in (1.0, 2.0, 3.0):
        clock.at(at_s, lambda: seen.append(clock.now_s))
    clock.run(until_s=2.0)
    assert seen == [1.0, 2.0]
    clock.run(is_done=lambda: True)
    assert seen == [1.0, 2.0]
    clock.run()
    assert seen == [1.0, 2.0, 3.0]
