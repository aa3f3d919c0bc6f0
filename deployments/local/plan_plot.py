"""Draws a plan: the price of each configuration against the share of requests that met the goal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from cluster.scaling.planning.catalogue import Catalogue
    from cluster.scaling.planning.plan import Candidate, PlanResult
    from cluster.scaling.simulation.outcomes import LatencyGoal

mpl.use("agg")  # no display is needed

COLOURS: Final = {True: "#1f5fa8", False: "#d1701c"}
WORDS: Final = {True: "split", False: "colocated (not deployable yet)"}
MAX_PRICE: Final = 1.7
"""Configurations that cost more than this multiple of the cheapest are left out, because they would hide the rest."""


def draw(found: PlanResult, catalogue: Catalogue, goal: LatencyGoal, path: Path) -> None:
    """Writes the plot as a PNG file."""
    figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    cheapest = found.cheapest()
    dearest = max(one.price_per_hour for one in found.tried)
    limit = min(dearest, MAX_PRICE * cheapest.price_per_hour) if cheapest else dearest
    for is_split in (True, False):
        kind = [one for one in found.tried if one.layout.is_split is is_split and one.price_per_hour <= limit]
        if kind:
            _draw_kind(axes, kind, found.cheapest(is_split=is_split), limit)
    axes.axhline(100 * goal.share, color="#444444", linewidth=1, linestyle="--")
    corner = (0.005, 100 * goal.share)
    axes.annotate(f"goal {goal.share:.0%}", corner, xycoords=("axes fraction", "data"), va="bottom", fontsize=9)
    axes.set_xlabel("price of all GPUs per hour")
    axes.set_ylabel(f"requests with TTFT ≤ {goal.ttft_s:g} s and ITL ≤ {goal.itl_s * 1000:g} ms (%)")
    axes.set_ylim(0, 104)
    axes.set_title(f"{catalogue.model.name}: one dot for each simulated configuration", fontsize=11, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def _draw_kind(axes: Axes, kind: list[Candidate], best: Candidate | None, limit: float) -> None:
    """Draws all split or all colocated configurations, and a line along the best for each price."""
    kind = sorted(kind, key=lambda one: one.price_per_hour)
    is_split = kind[0].layout.is_split
    colour = COLOURS[is_split]
    prices, shares = [one.price_per_hour for one in kind], [100 * one.attainment for one in kind]
    axes.scatter(prices, shares, color=colour, s=28, alpha=0.5, linewidths=0)
    reached = _reached(kind)
    prices, shares = [one.price_per_hour for one in reached], [100 * one.attainment for one in reached]
    axes.step([*prices, limit], [*shares, shares[-1]], where="post", color=colour, linewidth=2, alpha=0.8)
    words = "no configuration meets the goal"
    if best is not None:
        words = f"cheapest that meets the goal: {best.price_per_hour:.2f} per hour, {_gpus(best)}"
        axes.plot(
            best.price_per_hour,
            100 * best.attainment,
            marker="*",
            markersize=16,
            color=colour,
            markeredgecolor="white",
            linestyle="none",
            zorder=5,
        )
    axes.plot([], [], color=colour, marker="*", markersize=12, linewidth=2, label=f"{WORDS[is_split]}; {words}")


def _gpus(one: Candidate) -> str:
    """The replicas of a configuration and their GPUs, in words."""
    layout, sizes = one.layout, one.sizes
    words = f"{sizes['decoder']} × {layout.tensor_parallel_size} {layout.decoder_gpu}"
    return words + (f" and {sizes['encoder']} × 1 {layout.encoder_gpu}" if layout.encoder_gpu else "")


def _reached(kind: list[Candidate]) -> list[Candidate]:
    """The configurations that reach more than every cheaper one. They are sorted by price."""
    reached: list[Candidate] = []
    for one in kind:
        if not reached or one.attainment > reached[-1].attainment:
            reached.append(one)
    return reached
