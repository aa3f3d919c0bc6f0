"""Tables of latencies, and the comparison of two clients."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LATENCIES: Final = ("TTFT", "TTFT scheduled", "ICL", "ITL", "Lag")
NOT_REQUESTS: Final = (*LATENCIES, "Refused", "Unfinished")
"""Types of rows in Locust's statistics that its total does not count."""
COMPARED: Final = ("TTFT", "ICL")
MAX_LAG_MS: Final = 10.0
"""A run with a 99th percentile of the lag above this is void, because the load was not the schedule's."""
PERCENTILES: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Row:
    """One latency of one kind of chat: how many values there are, and their percentiles in milliseconds."""

    latency: str
    name: str
    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def from_times(cls, latency: str, name: str, times_s: Iterable[float]) -> Row:
        """The row for these times, in seconds; there must be at least one."""
        ordered = sorted(times_s)
        return cls(latency, name, len(ordered), *(percentile(ordered, part) * 1000 for part in PERCENTILES))


def percentile(ordered: Sequence[float], part: float) -> float:
    """The percentile of sorted values, by nearest rank as in Locust.

    Args:
        ordered: The values in ascending order, at least one.
        part: The share of values below the result, from 0 to 1.
    """
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def table(rows: Iterable[Row]) -> str:
    """The rows as a text table, in milliseconds with two decimals, which Locust's own tables cut off."""
    lines = [f"{'ms':<15}{'':<20}{'count':>9}{'p50':>10}{'p90':>10}{'p99':>10}"]
    lines += [
        f"{row.latency:<15}{row.name:<20}{row.count:>9}{row.p50_ms:>10.2f}{row.p90_ms:>10.2f}{row.p99_ms:>10.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def locust_medians_ms(path: Path) -> dict[tuple[str, str], float]:
    """The medians in Locust's ``…_stats.csv``, by type and name.

    They come from the column "Median Response Time", because the column "50%" has no decimals.
    """
    with path.open(newline="") as file:
        return {(row["Type"], row["Name"]): float(row["Median Response Time"]) for row in csv.DictReader(file)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of comparing two clients, with a line of text for each figure that was compared."""

    agree: bool
    text: str


def compare(rows: Iterable[Row], medians_ms: dict[tuple[str, str], float], tolerance: float) -> Agreement:
    """Compares the probe's medians of TTFT and ICL with Locust's, for each kind of chat.

    If only one of the clients has a figure, the clients do not agree.

    Args:
        rows: The probe's latencies.
        medians_ms: Locust's medians, by type and name.
        tolerance: How far a median may be from Locust's, as a fraction of Locust's.
    """
    ours_ms = {(row.latency, row.name): row.p50_ms for row in rows if row.latency in COMPARED}
    theirs_ms = {key: value for key, value in medians_ms.items() if key[0] in COMPARED}
    agree = bool(ours_ms)
    lines = []
    for latency, name in sorted(ours_ms.keys() | theirs_ms.keys()):
        ours, theirs = ours_ms.get((latency, name)), theirs_ms.get((latency, name))
        if ours is None or theirs is None:
            agree = False
            lines.append(f"{latency:<15}{name:<20}only the {'probe' if theirs is None else 'Locust run'} has it")
            continue
        close = abs(ours - theirs) <= tolerance * theirs
        agree &= close
        change = f"{ours / theirs - 1:+.1%}" if theirs else "n/a"
        verdict = "agree" if close else "DIFFER"
        lines.append(f"{latency:<15}{name:<20}Locust {theirs:.2f} ms, probe {ours:.2f} ms, {change}: {verdict}")
    return Agreement(agree, "\n".join(lines))
