"""The cheapest sizes of a pool for work that is known beforehand, by dynamic programming.

A pool needs its load, which is the number of replicas that would be busy all the time, and a reserve of ``reserve``
times its square root. The plan pays for each running replica, for the whole time of each start, and for each drain. It
may have fewer replicas than it needs, at a price, so that no replica starts for a short burst. No policy can know
the work beforehand, so such a plan shows how much there is to gain. It is no strict bound: the load of a step is a
mean, and queues inside a step are left to the reserve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.scaling.schedules.schedule import Arrival
    from cluster.scaling.simulation.speeds import Speeds


@dataclass(frozen=True, slots=True)
class SizeCosts:
    """The costs of a plan, in seconds of one replica.

    Args:
        start_s: A start. No replica can run before a first start has ended, except those of the first step.
        drain_s: A drain.
        shortage_price: One second in which one replica is missing. Infinity allows no shortage.
    """

    start_s: float
    drain_s: float = 0.0
    shortage_price: float = math.inf


def loads(arrivals: Sequence[Arrival], speeds: Speeds, duration_s: float, step_s: float) -> dict[str, list[float]]:
    """The load of the decoders and the encoders in each step: the replicas that would be busy all the time.

    A decoder is busy while it prefills new tokens, and an encoder while it encodes. The work counts at its arrival.
    A picture that is sent twice counts twice, as if nothing were kept.
    """
    num_steps = math.ceil(duration_s / step_s)
    found = {"decoder": [0.0] * num_steps, "encoder": [0.0] * num_steps}
    decoder_share, encoder_share = 1 / speeds.decoder.prefill_tokens_per_s / step_s, speeds.encoder.patch_s / step_s
    for one in arrivals:
        step = min(num_steps - 1, int(one.at_s // step_s))
        pixels = [picture.width * picture.height for picture in one.pictures]
        num_tokens = one.text_tokens + sum(map(speeds.processor.num_tokens, pixels))
        found["decoder"][step] += num_tokens * decoder_share
        found["encoder"][step] += sum(map(speeds.processor.num_patches, pixels)) * encoder_share
    return found


def needs(load: Sequence[float], reserve: float, max_replicas: int) -> list[int]:
    """The replicas that a pool needs in each step: its load, and a reserve of this multiple of its square root."""
    return [max(1, min(max_replicas, math.ceil(one + reserve * math.sqrt(one)))) for one in load]


def cheapest(needed: Sequence[int], step_s: float, costs: SizeCosts) -> list[int]:
    """The cheapest number of running replicas in each step.

    Args:
        needed: The replicas that the pool needs in each step.
        step_s: The seconds of one step.
        costs: The costs.
    """
    sizes = range(1, max(needed) + 1)

    def cost(size: int, need: int) -> float:
        missing = max(0, need - size)
        return step_s * (size + (missing * costs.shortage_price if missing else 0.0))

    total = {size: cost(size, needed[0]) for size in sizes}
    choices: list[dict[int, int]] = []
    for step, need in enumerate(needed[1:], 1):
        can_grow = step * step_s >= costs.start_s
        before = _best_before(total, costs, can_grow=can_grow)
        total = {size: cost_before + cost(size, need) for size, (cost_before, _) in before.items()}
        choices.append({size: best for size, (_, best) in before.items()})
    plan = [min(sizes, key=lambda size: total[size])]
    for choice in reversed(choices):
        plan.append(choice[plan[-1]])
    return plan[::-1]


def _best_before(total: dict[int, float], costs: SizeCosts, *, can_grow: bool) -> dict[int, tuple[float, int]]:
    """The cheapest way to reach each size: the cost so far with the change of size, and the size before."""
    found = {}
    for size in total:
        options = []
        for before, cost in total.items():
            if before >= size:
                options.append((cost + (before - size) * costs.drain_s, before))
            elif can_grow:
                options.append((cost + (size - before) * costs.start_s, before))
        found[size] = min(options)
    return found
