"""Medians and ranges over repeats, and whether the issue's bars hold."""

from __future__ import annotations

import operator
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Cell = tuple[str, str, str]
"""Workload, system and figure."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Workload → system → figure → its value in each repeat."""

HOLDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"≤": operator.le, "≥": operator.ge, "<": operator.lt}
COMBINE: Final[Mapping[str, Callable[[float, float], float]]] = {"−": operator.sub, "÷": operator.truediv}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must be, alone or beside another; medians over the repeats stand for both.

    Args:
        number: The row of the issue's table.
        how: ``−`` or ``÷``: what is done with ``beside``.
        sense: ``≤``, ``≥`` or ``<``.
    """

    number: int
    figure: Cell
    sense: str
    limit: float
    how: str = ""
    beside: Cell | None = None

    @property
    def text(self) -> str:
        """The bar in words."""
        workload, system, figure = self.figure
        first = f"{workload}: {figure}, {system}"
        if self.beside is None:
            return f"{first} {self.sense} {self.limit:g}"
        names = [name for name, other in zip(self.beside, self.figure, strict=True) if name != other]
        return f"{first} {self.how} {', '.join(names)} {self.sense} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class BarResult:
    """What became of a bar; ``value`` and ``holds`` are None where something was not measured."""

    bar: Bar
    value: float | None
    holds: bool | None


def judge(bar: Bar, results: Results) -> BarResult:
    """Holds a bar against the medians."""
    value = median_at(results, bar.figure)
    if bar.beside is not None and value is not None:
        other = median_at(results, bar.beside)
        value = None if other is None else COMBINE[bar.how](value, other)
    return BarResult(bar, value, None if value is None else HOLDS[bar.sense](value, bar.limit))


def median_at(results: Results, cell: Cell) -> float | None:
    """The median over repeats, or None where there is none."""
    workload, system, figure = cell
    values = results.get(workload, {}).get(system, {}).get(figure)
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> str:
    """The median, and the range where there is more than one: ``12.3 (11.9–14.0)``."""
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({short(min(values))}–{short(max(values))})"


def short(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> short(0.12345), short(12.345), short(1234.5)
    ('0.123', '12.3', '1234')
    """
    if value == 0:
        return "0"
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"


def _prism(workload: str, figure: str) -> Cell:
    return (workload, "prism", figure)


def _bars() -> tuple[Bar, ...]:
    ttft, rate = "TTFT p50, ms", "requests/s"
    bars = []
    for number, workload, limit_ms in ((1, "text", 5), (2, "picture_new", 15), (3, "picture_seen", 5)):
        bars.append(Bar(number, _prism(workload, ttft), "≤", limit_ms, "−", (workload, "vllm", ttft)))
        if number < 3:
            bars.append(Bar(number, _prism(workload, ttft), "<", 0, "−", (workload, "ray-serve-llm", ttft)))
    for system, limit in (("vllm", 0.9), ("ray-serve-llm", 1.2)):
        bars.append(Bar(4, _prism("saturation", rate), "≥", limit, "÷", ("saturation", system, rate)))
    for router in ("vllm-router", "vllm-router-session"):
        for figure, sense, limit in (
            (rate, "≥", 1.3),
            ("TTFT mean, ms", "≤", 0.34),
            ("TTFT p90, ms", "≤", 0.7),
            ("ITL, ms", "≤", 1.05),
        ):
            bars.append(Bar(5, _prism("windows", figure), sense, limit, "÷", ("windows", router, figure)))
    bars += [Bar(6, _prism("bursts", f"gap {part} ×"), "≤", 1.5) for part in ("p99", "p99.9", "worst")]
    bars.append(Bar(8, _prism("preprocess_two", rate), "≥", 1.8, "÷", _prism("preprocess_one", rate)))
    return tuple(bars)


BARS: Final = _bars()
