"""The joint policy on simulated pools, and on counters that are missing, old or impossible."""

from __future__ import annotations

import itertools
import math
import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.policy import MIN_WINDOW_S, Decision, JointPolicy, PoolReading, PoolTraits
from cluster.scaling.rates import Offered, Served
from tests.helpers.pools import ROUTER, FluidPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NUM_SEEDS = int(os.environ.get("POLICY_SEEDS", "16"))
"""Random runs on hostile counters. ``POLICY_SEEDS=200`` makes a long proof of the short one."""
TICK_S = 2.0
STEP_S = 0.25
ENCODER, DECODER = "encoder", "decoder"
TRAITS = {
    ENCODER: PoolTraits(lead_s=20, wait_budget_s=1),
    DECODER: PoolTraits(lead_s=60, wait_budget_s=2, is_costly_to_stop=True),
}


def run(
    pools: Mapping[str, FluidPool], load: Callable[[str, float], float], duration_s: float
) -> list[tuple[float, dict[str, Decision]]]:
    """Runs the policy on pools whose work per second is ``load(pool, time)``, and returns all decisions with their
    times."""
    policy, decisions, now_s, next_s = JointPolicy({name: TRAITS[name] for name in pools}), [], 0.0, 0.0
    while now_s < duration_s:
        for name, pool in pools.items():
            pool.step(now_s, STEP_S, load(name, now_s))
        if now_s >= next_s:
            decided = policy.decide({name: pool.reading(now_s) for name, pool in pools.items()}, now_s)
            for name, decision in decided.items():
                pools[name].apply(decision, now_s)
            decisions.append((now_s, decided))
            next_s += TICK_S
        now_s += STEP_S
    return decisions


def targets(decisions: list[tuple[float, dict[str, Decision]]], pool: str) -> list[tuple[float, int]]:
    """Returns the targets of a pool with the times at which they changed."""
    found: list[tuple[float, int]] = []
    for at_s, decided in decisions:
        if not found or decided[pool].target != found[-1][1]:
            found.append((at_s, decided[pool].target))
    return found


def test_a_steady_load_gets_what_it_needs_and_then_rest() -> None:
    """A load of 3.5 busy replicas gets five, for the load and its reserve, and the target never changes again."""
    pools = {ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=3)}
    decisions = run(pools, lambda *_: 350, 1500)
    assert targets(decisions, ENCODER)[-1][1] == 5
    assert targets(decisions, ENCODER)[-1][0] < 60
    assert pools[ENCODER].waiting < 100


def test_a_picture_spike_raises_encoders_at_once_and_nothing_else() -> None:
    """When pictures come six times as often, the encoders' target is enough within five seconds. Decoders, whose work
    stays the same, keep theirs."""
    pools = {
        ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=1),
        DECODER: FluidPool(velocity=1000, lead_s=60, num_replicas=2),
    }
    decisions = run(pools, lambda pool, at_s: (60 if at_s < 400 else 360) if pool == ENCODER else 900, 700)
    raised = [(at_s, target) for at_s, target in targets(decisions, ENCODER) if at_s >= 400]
    assert raised[0][0] <= 405
    assert raised[0][1] >= 4
    assert {target for _, target in targets(decisions, DECODER)} == {2}


def test_a_longer_text_raises_decoders_and_nothing_else() -> None:
    """When prompts become four times as long, decoders grow and encoders do not."""
    pools = {
        ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=1),
        DECODER: FluidPool(velocity=1000, lead_s=60, num_replicas=1),
    }
    decisions = run(pools, lambda pool, at_s: 50 if pool == ENCODER else (500 if at_s < 400 else 2000), 700)
    assert targets(decisions, DECODER)[-1][1] in {3, 4}
    assert {target for _, target in targets(decisions, ENCODER)} == {1}


def test_all_come_down_after_a_spike() -> None:
    """After a spike each pool returns to what it had before: encoders in large steps, decoders one by one, and no
    sooner than a window after it grew."""
    pools = {
        ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=1),
        DECODER: FluidPool(velocity=1000, lead_s=60, num_replicas=1),
    }

    def load(pool: str, at_s: float) -> float:
        factor = 6 if 300 <= at_s < 480 else 1
        return (40 if pool == ENCODER else 400) * factor

    decisions = run(pools, load, 2500)
    for pool in (ENCODER, DECODER):
        changes = targets(decisions, pool)
        assert max(target for _, target in changes) >= 4
        assert changes[-1][1] == 1
        steps = [(at_s, after - before) for (_, before), (at_s, after) in itertools.pairwise(changes)]
        last_up_s = max(at_s for at_s, step in steps if step > 0)
        downs = {at_s: step for at_s, step in steps if step < 0}
        assert min(downs) >= last_up_s + MIN_WINDOW_S
        assert pool == ENCODER or set(downs.values()) == {-1}
    assert [decided[DECODER].reason for _, decided in decisions][-1] in {"demand", "enough"}


def warm(pools: Mapping[str, FluidPool], share: float) -> tuple[JointPolicy, float]:
    """Runs pools for a while with a share of what one replica can do. Returns their policy, and the time."""
    policy, now_s = JointPolicy(TRAITS), 0.0
    while now_s < 30:
        now_s += TICK_S
        for pool in pools.values():
            pool.step(now_s, TICK_S, share * pool.velocity)
        policy.decide({name: pool.reading(now_s) for name, pool in pools.items()}, now_s)
    return policy, now_s


def test_work_that_waits_is_counted_where_it_waits_longest() -> None:
    """Two pools have much work that waits and little demand. Only the one whose work waits longer grows for it."""
    pools = {name: FluidPool(velocity=100, lead_s=20) for name in TRAITS}
    policy, now_s = warm(pools, 0.2)
    pools[ENCODER].waiting, pools[DECODER].waiting = 9_000, 12_000
    for pool in pools.values():
        pool.step(now_s + TICK_S, TICK_S, 0)
    decided = policy.decide({name: pool.reading(now_s + TICK_S) for name, pool in pools.items()}, now_s + TICK_S)
    assert (decided[DECODER].reason, decided[DECODER].target) == ("backlog", 2)  # 0.2 + (118 s - 0.8 × 60 s) / 60 s
    assert decided[ENCODER].target == 1


def test_work_that_is_done_before_a_start_asks_for_no_replica() -> None:
    """Four replicas without demand finish 80 s of waiting work in the 20 s of a start. So 70 s ask for no replica.
    200 s leave 120 s, which are to be done in 20 s."""
    for waiting_s, target in (70, 4), (200, 7):
        pools = {ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=4)}
        policy, now_s = warm(pools, 0.1)
        pools[ENCODER].waiting = 100 * waiting_s
        pools[ENCODER].step(now_s + 0.1, 0.1, 0)
        assert policy.decide({ENCODER: pools[ENCODER].reading(now_s + 0.1)}, now_s + 0.1)[ENCODER].target == target


def test_while_replicas_start_waiting_work_asks_for_no_more() -> None:
    """Work that waits for replicas which are starting does not raise the target again. A much larger demand does."""
    pools = {ENCODER: FluidPool(velocity=100, lead_s=20, num_replicas=2)}
    pool = pools[ENCODER]
    policy, now_s = warm(pools, 0.2)
    pool.target, pool.waiting = 3, 50_000
    for _ in range(5):
        now_s += TICK_S
        pool.step(now_s, TICK_S, 20)
        assert policy.decide({ENCODER: pool.reading(now_s)}, now_s)[ENCODER].target == 3
    assert policy.decide({ENCODER: pool.reading(now_s)}, now_s)[ENCODER].reason == "starting"
    for _ in range(5):
        now_s += TICK_S
        pool.step(now_s, TICK_S, 800)
        policy.decide({ENCODER: pool.reading(now_s)}, now_s)
    assert policy.decide({ENCODER: pool.reading(now_s)}, now_s)[ENCODER].target > 3


def test_costly_replicas_go_one_at_a_time() -> None:
    """Of six idle decoders all but one go, one at a time, and each waits as long as a start would take."""
    pool = FluidPool(velocity=1000, lead_s=60, num_replicas=6)
    changes = targets(run({DECODER: pool}, lambda *_: 200, 1500), DECODER)
    assert [target for _, target in changes] == [6, 5, 4, 3, 2, 1]
    times_s = [at_s for at_s, _ in changes[1:]]
    assert all(after - before >= 60 for before, after in itertools.pairwise(times_s))


def test_replicas_that_never_start_are_not_asked_for_again() -> None:
    """Without room the policy asks once and then says that there is none. When there is room again, it goes on."""
    pool = FluidPool(velocity=100, lead_s=20, room=2)
    decisions = run({ENCODER: pool}, lambda *_: 500, 600)
    reasons = [decided[ENCODER].reason for _, decided in decisions]
    assert reasons[-1] == "capacity"
    assert targets(decisions, ENCODER)[-1][0] < 100
    pool = FluidPool(velocity=100, lead_s=20, room=2)
    decisions = run({ENCODER: pool}, lambda _, at_s: 500 if at_s < 300 else 900, 600)
    assert targets(decisions, ENCODER)[-1][0] < 100
    pool.room = 1000
    assert run({ENCODER: pool}, lambda *_: 500, 200)[-1][1][ENCODER].reason != "capacity"
    assert len(pool.running) >= 6


def test_a_pool_that_waits_for_room_can_shrink() -> None:
    """A pool whose last replicas never started gives up the wish and the others when the load has gone for long."""
    pool = FluidPool(velocity=100, lead_s=20, room=4)
    changes = targets(run({ENCODER: pool}, lambda _, at_s: 900 if at_s < 300 else 20, 3000), ENCODER)
    assert max(target for _, target in changes) > 4
    assert changes[-1][1] == 1
    assert len(pool.running) == 1


def test_a_pool_may_go_to_zero_and_back() -> None:
    """Without work for a window, a pool with a lower bound of zero goes there. The first work wakes it up."""
    pool = FluidPool(velocity=100, lead_s=20, bounds=(0, 5))
    decisions = run({ENCODER: pool}, lambda _, at_s: 50 if at_s < 60 or at_s > 1000 else 0, 1100)
    changes = targets(decisions, ENCODER)
    assert [target for _, target in changes][:3] == [1, 0, 1]
    assert changes[1][0] >= 60 + MIN_WINDOW_S
    assert changes[2][0] <= 1000 + 2 * TICK_S


def test_calls_that_wait_wake_an_empty_pool() -> None:
    """A pool without replicas has nobody who counts its work. Calls that wait for a replica start one all the same, and
    without such calls it stays empty."""
    policy = JointPolicy(TRAITS)
    empty = PoolReading(frozenset(), 0, 0, 3, frozenset(), {}, {})
    assert policy.decide({ENCODER: empty}, 0)[ENCODER].target == 0
    assert policy.decide({ENCODER: replace(empty, num_queued=4)}, 2)[ENCODER] == Decision(1, 1, "demand")
    assert policy.decide({ENCODER: replace(empty, target=1, num_queued=0)}, 4)[ENCODER].target == 1


def test_a_new_policy_lowers_nothing_for_a_window() -> None:
    """A policy that was just made finds far too many replicas and takes none away before its window has passed."""
    pool = FluidPool(velocity=100, lead_s=20, num_replicas=10)
    decisions = run({ENCODER: pool}, lambda *_: 50, 600)
    first_s, _ = targets(decisions, ENCODER)[1]
    assert first_s >= MIN_WINDOW_S


def test_a_gap_in_the_counters_begins_the_window_anew() -> None:
    """After a minute without counters nothing is known about the time before, and no replica goes for a whole
    window."""
    pool = FluidPool(velocity=100, lead_s=20, num_replicas=5)
    policy, now_s = warm({ENCODER: pool}, 0.2)
    while now_s < MIN_WINDOW_S - 10:
        now_s += TICK_S
        pool.step(now_s, TICK_S, 20)
        policy.decide({ENCODER: pool.reading(now_s)}, now_s)
    back_s = now_s = now_s + 60
    while (decision := policy.decide({ENCODER: pool.reading(now_s)}, now_s)[ENCODER]).target == 5:
        assert now_s < back_s + 2 * MIN_WINDOW_S
        now_s += TICK_S
        pool.step(now_s, TICK_S, 20)
    assert now_s >= back_s + MIN_WINDOW_S
    assert decision.target == 1


def test_the_time_of_a_start_is_learnt() -> None:
    """If a replica takes much longer to start than expected, the first starts look like a lack of room. After some of
    them the policy waits as long as they take."""
    pool = FluidPool(velocity=100, lead_s=150, num_replicas=1, bounds=(1, 30))
    decisions = run({ENCODER: pool}, lambda _, at_s: 50 + 100 * (at_s // 400), 5000)
    seen = [(at_s, decided[ENCODER].reason == "capacity") for at_s, decided in decisions]
    assert any(no_room for at_s, no_room in seen if at_s < 1000)
    assert not any(no_room for at_s, no_room in seen if at_s > 3500)


def test_a_target_that_rises_during_a_start_does_not_make_it_longer() -> None:
    """A second replica is asked for 50 s after the first, and each takes 60 s to start. The policy still takes 60 s for
    the time of a start: the next one counts as a lack of room after 120 s, and not after 170 s."""
    policy, pool = JointPolicy(TRAITS), FluidPool(velocity=100, lead_s=60)
    reasons = {}
    for now_s in range(0, 420, 2):
        pool.target = 1 if now_s < 20 else 2 if now_s < 70 else 3 if now_s < 200 else 4
        pool.running = pool.running[:1] + ["second"] * (now_s >= 80) + ["third"] * (now_s >= 130)
        pool.step(now_s, TICK_S, 700)
        reasons[now_s] = policy.decide({DECODER: replace(pool.reading(now_s), max_replicas=4)}, now_s)[DECODER].reason
    assert reasons[200 + 110] != "capacity"
    assert reasons[200 + 130] == "capacity"


def test_what_is_not_known_changes_nothing() -> None:
    """Before the first work nothing is known of the velocity, and the pool keeps its size. It also keeps its size if
    counters are missing."""
    policy = JointPolicy(TRAITS)
    pool = FluidPool(velocity=100, lead_s=20, num_replicas=3)
    pool.step(0, STEP_S, 0)
    first = replace(pool.reading(0), queued_work=1.0)
    assert policy.decide({ENCODER: first}, 0)[ENCODER] == Decision(3, None, "unknown speed")
    reading = pool.reading(2)
    for wrong in (replace(reading, served={}), replace(reading, offered={}), replace(reading, sources=frozenset())):
        assert policy.decide({ENCODER: wrong}, 2)[ENCODER] == Decision(3, None, "no data")
    assert policy.decide({"other": reading}, 2) == {}


def settled(policy: JointPolicy, pool: FluidPool, load: float, first_s: float, last_s: float) -> list[Decision]:
    """Returns the decisions for one pool under a steady load, which are carried out."""
    decisions, now_s = [], first_s
    while now_s < last_s:
        pool.step(now_s, STEP_S, load)
        if now_s % TICK_S == 0:
            decisions.append(policy.decide({ENCODER: pool.reading(now_s)}, now_s)[ENCODER])
            pool.apply(decisions[-1], now_s)
        now_s += STEP_S
    return decisions


def test_a_pool_that_has_never_worked_shrinks() -> None:
    """A pool that gets no work from the beginning goes to its smallest size, although its velocity is unknown."""
    pool = FluidPool(velocity=100, lead_s=20, num_replicas=8, bounds=(1, 8))
    assert settled(JointPolicy({ENCODER: TRAITS[ENCODER]}), pool, 0, 0, 700)[-1].target == 1


def test_a_pool_with_a_pause_changes_once_in_it() -> None:
    """After a change of the target there is no other one before the pause is over. The reason says so."""
    policy = JointPolicy({ENCODER: PoolTraits(lead_s=5, wait_budget_s=1, min_pause_s=100)})
    pool = FluidPool(velocity=100, lead_s=5, bounds=(1, 20))
    settled(policy, pool, 20, 0, 60)
    raised = settled(policy, pool, 300, 60, 120)
    target = raised[-1].target
    assert next(one.target for one in raised if one.target > 1) == target
    higher = settled(policy, pool, 1000, 120, 200)
    changes = [index * TICK_S + 120 for index, one in enumerate(higher) if one.target > target]
    assert any(one.reason == "pause" and one.target == target for one in higher)
    assert 160 <= changes[0] <= 180


def test_a_jump_is_answered_in_one_large_step() -> None:
    """While a demand jumps, the pool waits for its height. Its first step is then four fifths of the way or more."""
    policy, pool = JointPolicy({ENCODER: TRAITS[ENCODER]}), FluidPool(velocity=100, lead_s=20, bounds=(1, 30))
    settled(policy, pool, 50, 0, 60)
    decisions = settled(policy, pool, 800, 60, 76)
    steps = [target for target, _ in itertools.groupby(one.target for one in decisions)]
    assert "rising" in {one.reason for one in decisions}
    assert steps[0] == 1
    assert steps[1] >= 0.8 * steps[-1]


def test_a_full_entry_does_not_grow_while_another_pool_is_short() -> None:
    """Requests stay in the entry while they wait for decoders, so its lack of room counts only if no other is short."""
    traits = {"entry": PoolTraits(lead_s=20, wait_budget_s=1, is_entry=True), DECODER: TRAITS[DECODER]}
    for load, expected in ((30, "room"), (900, "demand")):
        policy = JointPolicy(traits)
        entry, decoder = (FluidPool(velocity=100, lead_s=60, bounds=(1, 30)) for _ in range(2))
        for now_s in range(0, 60, 2):
            entry.step(now_s, 2, 30)
            decoder.step(now_s, 2, load)
            reading = entry.reading(now_s)
            full = {name: replace(one, fullness=1.0) for name, one in reading.served.items()}
            decided = policy.decide({"entry": replace(reading, served=full), DECODER: decoder.reading(now_s)}, now_s)
        assert decided["entry"].reason == expected
        assert decided["entry"].wanted == (2 if expected == "room" else 1)


def test_a_clock_that_was_set_back_stops_nothing() -> None:
    """After the clock goes back by an hour, the policy decides again as soon as readings come."""
    policy, pool = JointPolicy({ENCODER: TRAITS[ENCODER]}), FluidPool(velocity=100, lead_s=20, bounds=(1, 30))
    settled(policy, pool, 50, 4000, 4100)
    later = settled(policy, pool, 500, 400, 500)
    assert later[-1].target >= 6


def test_bounds_come_first() -> None:
    """A target outside the bounds moves to the nearest bound at once, also without any data."""
    policy, pool = JointPolicy(TRAITS), FluidPool(velocity=100, lead_s=20, num_replicas=3, bounds=(4, 6))
    assert policy.decide({ENCODER: pool.reading(0)}, 0)[ENCODER].target == 4
    pool.bounds = (1, 2)
    assert policy.decide({ENCODER: replace(pool.reading(2), served={})}, 2)[ENCODER].target == 2


class Saboteur:
    """Changes readings in ways that a cluster under failure might."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.spoiled = False

    def reading(self, true: PoolReading, now_s: float) -> PoolReading:
        """Returns the reading, or a spoiled copy of it. ``spoiled`` says whether counters of a running replica or
        Router are missing, old or impossible in it."""
        self.spoiled = False
        kind = self.draw.randrange(12)
        served, offered = dict(true.served), dict(true.offered)
        if kind == 0 and served:
            del served[self.draw.choice([*served])]
            self.spoiled = True
        elif kind == 1:
            offered, self.spoiled = {}, True
        elif kind == 2 and served:
            name = self.draw.choice([*served])
            wrong = self.draw.choice([math.nan, -1.0, math.inf, 1e300])
            field = self.draw.choice(["work", "busy_s", "waiting", "at_s"])
            served[name] = replace(served[name], **{field: wrong})
            self.spoiled = True
        elif kind == 3 and served:
            name = self.draw.choice([*served])
            served[name] = replace(served[name], at_s=now_s - 60)
            self.spoiled = True
        elif kind == 4 and served:
            name = self.draw.choice([*served])
            served[name] = Served(now_s, self.draw.random(), self.draw.random())  # its counters went back
        elif kind == 5:
            offered[ROUTER] = Offered(now_s, self.draw.random())
        return replace(true, served=served, offered=offered)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_nothing_that_goes_wrong_does_harm(seed: int) -> None:
    """Whatever becomes of the counters: no target leaves its bounds, none falls on missing data, no start is
    cancelled that has not taken a whole window, and within a window the direction changes at most once.

    Loads, bounds and starts are random, some replicas never start, the policy is made anew now and then, and its clock
    goes back.
    """
    draw, saboteur = random.Random(seed), Saboteur(seed)
    policy = JointPolicy(TRAITS)
    pools = {
        name: FluidPool(
            velocity=draw.choice([10, 100, 1000]),
            lead_s=draw.choice([4, 20, 85, 300]),
            num_replicas=draw.randint(1, 3),
            bounds=(draw.randint(0, 1), draw.randint(3, 12)),
            room=draw.choice([2, 1000]),
        )
        for name in TRAITS
    }
    loads = dict.fromkeys(TRAITS, 0.0)
    short_since_s = dict.fromkeys(TRAITS, math.inf)
    moves: dict[str, list[tuple[float, int]]] = {name: [] for name in TRAITS}
    for tick in range(2500):
        now_s = tick * TICK_S
        if draw.random() < 0.004:
            loads = {name: draw.choice([0, 0.3, 1, 4, 12]) * pool.velocity for name, pool in pools.items()}
        if draw.random() < 0.002:
            policy = JointPolicy(TRAITS)
        for name, pool in pools.items():
            pool.step(now_s, TICK_S, loads[name])
            true = pool.reading(now_s)
            spoiled = saboteur.reading(true, now_s)
            decision = policy.decide({name: spoiled}, now_s if draw.random() > 0.01 else now_s - 500)[name]
            assert pool.bounds[0] <= decision.target <= pool.bounds[1]
            change = decision.target - pool.target
            if saboteur.spoiled:
                assert change >= 0, decision
            short_since_s[name] = min(short_since_s[name], now_s) if len(pool.running) < pool.target else math.inf
            if now_s - short_since_s[name] < MIN_WINDOW_S and short_since_s[name] < math.inf:
                assert change >= 0, decision
            if change:
                moves[name].append((now_s, change))
            pool.apply(decision, now_s)
    for name, pool in pools.items():
        assert max_reversals(moves[name]) <= 1, (name, pool, moves[name])


def max_reversals(moves: list[tuple[float, int]]) -> int:
    """Returns the most changes of direction among the moves of any window."""
    most = 0
    for start, _ in moves:
        inside = [move for at_s, move in moves if start <= at_s < start + MIN_WINDOW_S]
        most = max(most, sum((before > 0) != (after > 0) for before, after in itertools.pairwise(inside)))
    return most
