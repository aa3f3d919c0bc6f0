"""Tables and a plot of the trials that ``tests.helpers.compare_policies`` has run.

In: the results as dicts, as ``sizing_trials.run`` returns them. Out: Markdown, and one PNG.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NUM_RESAMPLES: Final = 2000
COLOURS: Final = {
    "joint": "#7b3fb5",
    "serve": "#d55e00",
    "knative": "#0072b2",
    "fixed": "#6e6e6e",
    "clairvoyant": "#009e73",
}
"""The colour of each policy. Readers with any common colour blindness can tell them apart."""
MARKS: Final = {"joint": "o", "serve": "s", "knative": "^", "fixed": "D", "clairvoyant": "*"}
GPU_HOURS: Final = (6, 8, 10, 15, 20, 30, 50, 90)
"""The marks of the axis of GPU-hours."""
USUAL: Final = (300.0, 1.0)
"""The start of a decoder and the age of the counters outside of the sweep."""


def hours_of(result: Mapping[str, Any]) -> float:
    """The GPU-hours of a result."""
    return float(sum(result["gpu_hours"].values()))


def attainment(results: Sequence[Mapping[str, Any]]) -> float:
    """The share of all requests of these results that met the goal."""
    num_met = sum(one["attainment"] * one["num_requests"] for one in results)
    return float(num_met / sum(one["num_requests"] for one in results))


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """A row for each policy and hour: attainment, GPU-hours, and their ratio to those of the joint policy."""
    by_policy: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
    for one in results:
        if (one["start_s"], one["metric_age_s"]) == USUAL:
            by_policy[one["policy"]][one["hour"], one["seed"]] = one
    lines = [
        "| hour | policy | seeds | within the goal | GPU-hours: decoders, encoders | ratio to the joint policy's |",
        "|---|---|---|---|---|---|",
    ]
    for hours in (("peak",), ("trough",), ("peak", "trough")):
        joint = _by_seed(by_policy["joint"], hours)
        for policy, mine in sorted(by_policy.items(), key=lambda item: (item[0] != "joint", item[0])):
            lines.append(_row(hours, policy, _by_seed(mine, hours), joint))
    return "\n".join(lines)


BySeed: TypeAlias = "dict[int, list[Mapping[str, Any]]]"


def _by_seed(results: Mapping[tuple[str, int], Mapping[str, Any]], hours: Sequence[str]) -> BySeed:
    """The results of these hours by their seeds. Seeds of which one is missing are left out."""
    seeds = sorted({seed for _, seed in results})
    return {
        seed: [results[hour, seed] for hour in hours] for seed in seeds if {(h, seed) for h in hours} <= results.keys()
    }


def _row(hours: Sequence[str], policy: str, mine: BySeed, joint: BySeed) -> str:
    shares = [100 * attainment(some) for some in mine.values()]
    if not shares:
        return f"| {' and '.join(hours)} | {policy} | 0 | – | – | – |"
    spent = [sum(map(hours_of, some)) for some in mine.values()]
    pools = [
        statistics.mean(sum(one["gpu_hours"][pool] for one in some) for some in mine.values())
        for pool in ("decoder", "encoder")
    ]
    shared = sorted(mine.keys() & joint.keys())
    ratio = interval([(sum(map(hours_of, mine[seed])), sum(map(hours_of, joint[seed]))) for seed in shared])
    return (
        f"| {' and '.join(hours)} | {policy} | {len(mine)} | {statistics.mean(shares):.2f} % "
        f"({min(shares):.1f} to {max(shares):.1f}) | {statistics.mean(spent):.2f}: {pools[0]:.2f}, {pools[1]:.2f} "
        f"| {ratio} |"
    )


def interval(pairs: Sequence[tuple[float, float]]) -> str:
    """The ratio of two sums with a 95 % interval: seeds are drawn again and again, with replacement."""
    draw = random.Random(0)
    ratios = []
    for _ in range(NUM_RESAMPLES):
        some = draw.choices(pairs, k=len(pairs))
        ratios.append(sum(mine for mine, _ in some) / sum(theirs for _, theirs in some))
    ratios.sort()
    low, high = ratios[int(0.025 * len(ratios))], ratios[int(0.975 * len(ratios))]
    mean = sum(mine for mine, _ in pairs) / sum(theirs for _, theirs in pairs)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def cells(results: Iterable[Mapping[str, Any]]) -> dict[tuple[float, float], dict[str, tuple[float, float]]]:
    """Attainment and GPU-hours of both hours for each policy, by start and age, outside of the usual ones.

    Seeds of which an hour is missing are left out. GPU-hours are the mean over the seeds.
    """
    found: dict[tuple[float, float, str], dict[tuple[str, int], Mapping[str, Any]]] = defaultdict(dict)
    for one in results:
        if (one["start_s"], one["metric_age_s"]) != USUAL:
            found[one["start_s"], one["metric_age_s"], one["policy"]][one["hour"], one["seed"]] = one
    table: dict[tuple[float, float], dict[str, tuple[float, float]]] = defaultdict(dict)
    for (start_s, age_s, policy), some in sorted(found.items()):
        whole = [one for hours in _by_seed(some, ("peak", "trough")).values() for one in hours]
        if whole:
            table[start_s, age_s][policy] = (attainment(whole), 2 * sum(map(hours_of, whole)) / len(whole))
    return dict(table)


def sweep_table(results: Iterable[Mapping[str, Any]]) -> str:
    """A row for each start and age: attainment and GPU-hours of each policy."""
    found = cells(results)
    policies = sorted({policy for some in found.values() for policy in some}, key=lambda name: (name != "joint", name))
    lines = ["| cold start | age | " + " | ".join(policies) + " |", "|---" * (2 + len(policies)) + "|"]
    for (start_s, age_s), some in found.items():
        row = [f"{100 * some[one][0]:.1f} %, {some[one][1]:.1f}" if one in some else "–" for one in policies]
        lines.append(f"| {start_s:g} s | {age_s:g} s | " + " | ".join(row) + " |")
    return "\n".join(lines)


def draw(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws attainment over GPU-hours: each hour of the test with the settings that were tried, and the sweep."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    for panel, hour in zip(panels, ("peak", "trough"), strict=False):
        _draw_hour(panel, [one for one in results if one["hour"] == hour], hour)
    _draw_sweep(panels[2], cells([one for one in results if one["half"] == "test"]))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=len(COLOURS))
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _draw_hour(panel: Any, results: Sequence[Mapping[str, Any]], hour: str) -> None:
    for kind, colour in COLOURS.items():
        usual = [
            one
            for one in results
            if one["policy"].split()[0] == kind and (one["start_s"], one["metric_age_s"]) == USUAL
        ]
        tuning = [one for one in usual if one["half"] == "tuning"]
        test = [one for one in usual if one["half"] == "test"]
        for some, size, alpha in ((tuning, 14, 0.35), (test, 34, 0.9)):
            panel.scatter(
                [hours_of(one) for one in some],
                [100 * one["attainment"] for one in some],
                s=size,
                color=colour,
                alpha=alpha,
                marker=MARKS[kind],
                linewidths=0,
                zorder=4 if kind == "joint" else 3,
                label=kind if some is test else None,
            )
    panel.set(
        xscale="log",
        xlabel="GPU-hours",
        ylabel="requests within the goal (%)",
        title=f"{hour}; small and pale: tuning half, all settings",
    )
    panel.set_xticks(GPU_HOURS, [str(one) for one in GPU_HOURS])
    panel.minorticks_off()
    panel.grid(alpha=0.25)


def _draw_sweep(panel: Any, found: Mapping[tuple[float, float], Mapping[str, tuple[float, float]]]) -> None:
    """Draws attainment over the start of a decoder, with a line style for each age of the counters."""
    ages = sorted({age_s for _, age_s in found})
    for age_s, style in zip(ages, ("-", "--", ":"), strict=False):
        for kind in ("joint", "serve", "knative"):
            points = [
                (start_s, 100 * share)
                for (start_s, age), some in found.items()
                if age == age_s
                for policy, (share, _) in some.items()
                if policy.split()[0] == kind
            ]
            if not points:
                continue
            panel.plot(
                [start_s for start_s, _ in points],
                [share for _, share in points],
                style,
                color=COLOURS[kind],
                marker=MARKS[kind],
                markersize=4,
                label=f"{kind}, counters {age_s:g} s old",
            )
    panel.set(
        xscale="log", xlabel="start of a decoder (s)", ylabel="requests within the goal (%)", title="both hours; sweep"
    )
    starts = sorted({start_s for start_s, _ in found})
    if starts:
        panel.legend(fontsize=8)
        panel.set_xticks(starts, [f"{one:g}" for one in starts])
        panel.minorticks_off()
    panel.grid(alpha=0.25)
