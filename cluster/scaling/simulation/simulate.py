"""Simulates a cluster on a schedule, request by request, with the functions that route and scale the live one.

In: a schedule, the speeds of replicas, the sizes of the pools, and maybe a policy. Out: the times of each request, the
pools over time, and GPU-hours. The same arguments give the same result.

The request takes the path of ``docs/path.md``. Routing is ``cluster.routing``, batches are
``cluster.encode.batching``, and sizes are decided by ``cluster.scaling.policy``. The network and the transport of
embeddings take constant times. Deadlines, failures and retries are not simulated. Claims between encoders are known at
once, so a picture is never encoded twice at the same time.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from cluster.config import POOLS, PrismConfig
from cluster.scaling.policy import JointPolicy
from cluster.scaling.readings import ScalingSettings
from cluster.scaling.simulation.outcomes import SimulationResult
from cluster.scaling.simulation.request_path import RequestPath
from cluster.scaling.simulation.simulated import SimulatedCluster
from cluster.scaling.simulation.ticks import METRIC_AGE_S, Ticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cluster.scaling.schedules.schedule import Arrival, Heading
    from cluster.scaling.simulation.replicas import PoolSize
    from cluster.scaling.simulation.sizing import SizingPolicy
    from cluster.scaling.simulation.speeds import Speeds

GRACE_S: Final = 600.0
"""The simulation stops so long after the schedule, even if requests are not done."""


def joint_policy(speeds: Speeds, settings: ScalingSettings | None = None) -> JointPolicy:
    """A new policy with the traits of the live one, which is told the start-up times of these speeds."""
    names = {pool: getattr(PrismConfig(), pool).deployment for pool in POOLS}
    starts_s = {name: max(1.0, speeds.start_s(pool)) for pool, name in names.items()}
    traits = (settings or ScalingSettings()).traits(starts_s)
    return JointPolicy({pool: traits[name] for pool, name in names.items()})


def simulate(
    heading: Heading,
    arrivals: Sequence[Arrival],
    speeds: Speeds,
    sizes: Mapping[str, PoolSize],
    *,
    policy: SizingPolicy | None = None,
    seed: int = 0,
    metric_age_s: float = METRIC_AGE_S,
    starts_s: Mapping[str, Sequence[float]] | None = None,
) -> SimulationResult:
    """Simulates a schedule.

    Args:
        heading: The first line of the schedule.
        arrivals: Its arrivals.
        speeds: The speeds of the replicas.
        sizes: The sizes of the pools ``router``, ``preprocessor``, ``encoder`` and ``decoder``, with their bounds.
        policy: A new policy that decides about the sizes. None: the sizes are fixed.
        seed: The seed of all random choices.
        metric_age_s: The age of the counters that the policy sees, in seconds.
        starts_s: The seconds of the first starts of each pool, where they differ from the speeds.
    """
    cluster = SimulatedCluster(speeds, sizes, random.Random(seed), starts_s)
    requests, ticks = RequestPath(cluster, arrivals, speeds), Ticks(cluster, policy, speeds, metric_age_s)
    requests.start()
    ticks.start()
    duration_s = heading.duration_s
    cluster.clock.run(until_s=duration_s)
    replica_s = {pool.name: pool.replica_s(duration_s) for pool in cluster.pools}
    busy_shares = {pool.name: pool.busy_s() / max(replica_s[pool.name], 1e-9) for pool in cluster.pools}
    cluster.clock.run(until_s=duration_s + GRACE_S, is_done=lambda: requests.num_ended == len(arrivals))
    return SimulationResult(
        duration_s=duration_s,
        requests=requests.outcomes,
        ticks=ticks.noted,
        gpu_hours={pool.name: pool.size.num_gpus * replica_s[pool.name] / 3600 for pool in cluster.pools},
        busy_shares=busy_shares,
        num_pictures_made=cluster.pictures.num_made,
    )
