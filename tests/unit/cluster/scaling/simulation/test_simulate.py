"""Whole simulations: times computed by hand, conservation, determinism, GPU-hours and the policy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest

from cluster.scaling.schedules.synthetic import Sizes, SyntheticLoad, synthetic
from cluster.scaling.simulation.outcomes import LatencyGoal
from cluster.scaling.simulation.simulate import joint_policy, simulate
from tests.helpers.simulated import ROUND, arrival, every, heading, sizes

if TYPE_CHECKING:
    from cluster.scaling.simulation.outcomes import SimulationResult

FAST = ROUND.model_copy(
    update={
        "router": ROUND.router.model_copy(update={"request_s": 0.002}),
        "preprocessor": ROUND.preprocessor.model_copy(update={"picture_s": 0.02}),
        "encoder": ROUND.encoder.model_copy(update={"patch_s": 0.0001}),
        "decoder": ROUND.decoder.model_copy(update={"prefill_tokens_per_s": 10_000}),
    }
)
"""Speeds at which one encoder does about four megapixels per second, and a decoder ten thousand tokens."""
MIX = SyntheticLoad(120, 3, weights={"text": 1, "picture": 1, "pictures": 1, "reuse": 2, "turns": 2})


def test_one_request_takes_the_time_of_each_stage() -> None:
    """10 ms in the Router, 100 ms preparation, 400 ms in the tower, and a step of 20 + 200 ms give 0.73 s. Two more
    tokens take 40 ms."""
    outcome = simulate(heading(), [arrival(1.0, "a", output_tokens=3)], ROUND, sizes()).requests[0]
    assert outcome.ending == "answered"
    assert outcome.ttft_s == pytest.approx(0.73)
    assert outcome.latency_s == pytest.approx(0.77)
    assert sum(outcome.waits_s.values()) == pytest.approx(0)


def test_the_time_between_pools_delays_requests_and_new_pictures() -> None:
    """50 ms of every request, and 30 ms more of a picture that the decoder lacks, delay the first token. They keep no
    pool busy."""
    slow = ROUND.model_copy(update={"request_path_s": 0.05, "picture_path_s": 0.03})
    arrivals = [arrival(0.0, "a"), arrival(10.0, "a"), arrival(20.0)]
    fast, late = (simulate(heading(), arrivals, speeds, sizes()) for speeds in (ROUND, slow))
    delays_s = [
        (after.ttft_s or 0) - (before.ttft_s or 0) for before, after in zip(fast.requests, late.requests, strict=True)
    ]
    assert delays_s == pytest.approx([0.08, 0.05, 0.05])
    assert late.busy_shares == pytest.approx(fast.busy_shares)


def test_the_second_request_waits_for_the_first() -> None:
    """Two texts at the same time are read one after the other. The second reaches the engine during the first's step
    of 120 ms, which began at 10 ms, and its own step takes 120 ms more: 0.25 s."""
    result = simulate(heading(), [arrival(0.0), arrival(0.0)], ROUND, sizes())
    assert [one.ttft_s for one in result.requests] == [pytest.approx(0.13), pytest.approx(0.25)]
    assert result.requests[1].waits_s == {"router": pytest.approx(0.01), "decoder": pytest.approx(0.11)}


def test_a_request_waits_for_all_of_its_pictures() -> None:
    """Of two pictures the first is prepared at 0.11 s. The tower waits a millisecond for the second one and starts.
    The first ends at 0.511 s and the second at 0.911 s. The prompt of 300 tokens takes 0.32 s more."""
    result = simulate(heading(), [arrival(0.0, "a", "b")], ROUND, sizes())
    assert result.requests[0].ttft_s == pytest.approx(0.911 + 0.32)


def test_a_router_takes_time_for_each_picture_that_is_sent() -> None:
    """10 ms for a picture and a microsecond for each of its 78,400 pixels delay the first token by 88.4 ms, also if the
    picture was seen before."""
    slow = ROUND.model_copy(update={"router": ROUND.router.model_copy(update={"picture_s": 0.01, "pixel_s": 1e-6})})
    arrivals = [arrival(0.0, "a"), arrival(10.0, "a")]
    times_s = [
        [one.ttft_s for one in simulate(heading(), arrivals, speeds, sizes()).requests] for speeds in (ROUND, slow)
    ]
    for fast_s, slow_s in zip(*times_s, strict=True):
        assert fast_s is not None
        assert slow_s == pytest.approx(fast_s + 0.0884)


def test_calls_beyond_the_limit_of_a_decoder_wait_outside() -> None:
    """With one call per decoder the second text is read at 20 ms and waits for the end of the first at 130 ms."""
    speeds = ROUND.model_copy(update={"decoder": ROUND.decoder.model_copy(update={"max_ongoing_requests": 1})})
    result = simulate(heading(), [arrival(0.0), arrival(0.0)], speeds, sizes())
    assert result.requests[1].ttft_s == pytest.approx(0.25)
    assert result.requests[1].waits_s["decoder"] == pytest.approx(0.11)


def test_a_picture_is_encoded_once() -> None:
    """Ten requests for one picture encode it once, with several decoders and encoders too."""
    arrivals = [arrival(0.01 * number, "a") for number in range(10)]
    result = simulate(heading(), arrivals, ROUND, sizes(encoder=3, decoder=3))
    assert result.num_pictures_made == 1
    assert result.endings == {"answered": 10}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_colocated", [False, True])
def test_each_arrival_ends_once(seed: int, is_colocated: bool) -> None:
    """Every request of a mixed load is answered, the first token is no earlier than the work before it, and the last
    no earlier than its steps."""
    made, arrivals = synthetic(MIX, seed)
    requests = list(arrivals)
    speeds = FAST
    if is_colocated:
        speeds = FAST.model_copy(update={"decoder": FAST.decoder.model_copy(update={"tower_patch_s": 0.0001})})
    result = simulate(made, requests, speeds, sizes(2, 3, 0 if is_colocated else 3, 4), seed=seed)
    assert result.endings == {"answered": len(requests)}
    for request, one in zip(result.requests, requests, strict=True):
        assert request.ttft_s is not None
        assert request.latency_s is not None
        assert request.ttft_s >= FAST.router.request_s + one.text_tokens / 10_000 + FAST.decoder.step_s - 1e-9
        least_s = (one.output_tokens - 1) * FAST.decoder.step_s
        assert request.latency_s - request.ttft_s >= least_s - 1e-9


def test_the_same_arguments_give_the_same_result() -> None:
    """Two simulations with one seed agree in everything. Another seed changes the choice of preprocessors."""
    made, arrivals = synthetic(MIX, 1)
    requests = list(arrivals)
    first, second, other = (simulate(made, requests, FAST, sizes(2, 3, 3, 4), seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert [one.ttft_s for one in first.requests] != [one.ttft_s for one in other.requests]


def test_gpu_hours_of_fixed_sizes_are_exact() -> None:
    """Two encoders with one GPU and three decoders with four GPUs take 2 and 12 GPU-hours in an hour."""
    result = simulate(heading(3600), [arrival(0.0)], ROUND, sizes(encoder=2, decoder=3))
    assert result.gpu_hours == {"router": 0, "preprocessor": 0, "encoder": 2, "decoder": 12}


def test_busy_shares_are_the_work_over_the_time() -> None:
    """50 pictures of 0.4 s in 100 s make one tower 20 % busy, and each of two 10 %."""
    for num_encoders in (1, 2):
        arrivals = every(2.0, 50, pictures=True)
        result = simulate(heading(100), arrivals, ROUND, sizes(encoder=num_encoders))
        assert result.busy_shares["encoder"] == pytest.approx(0.2 / num_encoders)
        assert result.busy_shares["preprocessor"] == pytest.approx(0.05)


def test_a_full_router_refuses_requests() -> None:
    """A Router with room for two requests refuses the third that arrives at the same time, and not a later one."""
    speeds = ROUND.model_copy(update={"router": ROUND.router.model_copy(update={"max_in_flight": 2})})
    result = simulate(heading(), [arrival(at_s) for at_s in (0.0, 0.0, 0.0, 9.0)], speeds, sizes())
    assert [one.ending for one in result.requests] == ["answered", "answered", "overloaded", "answered"]


def test_a_request_that_is_too_long_is_refused() -> None:
    """A prompt that the KV cache cannot take is refused, and blocks nobody."""
    result = simulate(heading(), [arrival(0.0, text_tokens=200_000), arrival(0.0)], ROUND, sizes())
    assert [one.ending for one in result.requests] == ["too long", "answered"]


def test_requests_that_nobody_serves_are_unfinished() -> None:
    """If a pool has no replica and gets none, the simulation still ends."""
    result = simulate(heading(), [arrival(0.0)], ROUND, sizes(decoder=0))
    assert result.endings == {"unfinished": 1}


def test_sizes_over_time_are_noted() -> None:
    """Every second there is a row for each pool. Fixed sizes have no reason."""
    result = simulate(heading(10), [arrival(0.0)], ROUND, sizes(encoder=2))
    encoders = [tick for tick in result.ticks if tick.pool == "encoder"]
    assert [tick.at_s for tick in encoders] == [*range(11)]
    assert {(tick.num_running, tick.target, tick.reason) for tick in encoders} == {(2, 2, None)}


@cache
def spike(seed: int = 0) -> tuple[SimulationResult, float]:
    """Simulates half an hour with the policy, in which pictures come six times as often for six minutes. Texts come
    evenly. Returns the result and the time at which the spike begins."""
    pictures = SyntheticLoad(
        1800, 1, 6, "spike", weights={"picture": 1}, sizes=Sizes(text_tokens=10, output_tokens=10, megapixels=0.5)
    )
    texts = SyntheticLoad(1800, 4, weights={"text": 1}, sizes=Sizes(text_tokens=1000, output_tokens=10))
    made, arrivals = synthetic(pictures, seed)
    requests = sorted([*arrivals, *synthetic(texts, seed + 1)[1]], key=lambda one: one.at_s)
    slow_tower = FAST.model_copy(
        update={
            "encoder": FAST.encoder.model_copy(update={"patch_s": 0.0002}),
            "decoder": FAST.decoder.model_copy(update={"prefill_tokens_per_s": 40_000, "step_s": 0.005}),
        }
    )
    bounds = {name: replace(size, min_replicas=1, max_replicas=20) for name, size in sizes().items()}
    return simulate(made, requests, slow_tower, bounds, policy=joint_policy(slow_tower), seed=seed), 0.4 * 1800


def test_a_picture_spike_raises_encoders_and_not_decoders() -> None:
    """The encoders' target rises within ten seconds of a spike of pictures. The target of the decoders, whose work
    hardly changes, never rises above its value before."""
    result, starts_s = spike()
    targets = {
        pool: [(tick.at_s, tick.target) for tick in result.ticks if tick.pool == pool] for pool in result.gpu_hours
    }
    before = max(target for at_s, target in targets["encoder"] if at_s < starts_s)
    raised_s = [at_s for at_s, target in targets["encoder"] if at_s >= starts_s and target > before]
    assert raised_s[0] <= starts_s + 10
    assert max(target for _, target in targets["encoder"]) >= 3
    decoders_before = max(target for at_s, target in targets["decoder"] if at_s < starts_s)
    assert max(target for _, target in targets["decoder"]) <= decoders_before


def test_starting_and_draining_replicas_cost() -> None:
    """With the policy, GPU-hours are those of all replicas that run, start or drain, up to one tick."""
    result, _ = spike()
    counted = sum(
        tick.num_running + tick.num_starting + tick.num_draining for tick in result.ticks if tick.pool == "encoder"
    )
    assert result.gpu_hours["encoder"] == pytest.approx(counted / 3600, rel=0.02)


def test_more_decoders_never_make_a_load_of_texts_worse() -> None:
    """With fixed sizes, four decoders meet a goal more often than one that is overloaded, and wait less."""
    made, arrivals = synthetic(SyntheticLoad(120, 8, weights={"text": 1}, sizes=Sizes(text_tokens=150)), 0)
    requests, goal = list(arrivals), LatencyGoal(1.0, 0.1)
    few, many = (simulate(made, requests, ROUND, sizes(decoder=num)) for num in (1, 4))
    assert few.attainment(goal) < 0.3
    assert many.attainment(goal) > 0.9
    assert few.binding_pool(goal) == "decoder"
    assert many.ttft_s(0.5) < few.ttft_s(0.5)


def test_a_pool_without_bounds_keeps_its_size() -> None:
    """A pool whose bounds are not given keeps its size, even with a policy and too much work."""
    made, arrivals = synthetic(SyntheticLoad(60, 8, weights={"text": 1}), 0)
    result = simulate(made, list(arrivals), ROUND, sizes(), policy=joint_policy(ROUND))
    assert {tick.target for tick in result.ticks} == {1}
