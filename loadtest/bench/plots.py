"""Draws the results: distributions of TTFT, gaps between tokens as tails, requests per second as bars."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadtest.bench.bars import Results

COLOURS: Final = {
    "prism": "#7b3fb5",
    "vllm": "#2a7fb8",
    "ray-serve-llm": "#d9822b",
    "vllm-router": "#2a7fb8",
    "vllm-router-session": "#6fb1d6",
}


def draw_ttft(samples_ms: Mapping[str, Mapping[str, Sequence[float]]], titles: Mapping[str, str], file: Path) -> None:
    """One panel per workload: the part of requests whose first token had come by then.

    Args:
        samples_ms: Workload → system → TTFT of every request of every repeat.
    """
    figure, panels = _panels(len(samples_ms), height=3.9)
    for panel, (workload, systems) in zip(panels, samples_ms.items(), strict=True):
        for system, values_ms in systems.items():
            ordered = sorted(values_ms)
            parts = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
            panel.step(ordered, parts, where="post", color=COLOURS[system], label=system, linewidth=1.8)
        panel.set(title=titles[workload], xlabel="TTFT, ms", ylim=(0, 1.02), xscale="log")
        _plain_log_ticks(panel.xaxis)
        panel.grid(visible=True, which="both", alpha=0.25)
    panels[0].set_ylabel("part of requests")
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    _save(figure, file)


def draw_gaps(gaps_ms: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    """One panel per system: the part of gaps longer than that, with and without pictures.

    Args:
        gaps_ms: System → phase → every gap of every text stream of every repeat.
    """
    figure, panels = _panels(len(gaps_ms), height=3.6)
    for panel, (system, phases) in zip(panels, gaps_ms.items(), strict=True):
        for phase, values_ms in phases.items():
            ordered = sorted(max(value, 0.05) for value in values_ms)
            parts = [1 - rank / len(ordered) for rank in range(len(ordered))]
            dashes = "--" if phase == "alone" else "-"
            panel.step(
                ordered, parts, where="post", color=COLOURS[system], linestyle=dashes, label=phase, linewidth=1.8
            )
        panel.set(title=system, xlabel="gap between tokens, ms", xscale="log", yscale="log", ylim=(1e-4, 1.2))
        _plain_log_ticks(panel.xaxis)
        panel.grid(visible=True, which="major", alpha=0.25)
        panel.legend(loc="upper right", fontsize=9)
    low = min(panel.get_xlim()[0] for panel in panels)
    high = max(panel.get_xlim()[1] for panel in panels)
    for panel in panels:
        panel.set_xlim(low, high)
    panels[0].set_ylabel("part of gaps that are longer")
    _save(figure, file)


def draw_rates(results: Results, titles: Mapping[str, str], file: Path) -> None:
    """One panel per workload: requests per second, the median with its range."""
    figure, panels = _panels(len(results), height=3.4)
    for panel, (workload, systems) in zip(panels, results.items(), strict=True):
        for place, (system, figures) in enumerate(systems.items()):
            values = figures["requests/s"]
            middle = statistics.median(values)
            spread = [[middle - min(values)], [max(values) - middle]] if len(values) > 1 else None
            panel.bar(place, middle, yerr=spread, capsize=5, color=COLOURS[system], width=0.65)
            panel.annotate(
                f"{middle:.3g}", (place, 0), ha="center", va="bottom", color="white", fontweight="bold", fontsize=10
            )
        panel.set_xticks(
            range(len(systems)), [name.replace("-session", "\nby session") for name in systems], fontsize=8.5
        )
        panel.set_title(titles[workload], fontsize=10)
        panel.grid(visible=True, axis="y", alpha=0.25)
    panels[0].set_ylabel("requests/s")
    _save(figure, file)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.6, 3.9 * count), height), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
        panel.set_axisbelow(True)
    return figure, list(panels)


def _plain_log_ticks(axis: Any) -> None:
    """Whole numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=150)
