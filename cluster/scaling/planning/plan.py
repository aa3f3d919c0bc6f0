"""Plans a cluster: searches for the cheapest sizes of the pools that meet a goal on a schedule.

In: a schedule, a goal, and a catalogue of GPUs. Out: every configuration that was simulated, with its cost and the
share of requests that met the goal.

For each layout of GPUs the search starts with the sizes that the load needs at least. While the goal is missed, the
pool in which late requests waited longest grows. Then GPU pools shrink again, one replica at a time, as long as the
goal is met. A layout whose least cost is higher than the best of its kind, split or colocated, is not simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.checkpoint import ProcessorSettings
from cluster.scaling.planning.load import ScheduleLoad
from cluster.scaling.planning.roofline import Layout, kv_tokens, speeds_of
from cluster.scaling.simulation.replicas import PoolSize
from cluster.scaling.simulation.simulate import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cluster.scaling.planning.catalogue import Catalogue
    from cluster.scaling.schedules.schedule import Arrival, Heading
    from cluster.scaling.simulation.outcomes import LatencyGoal
    from cluster.scaling.simulation.speeds import Speeds

TENSOR_PARALLEL_SIZES: Final = (1, 2, 4, 8)
GROWTH: Final = 1.3
"""A pool that makes requests late grows by this factor, and by one replica at least."""
LEAST_GAIN: Final = 0.002
"""If a larger pool raises the share of requests by less, twice in a row, more replicas do not help."""
MAX_CPU_LOAD: Final = 0.5
"""The share of the time that Routers and preprocessors work at first. They cost little next to GPUs."""
MAX_REPLICAS: Final = 200
COSTS_MORE: Final = "it costs more than the best of its kind"
"""The reason for which a layout is left out whose least sizes cost too much."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that was simulated.

    Args:
        layout: The GPUs of the replicas.
        sizes: The replicas of each pool.
        price_per_hour: The price of all GPUs for one hour.
        attainment: The share of requests that met the goal.
        ttft_s: The time to the first token that the wanted share of requests did not exceed.
        itl_s: The mean time between tokens that the wanted share of requests did not exceed.
        binding_pool: The pool that made requests late, or the busiest one if the goal is met by all.
        is_met: Whether the goal is met.
    """

    layout: Layout
    sizes: Mapping[str, int]
    price_per_hour: float
    attainment: float
    ttft_s: float
    itl_s: float
    binding_pool: str
    is_met: bool


@dataclass(slots=True)
class PlanResult:
    """All that a search has found.

    Args:
        tried: Every configuration that was simulated.
        best: For each layout that was searched its cheapest configuration that meets the goal, or otherwise the one
            that comes nearest.
        left_out: The layouts that were not searched, with the reason.
    """

    tried: list[Candidate] = field(default_factory=list)
    best: list[Candidate] = field(default_factory=list)
    left_out: dict[Layout, str] = field(default_factory=dict)

    def cheapest(self, *, is_split: bool | None = None) -> Candidate | None:
        """The cheapest configuration that meets the goal: of all, of the split ones, or of the colocated ones."""
        met = [one for one in self.best if one.is_met and is_split in (None, one.layout.is_split)]
        return min(met, key=lambda one: one.price_per_hour, default=None)


def plan(
    heading: Heading,
    arrivals: Sequence[Arrival],
    catalogue: Catalogue,
    goal: LatencyGoal,
    *,
    progress: Callable[[Layout], None] = lambda _: None,
) -> PlanResult:
    """Searches all layouts of a catalogue for the cheapest sizes that meet a goal. The same arguments give the same.

    Args:
        heading: The first line of the schedule.
        arrivals: Its arrivals. An hour takes some seconds for each configuration, so take the busiest part.
        catalogue: The model and the kinds of GPUs.
        goal: The goal.
        progress: Is told each layout before it is searched.
    """
    load, found = ScheduleLoad.of(heading, arrivals, ProcessorSettings()), PlanResult()
    layouts = [
        Layout(decoder_gpu, num_gpus, encoder_gpu)
        for decoder_gpu in catalogue.gpus
        for num_gpus in TENSOR_PARALLEL_SIZES
        for encoder_gpu in (*catalogue.gpus, None)
    ]
    searches = []
    for layout in layouts:
        if reason := _unfit(catalogue, layout, load, goal):
            found.left_out[layout] = reason
        else:
            searches.append(_Search(heading, arrivals, catalogue, goal, layout, load))
    for search in sorted(searches, key=lambda one: one.price_per_hour(one.least)):
        layout, least_price = search.layout, search.price_per_hour(search.least)
        known = found.cheapest(is_split=layout.is_split)
        if known is not None and least_price >= known.price_per_hour:
            found.left_out[layout] = COSTS_MORE
            continue
        progress(layout)
        found.best.append(search.run(math.inf if known is None else known.price_per_hour))
        found.tried += search.tried
    return found


def _unfit(catalogue: Catalogue, layout: Layout, load: ScheduleLoad, goal: LatencyGoal) -> str:
    """The reason for which no number of replicas of a layout can do, or an empty text."""
    room_tokens, needed_bytes = kv_tokens(catalogue, layout), catalogue.model.tower_bytes
    if room_tokens <= 0:
        return "the weights do not fit"
    needed_bytes += catalogue.efficiency.reserved_bytes
    if layout.encoder_gpu is not None and catalogue.gpus[layout.encoder_gpu].memory_bytes < needed_bytes:
        return "the tower does not fit"
    if room_tokens < load.longest_tokens:
        return f"its KV cache has room for {room_tokens:,} tokens, and a request has {load.longest_tokens:,}"
    step_s = speeds_of(catalogue, layout, load.context_tokens).decoder.step_s
    return f"a step takes {step_s * 1000:.0f} ms" if step_s > goal.itl_s else ""


class _Search:
    """The search for the sizes of one layout. ``least`` has the sizes that the load needs at least."""

    def __init__(
        self,
        heading: Heading,
        arrivals: Sequence[Arrival],
        catalogue: Catalogue,
        goal: LatencyGoal,
        layout: Layout,
        load: ScheduleLoad,
    ) -> None:
        self._heading: Final = heading
        self._arrivals: Final = arrivals
        self._catalogue: Final = catalogue
        self._goal: Final = goal
        self.layout: Final = layout
        self._speeds: Final = speeds_of(catalogue, layout, load.context_tokens)
        self.least: Final = _least(self._speeds, load)
        self.tried: Final[list[Candidate]] = []

    def price_per_hour(self, sizes: Mapping[str, int]) -> float:
        """The price of all GPUs for one hour."""
        layout, gpus = self.layout, self._catalogue.gpus
        decoders = sizes["decoder"] * layout.tensor_parallel_size * gpus[layout.decoder_gpu].price_per_hour
        return decoders + (sizes["encoder"] * gpus[layout.encoder_gpu].price_per_hour if layout.encoder_gpu else 0.0)

    def run(self, known_price: float) -> Candidate:
        """Finds the cheapest sizes that meet the goal.

        Args:
            known_price: The price of a configuration of another layout. The search ends when it costs as much.
        """
        grown = self._grow(known_price)
        return self._shrink(grown) if grown.is_met else grown

    def _grow(self, known_price: float) -> Candidate:
        best = now = self._try(self.least)
        num_useless = 0
        while not now.is_met and num_useless < 2:
            sizes = dict(now.sizes)
            pool = now.binding_pool
            sizes[pool] = max(sizes[pool] + 1, math.ceil(GROWTH * sizes[pool]))
            if sizes[pool] > MAX_REPLICAS or self.price_per_hour(sizes) >= known_price:
                break
            now = self._try(sizes)
            num_useless = num_useless + 1 if now.attainment < best.attainment + LEAST_GAIN else 0
            best = max(best, now, key=lambda one: one.attainment)
        return now if now.is_met else best

    def _shrink(self, best: Candidate) -> Candidate:
        """Takes replicas away from the GPU pools as long as the goal is met, from the dearer pool first."""
        for pool in ("decoder", "encoder"):
            while best.sizes[pool] > max(1, self.least[pool]):
                smaller = self._try({**best.sizes, pool: best.sizes[pool] - 1})
                if not smaller.is_met:
                    break
                best = smaller
        return best

    def _try(self, sizes: Mapping[str, int]) -> Candidate:
        pools = {pool: PoolSize(number) for pool, number in sizes.items()}
        result = simulate(self._heading, self._arrivals, self._speeds, pools)
        attainment, share = result.attainment(self._goal), self._goal.share
        self.tried.append(
            Candidate(
                layout=self.layout,
                sizes=sizes,
                price_per_hour=self.price_per_hour(sizes),
                attainment=attainment,
                ttft_s=result.ttft_s(share),
                itl_s=result.itl_s(share),
                binding_pool=result.binding_pool(self._goal),
                is_met=attainment >= share,
            )
        )
        return self.tried[-1]


def _least(speeds: Speeds, load: ScheduleLoad) -> dict[str, int]:
    """The replicas that a load needs at least: those of GPU pools would work all the time."""
    router, preprocessor, decoder = speeds.router, speeds.preprocessor, speeds.decoder
    is_split = decoder.tower_patch_s is None
    tower_s = load.patches * (decoder.tower_patch_s or 0.0)
    pictures_s = load.sent_pictures * router.picture_s + load.sent_pixels * router.pixel_s
    router_s = load.requests * router.request_s + pictures_s + load.output_tokens * router.token_s
    prepare_s = load.pictures * preprocessor.picture_s + load.pixels * preprocessor.pixel_s
    prefill_s = load.new_tokens / decoder.prefill_tokens_per_s
    return {
        "router": math.ceil(router_s / MAX_CPU_LOAD) + 1,
        "preprocessor": math.ceil(prepare_s / MAX_CPU_LOAD) + 1,
        "encoder": max(1, math.ceil(load.patches * speeds.encoder.patch_s)) if is_split else 0,
        "decoder": max(1, math.ceil(prefill_s + tower_s)),
    }
