"""Random times of arrivals for a rate that changes.

The number of arrivals that are expected up to a time, the integral of the rate, is a clock of its own. On that clock
the gaps between arrivals have the mean 1. So gaps are drawn there and brought back to seconds. With exponential gaps
this is a Poisson process with exactly this rate; other gaps make the same load more even or more bursty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

    Gap = Callable[[random.Random], float]
    """Draws a gap between two arrivals, with the mean 1."""

MIN_CV: Final = 0.01
NUM_BEFORE: Final = 100
"""Arrivals that are imagined before the first one. After so many gaps the start is in no special place."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time in which the rate changes evenly from ``rate_per_s`` to ``last_rate_per_s``."""

    duration_s: float
    rate_per_s: float
    last_rate_per_s: float

    @property
    def num_expected(self) -> float:
        """The arrivals that are expected in the whole span."""
        return self.duration_s * (self.rate_per_s + self.last_rate_per_s) / 2

    def time_of(self, num_expected: float) -> float:
        """The time in seconds from the start of the span at which so many arrivals are expected."""
        slope = (self.last_rate_per_s - self.rate_per_s) / self.duration_s
        # The root of rate·t + slope·t²/2 = num_expected, in the form that also works for a slope of 0.
        root = math.sqrt(max(0.0, self.rate_per_s**2 + 2 * slope * num_expected))
        return min(self.duration_s, 2 * num_expected / (self.rate_per_s + root)) if num_expected else 0.0


def gamma_gap(cv: float) -> Gap:
    """Gaps from a gamma distribution.

    Args:
        cv: The coefficient of variation: the standard deviation over the mean. 1 gives a Poisson process, less is more
            even, more is more bursty.
    """
    shape = 1 / max(cv, MIN_CV) ** 2
    return lambda draw: draw.gammavariate(shape, 1 / shape)


def weibull_gap(shape: float) -> Gap:
    """Gaps from a Weibull distribution with this shape."""
    scale = 1 / math.gamma(1 + 1 / shape)
    return lambda draw: draw.weibullvariate(scale, shape)


def times(spans: Iterable[tuple[Span, Gap]], draw: random.Random) -> Iterator[float]:
    """Draws the times of arrivals.

    Args:
        spans: The spans of time, one after the other, each with its gaps.
        draw: The source of chance.

    Yields:
        Seconds from the start of the first span, in order.
    """
    start_s, to_next = 0.0, None
    for span, gap in spans:
        if to_next is None:
            to_next = -NUM_BEFORE - draw.random()  # arrivals have come for a while, so the start falls into some gap
            while to_next < 0:
                to_next += gap(draw)
        position, end = to_next, span.num_expected
        while position < end:
            yield start_s + span.time_of(position)
            position += gap(draw)
        to_next = position - end
        start_s += span.duration_s
