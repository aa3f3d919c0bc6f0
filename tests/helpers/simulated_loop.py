"""Simulates the loads of ``tests.helpers.closed_loop`` and compares the results with its runs on the real controller.

The starts of a pool take as long as those of the run, one after the other. Further starts take their mean. The real
runs follow each other in one cluster, and its policy keeps what it has learnt. So one policy is used for all
simulations, in the same order.

python -m tests.helpers.simulated_loop runs        the folder that closed_loop wrote
"""

from __future__ import annotations

import argparse
import itertools
import json
from bisect import bisect_right
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from cluster.checkpoint import Checkpoint
from cluster.config import POOLS, ModelConfig, PrismConfig
from cluster.messages import picture_part
from cluster.scaling.readings import ScalingSettings
from cluster.scaling.schedules.schedule import Arrival, Heading, ScheduledPicture
from cluster.scaling.simulation.outcomes import quantile
from cluster.scaling.simulation.replicas import PoolSize
from cluster.scaling.simulation.simulate import joint_policy, simulate
from cluster.scaling.simulation.speeds import Speeds
from tests.helpers.closed_loop import (
    MAX_REPLICAS,
    MAX_TOKENS,
    SIDE_PIXELS,
    SLOWNESS,
    TOLD_START_S,
    WINDOW_S,
    Load,
)
from tests.helpers.pace import Pace
from tests.helpers.paced_engine import CHARS_PER_TOKEN

if TYPE_CHECKING:
    from cluster.scaling.policy import JointPolicy
    from cluster.scaling.simulation.outcomes import SimulationResult

START_S: Final = 6.5
"""The seconds that a paced replica takes to start on two busy cores, if the run has no start."""
METRIC_AGE_S: Final = 1.5
"""The age of the counters when the policy decides. Measured (two busy cores, a load of long texts, 2026-11-30): 1.5 s,
the mean of preprocessors, encoders and decoders."""
DIGEST: Final = "0" * 64
"""Stands for a picture. All digests have the same length."""


def starts_s(run: dict[str, Any]) -> dict[str, list[float]]:
    """The seconds of each start of a run, by pool: from the rise of the target to the replica that runs."""
    found: dict[str, list[float]] = {}
    for pool in POOLS:
        name = getattr(PrismConfig(), pool).deployment
        asked_s: deque[float] = deque()
        for before, sample in itertools.pairwise(run["samples"]):
            asked_s.extend([sample["at_s"]] * (sample["target"][name] - before["target"][name]))
            while len(asked_s) > max(0, sample["target"][name] - before["running"][name]):
                asked_s.pop()  # the target fell before it had started
            for _ in range(sample["running"][name] - before["running"][name]):
                if asked_s:
                    found.setdefault(pool, []).append(sample["at_s"] - asked_s.popleft())
    return found


def mean_starts_s(found: dict[str, list[float]]) -> dict[str, float]:
    """The mean of the starts, by pool. A pool without a start has the mean of the others."""
    known = [start_s for times in found.values() for start_s in times]
    others_s = fmean(known) if known else START_S
    return {pool: fmean(found[pool]) if pool in found else others_s for pool in POOLS}


def paced_speeds(pace: Pace, starts_s: dict[str, float]) -> Speeds:
    """The speeds of the paced stages, with the time that their calls take.

    Measured (two cores, no load, 2026-11-30), without the time of the stages: a request 13 ms, and its picture 18 ms
    more. The simulated Router takes both times, and is busy for them. Next to their paced time, a picture keeps a
    preprocessor busy for 0.3 ms and an encoder for 0.8 ms.
    """
    shared = {pool: {"max_ongoing_requests": 64, "start_s": start_s} for pool, start_s in starts_s.items()}
    return Speeds.model_validate(
        {
            "router": {"request_s": 0.013, "picture_s": 0.018, "token_s": 0.0003, "start_s": starts_s["router"]},
            "preprocessor": {"picture_s": 0.0003, "pixel_s": pace.pixel_s, **shared["preprocessor"]},
            "encoder": {"run_s": 0.0008, "patch_s": pace.patch_s, "batch_patches": 768, **shared["encoder"]},
            "decoder": {
                "prefill_tokens_per_s": 1 / pace.token_s,
                "step_s": pace.step_s,
                "step_tokens": pace.step_tokens,
                "kv_tokens": pace.kv_tokens,
                "max_num_seqs": pace.max_running,
                **shared["decoder"],
            },
            "processor": Checkpoint(ModelConfig()).processor,
        }
    )


def arrival(load: Load, number: int) -> Arrival:
    """One arrival of a load as a schedule has it."""
    at_s, in_spike = load.arrivals[number]
    body = load.body(number, in_spike=in_spike)
    parts: list[dict[str, Any]] = body["messages"][0]["content"]
    name = f"{load.seed} {number}"
    has_picture = any(part["type"] == "image_url" for part in parts)
    parts[:] = [picture_part(DIGEST) if part["type"] == "image_url" else part for part in parts]
    pictures = (ScheduledPicture(name=name, width=SIDE_PIXELS, height=SIDE_PIXELS),) if has_picture else ()
    return Arrival(
        at_s=at_s,
        client="closed loop",
        text_tokens=len(json.dumps(body)) // CHARS_PER_TOKEN,
        pictures=pictures,
        output_tokens=MAX_TOKENS,
    )


def all_arrivals(load: Load) -> list[Arrival]:
    """All arrivals of a load, in their order."""
    return [arrival(load, number) for number in range(len(load.arrivals))]


def first_policy() -> JointPolicy:
    """The policy of a new cluster."""
    settings = ScalingSettings(acts=True, ttft_slo_s=2.0, window_s=WINDOW_S)
    return joint_policy(paced_speeds(Pace(), dict.fromkeys(POOLS, TOLD_START_S)), settings)


def simulated(load: Load, run: dict[str, Any], policy: JointPolicy) -> SimulationResult:
    """Simulates the load of a run.

    Args:
        load: The load.
        run: The run on the real controller.
        policy: The policy of the cluster, with everything that it has learnt in the runs before.
    """
    return _played(all_arrivals(load), run["samples"][-1]["at_s"], Pace(), starts_s(run), policy)


def simulate_slow(load: Load, run: dict[str, Any], policy: JointPolicy) -> None:
    """Simulates a load with slow preprocessors, so that the policy learns their speed as in the real run.

    A speed is fixed in a simulation. The times before, while and after the preprocessors are slow are therefore three
    simulations, and each of them begins with one replica in each pool. Their results are not used.
    """
    arrivals = all_arrivals(load)
    slow_s = load.before_s, load.before_s + load.spike_s
    for first_s, last_s, slowness in (
        (0.0, slow_s[0], 1.0),
        (*slow_s, SLOWNESS),
        (slow_s[1], run["samples"][-1]["at_s"], 1.0),
    ):
        part = [one.model_copy(update={"at_s": one.at_s - first_s}) for one in arrivals if first_s <= one.at_s < last_s]
        pace = Pace(pixel_s=Pace().pixel_s * slowness)
        _played(part, last_s - first_s, pace, starts_s(run), policy)


def _played(
    arrivals: list[Arrival], duration_s: float, pace: Pace, starts_s: dict[str, list[float]], policy: JointPolicy
) -> SimulationResult:
    speeds = paced_speeds(pace, mean_starts_s(starts_s))
    sizes = {pool: PoolSize(1, 1, 1 if pool == "router" else MAX_REPLICAS) for pool in POOLS}
    heading = Heading(source="closed loop", seed=0, duration_s=duration_s)
    return simulate(heading, arrivals, speeds, sizes, policy=policy, metric_age_s=METRIC_AGE_S, starts_s=starts_s)


def share_within_one(run: dict[str, Any], result: SimulationResult, pool: str) -> float:
    """The share of the samples of a run at which the simulated target is at most one replica away."""
    ticks = [(tick.at_s, tick.target) for tick in result.ticks if tick.pool == pool]
    deployment = getattr(PrismConfig(), pool).deployment
    close = [
        abs(
            ticks[max(0, bisect_right(ticks, (sample["at_s"], MAX_REPLICAS + 1)) - 1)][1] - sample["target"][deployment]
        )
        <= 1
        for sample in run["samples"]
    ]
    return float(sum(close) / len(close))


def main() -> None:
    """Prints a line for each run, but not for runs with slow preprocessors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    runs = [json.loads(path.read_text()) for path in parser.parse_args().runs.glob("joint-*.json")]
    policy = first_policy()
    for run in sorted(runs, key=lambda run: run["seed"]):
        load = Load.random(run["seed"])
        if run["kind"] == "slow preprocessors":
            simulate_slow(load, run, policy)
            continue
        result = simulated(load, run, policy)
        times = []
        for share in (0.5, 0.95):
            real_s, said_s = quantile((ttft_s for _, ttft_s in run["ttfts"]), share), result.ttft_s(share)
            times.append(f"p{share * 100:.0f} {real_s:.2f} s, simulated {said_s:.2f} s ({said_s / real_s - 1:+.0%})")
        shares = [f"{pool} {share_within_one(run, result, pool):.1%}" for pool in POOLS[1:]]
        print(f"{run['seed']} {run['kind']} x{run['factor']:.1f}:", *times, *shares, sep="  ")  # noqa: T201


if __name__ == "__main__":
    main()
