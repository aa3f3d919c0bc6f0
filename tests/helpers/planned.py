"""A small catalogue with round figures, and loads for tests of the planner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scaling.planning.catalogue import Catalogue, EfficiencyShares, GpuKind, ModelFigures
from cluster.scaling.schedules.synthetic import Sizes, SyntheticLoad, synthetic

if TYPE_CHECKING:
    from cluster.scaling.schedules.schedule import Arrival, Heading

MODEL: Final = ModelFigures(
    name="round",
    source="a test",
    weight_bytes=10e9,
    flops_per_token=10e9,
    kv_bytes_per_token=100_000,
    num_layers=10,
    hidden_size=1000,
    tower_flops_per_patch=1e9,
    tower_bytes=1e9,
)
SHARES: Final = EfficiencyShares(
    source="a test", tower=0.5, prefill=0.5, memory=0.5, gpu_memory_utilization=0.9, reserved_bytes=1e9
)
LARGE: Final = GpuKind(
    source="a test",
    memory_bytes=40e9,
    memory_bytes_per_s=2e12,
    flops_per_s=200e12,
    link_bytes_per_s=400e9,
    price_per_hour=4.0,
)
SMALL: Final = GpuKind(
    source="a test",
    memory_bytes=2.2e9,
    memory_bytes_per_s=200e9,
    flops_per_s=100e12,
    link_bytes_per_s=40e9,
    price_per_hour=0.5,
)


def catalogue(*, tower_flops_per_patch: float = 1e9, small_price: float = 0.5) -> Catalogue:
    """Returns a catalogue in which a small GPU has half the arithmetic of a large one, at an eighth of its price. A
    small GPU has room for the tower but not for the language model."""
    model = MODEL.model_copy(update={"tower_flops_per_patch": tower_flops_per_patch})
    small = SMALL.model_copy(update={"price_per_hour": small_price})
    return Catalogue(model=model, efficiency=SHARES, gpus={"large": LARGE, "small": small})


def pictures(rate_per_s: float, duration_s: float = 30.0) -> tuple[Heading, list[Arrival]]:
    """Returns a steady load of requests with one picture each."""
    sizes = Sizes(text_tokens=50, output_tokens=20, megapixels=0.3)
    made, arrivals = synthetic(SyntheticLoad(duration_s, rate_per_s, weights={"picture": 1}, sizes=sizes), 0)
    return made, list(arrivals)
