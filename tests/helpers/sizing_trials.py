"""Simulates one hour of ServeGen with one policy: the trials that ``tests.helpers.compare_policies`` compares.

The clients are sorted by their requests of the whole day and assigned to two halves. Policies are tuned on one half and
compared on the other. Each client appears ``COPIES`` times, each time with its own random numbers. Half of the clients
need little more than one decoder, so there would be nothing to decide. Copies keep the times of the day, while a faster
clock would also make the load change faster than replicas can start.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from cluster.scaling.baselines.clairvoyant import SizeCosts, cheapest, loads, needs
from cluster.scaling.baselines.knative import KnativePolicy, KnativeScaling
from cluster.scaling.baselines.played import PlayedPolicy
from cluster.scaling.baselines.serve_default import ServeAutoscaling, ServeDefaultPolicy
from cluster.scaling.planning.roofline import Layout, speeds_of
from cluster.scaling.readings import ScalingSettings
from cluster.scaling.schedules.schedule import Arrival, Heading, in_order
from cluster.scaling.schedules.servegen import read_clients
from cluster.scaling.simulation.outcomes import LatencyGoal, SimulationResult
from cluster.scaling.simulation.replicas import PoolSize
from cluster.scaling.simulation.simulate import joint_policy, simulate
from cluster.scaling.simulation.ticks import METRIC_AGE_S, TICK_S
from deployments.local.catalogue import SHIPPED_CATALOGUE, read_catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cluster.scaling.schedules.servegen import TraceClient
    from cluster.scaling.simulation.sizing import SizingPolicy
    from cluster.scaling.simulation.speeds import Speeds

Half = Literal["tuning", "test"]
Hour = Literal["peak", "trough"]

COPIES: Final = 3
"""How often each client appears. With one copy, one decoder is nearly enough, so a policy has nothing to decide. More
copies would be closer to a large service, but a simulation takes CPU time in proportion."""
WARM_UP_S: Final = 900.0
"""The time before the hour. It is simulated and not counted, so that policies know the load when the hour begins."""
HOUR_S: Final = 3600.0
STARTS_S: Final[dict[Hour, float]] = {"peak": 36_000.0, "trough": 82_200.0}
"""The time of the day at which each hour begins: 10:00, and 22:50. The latter is the last hour of the data.
Only the first hour has fewer requests, but there is no data before it for a warm-up."""
CONTEXT_TOKENS: Final = 1658.0
"""The tokens before a token of an answer, as in the other simulations of ServeGen."""
GOAL: Final = LatencyGoal(ttft_s=1.0, itl_s=0.05)
NUM_GPUS: Final = {"decoder": 4, "encoder": 1}
MAX_REPLICAS: Final = {"decoder": 16, "encoder": 32}
CPU_SIZES: Final = {"router": PoolSize(3), "preprocessor": PoolSize(6)}
"""Pools without GPUs have more replicas than they need, with every policy."""
PLAN_STEP_S: Final = 10.0
DRAIN_S: Final = 5.0
"""The seconds of a drain, for the clairvoyant plan: about the time of one answer."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulation.

    Args:
        half: The half of the clients.
        hour: The hour of the day.
        seed: The seed of the arrivals.
        policy: The policy and its settings in words, such as ``serve 40 4 600``.
        start_s: Seconds that a decoder takes to start; an encoder takes as long, but at most 30 s.
        metric_age_s: The age of the counters that the policy sees.
    """

    half: Half
    hour: Hour
    seed: int
    policy: str
    start_s: float = 300.0
    metric_age_s: float = METRIC_AGE_S

    @property
    def name(self) -> str:
        """A name for its file."""
        words = (self.half, self.hour, self.seed, self.policy, f"{self.start_s:g}", f"{self.metric_age_s:g}")
        return "-".join(map(str, words)).replace(" ", "_")


def half_of(folder: Path, half: Half) -> list[TraceClient]:
    """Half of the clients. Clients are sorted by their requests of the day and assigned in the order 1, 2, 2, 1."""
    clients = read_clients(folder)
    in_order_of_size = sorted(clients, key=lambda one: -sum(window.rate_per_s for window in one.windows))
    is_tuning = half == "tuning"
    return [one for place, one in enumerate(in_order_of_size) if (place % 4 in (0, 3)) == is_tuning]


@lru_cache(maxsize=2)
def schedule_of(folder: Path, half: Half, hour: Hour, seed: int) -> tuple[Heading, Sequence[Arrival]]:
    """The arrivals of an hour and of the time before it."""
    first_s, duration_s = STARTS_S[hour] - WARM_UP_S, WARM_UP_S + HOUR_S
    copies = [
        replace(client, name=f"{client.name} copy {number}").arrivals(first_s, first_s + duration_s, 1.0, seed)
        for client in half_of(folder, half)
        for number in range(COPIES)
    ]
    source = f"ServeGen, {half} half, {COPIES} copies, {hour}"
    return Heading(source=source, seed=seed, duration_s=duration_s), list(in_order(copies))


def speeds(start_s: float) -> Speeds:
    """The speeds of the default catalogue with four H100 for a decoder and one L4 for an encoder."""
    found = speeds_of(read_catalogue(SHIPPED_CATALOGUE), Layout("H100", 4, "L4"), CONTEXT_TOKENS)
    decoder = found.decoder.model_copy(update={"start_s": start_s})
    encoder = found.encoder.model_copy(update={"start_s": min(found.encoder.start_s, start_s)})
    return found.model_copy(update={"decoder": decoder, "encoder": encoder})


def first_sizes(arrivals: Sequence[Arrival], speed: Speeds) -> dict[str, int]:
    """The sizes with which the joint policy, Serve's and Knative's begin. They are the mean load of the warm-up and a
    reserve of its square root, as an operator would choose them."""
    warm_up = [one for one in arrivals if one.at_s < WARM_UP_S]
    return {
        pool: needs(load, 1.0, MAX_REPLICAS[pool])[0]
        for pool, load in loads(warm_up, speed, WARM_UP_S, WARM_UP_S).items()
    }


def run(folder: Path, trial: Trial) -> dict[str, Any]:
    """Runs a trial and returns its figures, which are those of the hour without the time before it."""
    started_s = time.process_time()
    heading, arrivals = schedule_of(folder, trial.half, trial.hour, trial.seed)
    speed = speeds(trial.start_s)
    with_policy, sizes = policy_of(trial, arrivals, speed, heading.duration_s)
    result = simulate(heading, arrivals, speed, sizes, policy=with_policy, metric_age_s=trial.metric_age_s)
    return {**asdict(trial), **figures(result), "cpu_s": time.process_time() - started_s}


def policy_of(
    trial: Trial, arrivals: Sequence[Arrival], speed: Speeds, duration_s: float
) -> tuple[SizingPolicy | None, dict[str, PoolSize]]:
    """The policy of a trial and the sizes with which it begins."""
    kind, *words = trial.policy.split()
    first = first_sizes(arrivals, speed)
    starts_s = {pool: speed.start_s(pool) for pool in NUM_GPUS}
    found: SizingPolicy | None = None
    match kind:
        case "joint":
            found = joint_policy(speed, ScalingSettings(acts=True, ttft_slo_s=GOAL.ttft_s))
        case "serve":
            delay_s = float(words[2])
            found = ServeDefaultPolicy(
                {
                    pool: ServeAutoscaling(target_ongoing_requests=float(target), downscale_delay_s=delay_s)
                    for pool, target in zip(NUM_GPUS, words, strict=False)
                }
            )
        case "knative":
            stable_s, down_s = map(float, words[2:])
            found = KnativePolicy(
                {
                    pool: KnativeScaling(float(target), stable_s, stable_s / 10, down_delay_s=down_s)
                    for pool, target in zip(NUM_GPUS, words, strict=False)
                }
            )
        case "fixed":
            first = {pool: int(size) for pool, size in zip(NUM_GPUS, words, strict=True)}
        case "clairvoyant":
            *reserves, price = map(float, words)
            load = loads(arrivals, speed, duration_s, PLAN_STEP_S)
            plans = {
                pool: cheapest(
                    needs(load[pool], reserve, MAX_REPLICAS[pool]),
                    PLAN_STEP_S,
                    SizeCosts(start_s, DRAIN_S, price),
                )
                for (pool, start_s), reserve in zip(starts_s.items(), reserves, strict=True)
            }
            found, first = PlayedPolicy(plans, PLAN_STEP_S, starts_s), {pool: plan[0] for pool, plan in plans.items()}
        case _:
            raise ValueError(f"there is no policy {kind}")
    bounds = {pool: PoolSize(size, 1, MAX_REPLICAS[pool], NUM_GPUS[pool]) for pool, size in first.items()}
    return found, {**CPU_SIZES, **bounds}


def figures(result: SimulationResult) -> dict[str, Any]:
    """The figures of a simulation without the time before the hour."""
    counted = [one for one in result.requests if one.at_s >= WARM_UP_S]
    hour = replace(result, requests=counted)
    ticks = [one for one in result.ticks if WARM_UP_S <= one.at_s < WARM_UP_S + HOUR_S]
    missed = [one for one in counted if not GOAL.is_met_by(one)]
    waits_s: Counter[str] = Counter()
    for one in missed:
        waits_s.update(one.waits_s)
    gpu_hours, running, starts, reasons = {}, {}, {}, {}
    for pool, num_gpus in NUM_GPUS.items():
        mine = [one for one in ticks if one.pool == pool]
        num_replicas = sum(one.num_running + one.num_starting + one.num_draining for one in mine)
        gpu_hours[pool] = num_gpus * num_replicas * TICK_S / 3600
        running[pool] = sum(one.num_running for one in mine) / len(mine)
        targets = [one.target for one in mine]
        starts[pool] = sum(max(0, after - before) for before, after in itertools.pairwise(targets))
        reasons[pool] = Counter(str(one.reason) for one in mine)
    return {
        "num_requests": len(counted),
        "attainment": 1 - len(missed) / len(counted),
        "ttft_p50_s": hour.ttft_s(0.5),
        "ttft_p95_s": hour.ttft_s(0.95),
        "itl_p95_s": hour.itl_s(0.95),
        "gpu_hours": gpu_hours,
        "running": running,
        "raises": starts,
        "reasons": reasons,
        "busy_shares": dict(result.busy_shares),
        "waits_of_missed_s": dict(waits_s),
    }
