"""Writes the report of a verdict: one HTML page that needs no other file, with the table and plots of the run."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from loadtest.judgement import times_s
from loadtest.report import MAX_LAG_MS
from loadtest.slo import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from loadtest.judgement import Verdict
    from loadtest.records import RecordedRun, RequestRecord
    from loadtest.slo import Slo

COLOURS: Final = {
    "text": "#0072b2",
    "new picture": "#d55e00",
    "seen picture": "#009e73",
    "later turn": "#7b3fb5",
    "answered": "#0072b2",
    "refused": "#e69f00",
    "failed": "#c00000",
    "unfinished": "#6e6e6e",
}
"""Colours of kinds and outcomes. Readers with any common colour blindness can tell the kinds apart."""
MARKS: Final = {"refused": "v", "failed": "x", "unfinished": "|"}
NAMES: Final = {
    "ttft_s": "TTFT",
    "itl_s": "ITL",
    "icl_s": "ICL",
    "latency_s": "latency",
}
GREY: Final = "#444444"
NUM_BINS: Final = 60
SHORTEST_BIN_S: Final = 0.25
ROW_FACTOR: Final = 1.6
"""Requests without an answer are drawn in rows above the slowest answer, each so many times as high."""
SHORTEST_S: Final = 1e-4
"""Shorter times are drawn here, because a logarithmic axis has no zero."""
STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
th, td { text-align: right; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } img { width: 100% } pre { white-space: pre-wrap }
.held { color: #00703c } .broken { color: #c00000; font-weight: 600 }
"""


def write_page(file: Path, run: RecordedRun, slo: Slo, verdict: Verdict) -> None:
    """Writes the page.

    Args:
        file: The HTML file to write.
        run: The records.
        slo: The objectives; the plots show their limits.
        verdict: The judgement.
    """
    rows = "".join(
        f"<tr><td>{escape(line.name)}</td><td>{escape(line.limit)}</td><td>{escape(line.found)}</td>"
        f"<td class={'held>held' if line.is_held else 'broken>broken'}</td></tr>"
        for line in verdict.lines
    )
    title = ("All objectives are met", "An objective is not met", "The run is void")[verdict.code]
    void = f"<p class=broken>{escape(verdict.void)}</p>" if verdict.void else ""
    images = "".join(
        f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in plots(run.records, slo)
    )
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1 class={'held' if verdict.code == 0 else 'broken'}>{title}</h1>{void}"
        f"<pre>{escape(chr(10).join(verdict.summary))}</pre>"
        f"<table><tr><th></th><th>limit</th><th>found</th><th></th></tr>{rows}</table>{images}</html>\n"
    )


def plots(records: Sequence[RequestRecord], slo: Slo) -> Iterator[tuple[str, bytes]]:
    """Yields the title and the PNG of each plot."""
    if not records:
        return
    yield "Time to first token, by the time of arrival", _first_tokens(records, slo)
    yield "Arrivals and requests in flight", _load(records)
    yield "Answers within a given time", _shares(records, slo)
    yield "Lag: from the scheduled time to sending", _lags(records)


def in_flight(records: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    """The number of requests in flight over time.

    Returns:
        The times at which it changes, in seconds, and the number from each time on.
    """
    changes = sorted([(one.at_s + one.lag_s, 1) for one in records] + [(one.end_s, -1) for one in records])
    counts, count = [], 0
    for _, change in changes:
        count += change
        counts.append(count)
    return [at_s for at_s, _ in changes], counts


def _first_tokens(records: Sequence[RequestRecord], slo: Slo) -> bytes:
    figure, [panel] = _panels(1, height=3.6)
    for kind in sorted({record.kind for record in records}):
        found = [
            (one.at_s, max(one.ttft_s, SHORTEST_S)) for one in records if one.kind == kind and one.ttft_s is not None
        ]
        if found:
            panel.plot(*zip(*found, strict=True), ".", markersize=4, alpha=0.6, color=COLOURS.get(kind), label=kind)
    row_s = max((one.ttft_s for one in records if one.ttft_s is not None), default=1.0)
    for outcome, mark in MARKS.items():
        row_s *= ROW_FACTOR
        at_s = [record.at_s for record in records if record.outcome == outcome]
        if at_s:
            panel.plot(at_s, [row_s] * len(at_s), mark, markersize=5, color=COLOURS[outcome], label=outcome)
    for (name, level), limit_s in slo.percentiles_s.items():
        if name == "ttft_s":
            _limit(panel, f"limit of {level}", limit_s)
    panel.set(xlabel="scheduled time (s)", ylabel="TTFT (s)", yscale="log")
    _plain_numbers(panel.yaxis)
    _legend(panel)
    return _png(figure)


def _load(records: Sequence[RequestRecord]) -> bytes:
    figure, [arrivals, flight] = _panels(2, height=3.2)
    last_s = max(record.at_s for record in records)
    width_s = max(last_s / NUM_BINS, SHORTEST_BIN_S)
    below = [0.0] * (NUM_BINS + 1)
    for outcome in ("answered", *MARKS):
        rates = [0.0] * (NUM_BINS + 1)
        for record in records:
            if record.outcome == outcome:
                rates[min(int(record.at_s / width_s), NUM_BINS)] += 1 / width_s
        if any(rates):
            starts_s = [number * width_s for number in range(NUM_BINS + 1)]
            arrivals.bar(starts_s, rates, width_s, below, align="edge", color=COLOURS[outcome], label=outcome)
            below = [low + high for low, high in zip(below, rates, strict=True)]
    arrivals.set(xlabel="scheduled time (s)", ylabel="arrivals per second")
    _legend(arrivals)
    flight.step(*in_flight(records), where="post", color=COLOURS["answered"], linewidth=1.2)
    flight.set(xlabel="time (s)", ylabel="requests in flight", ylim=(0, None))
    return _png(figure)


def _shares(records: Sequence[RequestRecord], slo: Slo) -> bytes:
    figure, panels = _panels(4, height=2.9)
    for panel, name in zip(panels, ("ttft_s", "itl_s", "icl_s", "latency_s"), strict=True):
        unit, scale = ("ms", 1000) if name in ("itl_s", "icl_s") else ("s", 1)
        ordered = [max(value, SHORTEST_S) * scale for value in times_s(records, name)]
        shares = [100 * (rank + 1) / len(ordered) for rank in range(len(ordered))]
        panel.step(ordered, shares, where="post", color=COLOURS["answered"], linewidth=1.6)
        for (limited, level), limit_s in slo.percentiles_s.items():
            if limited == name:
                corner = (limit_s * scale, 100 * LEVELS[level])
                panel.plot(*corner, "D", color=COLOURS["failed"], markersize=5)
                panel.annotate(level, corner, (6, -4), textcoords="offset points", fontsize=8.5, va="top")
        noun = "gaps" if name == "icl_s" else "answers"
        panel.set(xlabel=f"{NAMES[name]} ({unit})", ylabel=f"{noun} within it (%)", xscale="log", ylim=(0, 104))
        _plain_numbers(panel.xaxis)
    figure.supxlabel("Diamonds: limits. The line must be above or left of them.", fontsize=8.5, color=GREY)
    return _png(figure)


def _lags(records: Sequence[RequestRecord]) -> bytes:
    figure, [panel] = _panels(1, height=2.6)
    lags_ms = [max(record.lag_s * 1000, 0.01) for record in records]
    panel.plot([record.at_s for record in records], lags_ms, ".", markersize=4, alpha=0.6, color=COLOURS["text"])
    _limit(panel, "limit of p99", MAX_LAG_MS)
    panel.set(xlabel="scheduled time (s)", ylabel="lag (ms)", yscale="log")
    _plain_numbers(panel.yaxis)
    return _png(figure)


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    """Makes a figure with this many panels, two per row.

    Args:
        count: How many panels.
        height: The height of a row, in inches.
    """
    from matplotlib.figure import Figure

    num_columns = min(count, 2)
    num_rows = math.ceil(count / num_columns)
    figure = Figure(figsize=(10, height * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(labelsize=9, color=GREY)
        panel.grid(visible=True, color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
    return figure, panels


def _limit(panel: Any, name: str, value: float) -> None:
    """Draws a horizontal line with its name above its right end."""
    panel.axhline(value, color=GREY, linewidth=0.9, linestyle="--")
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    panel.annotate(name, (1.0, value), (0, 2), fontsize=8.5, bbox=behind, **place)


def _legend(panel: Any) -> None:
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=7, frameon=False, fontsize=9)


def _plain_numbers(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()
