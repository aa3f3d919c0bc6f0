"""Medians and ranges over the repeats, and the bars: limits that Prism's figures must keep."""

from __future__ import annotations

import operator
import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench.systems import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Cell = tuple[str, str, str]
"""The name of a scenario, of a system and of a figure."""
Results = dict[str, dict[str, dict[str, list[float]]]]
"""Scenario → system → figure → its value in each repeat."""

HOLDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"≤": operator.le, "≥": operator.ge, "<": operator.lt}
COMBINE: Final[Mapping[str, Callable[[float, float], float]]] = {"−": operator.sub, "÷": operator.truediv}


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit for one figure, or for its difference or ratio to another figure; the medians over the repeats are
    compared.

    Args:
        number: The row in the list of requirements that asks for this bar.
        figure: The cell of the figure.
        sense: How the value compares with the limit: ``≤``, ``≥`` or ``<``.
        limit: The limit, in the unit of the figure, or without a unit for a ratio.
        how: ``−`` for the difference to ``compared_with``, ``÷`` for the ratio.
        compared_with: The cell of the other figure; None if the figure alone is limited.
    """

    number: int
    figure: Cell
    sense: str
    limit: float
    how: str = ""
    compared_with: Cell | None = None

    @property
    def text(self) -> str:
        """The bar in words: what is common to both figures, then what is compared."""
        scenario, system, figure = self.figure
        name, unit = NAMES.get(system, system), with_unit(figure)
        limit = f"{self.sense} {self.limit:g}"
        if self.compared_with is None:
            return f"{scenario}, {unit}: {name} {limit}"
        other_scenario, other_system, _ = self.compared_with
        if other_scenario != scenario:
            return f"{name}, {unit}: {scenario} {self.how} {other_scenario} {limit}"
        return f"{scenario}, {unit}: {name} {self.how} {NAMES.get(other_system, other_system)} {limit}"


@dataclass(frozen=True, slots=True)
class BarResult:
    """The measured value of a bar and whether it holds; both are None if a figure was not measured."""

    bar: Bar
    value: float | None
    holds: bool | None


def judge(bar: Bar, results: Results) -> BarResult:
    """Compares the medians with a bar."""
    value = median_at(results, bar.figure)
    if bar.compared_with is not None and value is not None:
        other = median_at(results, bar.compared_with)
        value = None if other is None else COMBINE[bar.how](value, other)
    return BarResult(bar, value, None if value is None else HOLDS[bar.sense](value, bar.limit))


def median_at(results: Results, cell: Cell) -> float | None:
    """The median of a figure over the repeats, or None if it was not measured."""
    scenario, system, figure = cell
    values = results.get(scenario, {}).get(system, {}).get(figure)
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> str:
    """The median and, if the values differ, their range: ``12.3 (11.9–14.0)``."""
    middle = short(statistics.median(values))
    return middle if min(values) == max(values) else f"{middle} ({short(min(values))}–{short(max(values))})"


def with_unit(figure: str) -> str:
    """The name of a figure as the report writes it, with its unit in brackets.

    >>> with_unit("gap p50, ms, alone"), with_unit("requests/s")
    ('gap p50 (ms), alone', 'requests/s')
    """
    return re.sub(r", (ms|%)(?=,|$)", r" (\1)", figure)


def short(value: float) -> str:
    """A number with about three significant digits, without an exponent.

    >>> short(0.12345), short(12.345), short(1234.5)
    ('0.123', '12.3', '1234')
    """
    if value == 0:
        return "0"
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"


def _prism(scenario: str, figure: str) -> Cell:
    return (scenario, "prism", figure)


def _bars() -> tuple[Bar, ...]:
    ttft, rate = "TTFT p50, ms", "requests/s"
    bars = []
    for number, scenario, limit_ms in ((1, "text", 5), (2, "picture_new", 15), (3, "picture_seen", 5)):
        bars.append(Bar(number, _prism(scenario, ttft), "≤", limit_ms, "−", (scenario, "vllm", ttft)))
        if number < 3:
            bars.append(Bar(number, _prism(scenario, ttft), "<", 0, "−", (scenario, "ray-serve-llm", ttft)))
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
