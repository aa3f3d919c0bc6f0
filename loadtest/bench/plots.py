"""Draws the results: the spread of TTFT, the longest gaps between tokens, and requests per second.

In: the samples and figures of ``results.Record``. Out: one PNG per plot.
"""

from __future__ import annotations

import bisect
import statistics
import textwrap
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench.bars import short
from loadtest.bench.systems import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadtest.bench.bars import Results

COLOURS: Final = {
    "prism": "#7b3fb5",
    "vllm": "#0072b2",
    "ray-serve-llm": "#d55e00",
    "vllm-router": "#009e73",
    "vllm-router-session": "#6e6e6e",
}
"""The colour of each system, the same in every plot. Readers with any common colour blindness can tell them apart."""
PHASES: Final = {"alone": ("text streams alone", "--"), "with pictures": ("the same while pictures arrive", "-")}
"""The label and the line style of each phase of the scenario ``bursts``."""
GREY: Final = "#444444"
LINE_WIDTH: Final = 1.8
TITLE_WIDTH: Final = 38
"""Letters per line of a panel's title, so that neighbouring titles cannot touch."""
SHORTEST_GAP_MS: Final = 0.05
"""Shorter gaps are drawn here, because a logarithmic axis has no zero."""


def draw_ttft(samples_ms: Mapping[str, Mapping[str, Sequence[float]]], titles: Mapping[str, str], file: Path) -> None:
    """Draws one panel per scenario: the share of requests that have their first token by a given time.

    Args:
        samples_ms: Scenario → system → TTFT of every request of every repeat, in milliseconds.
        titles: Scenario → the title of its panel.
        file: The PNG to write.
    """
    figure, panels = _panels(len(samples_ms), height=3.0)
    for panel, (scenario, systems) in zip(panels, samples_ms.items(), strict=True):
        for system, values_ms in systems.items():
            ordered = sorted(values_ms)
            shares = [100 * (rank + 1) / len(ordered) for rank in range(len(ordered))]
            panel.step(ordered, shares, where="post", color=COLOURS[system], label=NAMES[system], linewidth=LINE_WIDTH)
        panel.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
        panel.set(xlabel="time to first token (ms)", ylabel="requests with a first token (%)", ylim=(0, 102))
        panel.set_yticks((0, 25, 50, 75, 100))
        _title(panel, titles[scenario][:1].upper() + titles[scenario][1:])
        _log_time_axis(panel, [value for values_ms in systems.values() for value in values_ms])
    _legend(figure, panels, num_columns=5 if len(panels) > 1 else 2)
    _save(figure, file)


def draw_gaps(gaps_ms: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    """Draws one panel per system: the share of gaps between tokens that are longer than a given time.

    Args:
        gaps_ms: System → phase → every gap of every text stream of every repeat, in milliseconds.
        file: The PNG to write.
    """
    figure, panels = _panels(len(gaps_ms), height=3.2)
    every_ms = [value for phases in gaps_ms.values() for values_ms in phases.values() for value in values_ms]
    for panel, (system, phases) in zip(panels, gaps_ms.items(), strict=True):
        for phase, values_ms in phases.items():
            ordered = sorted(max(value, SHORTEST_GAP_MS) for value in values_ms)
            shares = [100 * (1 - rank / len(ordered)) for rank in range(len(ordered))]
            label, style = PHASES[phase]
            panel.step(
                ordered, shares, where="pre", color=COLOURS[system], linestyle=style, label=label, linewidth=LINE_WIDTH
            )
        panel.set(xlabel="gap between tokens (ms)", yscale="log", ylim=(0.008, 130))
        _title(panel, NAMES[system], colour=COLOURS[system])
        _log_time_axis(panel, [max(value, SHORTEST_GAP_MS) for value in every_ms])
        _plain_numbers(panel.yaxis, (1,))
    panels[0].set_ylabel("gaps that are longer (%)")
    _legend(figure, panels, num_columns=2 if len(panels) > 1 else 1, colour=GREY)
    _save(figure, file)


def draw_rates(results: Results, titles: Mapping[str, str], file: Path) -> None:
    """Draws one panel per scenario: the median of requests per second, with the range over the repeats.

    Args:
        results: Scenario → system → figure → its value in each repeat; ``requests/s`` is drawn.
        titles: Scenario → the title of its panel.
        file: The PNG to write.
    """
    figure, panels = _panels(len(results), height=3.2)
    for panel, (scenario, systems) in zip(panels, results.items(), strict=True):
        for place, (system, figures) in enumerate(systems.items()):
            values = figures["requests/s"]
            middle, top = statistics.median(values), max(values)
            spread = [[middle - min(values)], [top - middle]] if len(values) > 1 else None
            panel.bar(place, middle, yerr=spread, capsize=4, ecolor=GREY, color=COLOURS[system], width=0.62)
            panel.annotate(
                short(middle), (place, top), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=10
            )
        panel.set_xticks(range(len(systems)), [NAMES[system].replace(" by ", "\nby ") for system in systems])
        panel.set(ylabel="requests per second", xlim=(-0.6, len(systems) - 0.4))
        panel.margins(y=0.12)
        panel.tick_params(axis="x", length=0)
        panel.grid(visible=False, axis="x")
        _title(panel, titles[scenario][:1].upper() + titles[scenario][1:])
    if any(len(figures["requests/s"]) > 1 for systems in results.values() for figures in systems.values()):
        figure.supxlabel("Bars: medians over the repeats. Whiskers: their range.", fontsize=8.5, color=GREY)
    _save(figure, file)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    """Makes a figure with this many panels, at most three per row; four panels make two rows of two.

    Args:
        count: How many panels.
        height: The height of a row, in inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num_columns = min(count, 2 if count == 4 else 3)
    num_rows = -(-count // num_columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(max(4.8, 4.0 * num_columns), height * num_rows + 0.4), layout=layout)
    every = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for unused in every[count:]:
        unused.remove()
    for panel in every[:count]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(labelsize=9, color=GREY)
        panel.grid(visible=True, color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
    return figure, every[:count]


def _title(panel: Any, text: str, colour: str = "black") -> None:
    """Writes a panel's title above its left edge, in as many lines as it needs."""
    panel.set_title(textwrap.fill(text, TITLE_WIDTH), loc="left", fontsize=10.5, fontweight="bold", color=colour)


def _legend(figure: Any, panels: Sequence[Any], num_columns: int, colour: str | None = None) -> None:
    """Puts one legend above all panels, with each label once.

    Args:
        figure: The figure that gets the legend.
        panels: The panels whose lines have labels.
        num_columns: How many labels stand next to each other.
        colour: The colour of all lines in the legend; without it they keep the colours of the panels.
    """
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines() if line.get_label()[0] != "_"}
    legend = figure.legend(
        lines.values(), lines.keys(), loc="outside upper center", ncols=num_columns, frameon=False, fontsize=9.5
    )
    if colour:
        for line in legend.get_lines():
            line.set_color(colour)


def _log_time_axis(panel: Any, values_ms: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic; it begins and ends at a tick, so at least two numbers label it."""
    ticks_ms = [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
    low = max(0, bisect.bisect_right(ticks_ms, min(values_ms)) - 1)
    high = min(len(ticks_ms) - 1, bisect.bisect_left(ticks_ms, max(values_ms)))
    panel.set(xscale="log", xlim=(ticks_ms[low], ticks_ms[max(high, low + 1)]))
    num_steps = high - low
    _plain_numbers(panel.xaxis, range(1, 10) if num_steps < 3 else (1, 2, 5) if num_steps < 9 else (1,))


def _plain_numbers(axis: Any, digits: Sequence[int]) -> None:
    """Labels a logarithmic axis with plain numbers, at these multiples of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=tuple(digits)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=180)
