"""Makes a schedule from a shape of the load and a mix of requests.

Sizes are drawn from log-normal distributions around a median, because sizes of real requests have a long tail.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from cluster.scaling.schedules.arrivals import Span, gamma_gap, times
from cluster.scaling.schedules.schedule import Arrival, Heading, ScheduledPicture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Shape = Literal["steady", "ramp", "step", "spike"]
Kind = Literal["text", "picture", "pictures", "pages", "reuse", "turns"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SPREAD: Final = 0.7
"""The sigma of the log-normal distributions: one size in six is more than twice the median."""
RATIOS: Final = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
"""The width over the height of a picture."""
MIN_SIDE: Final = 28
SEVERAL: Final = (2, 6)
NUM_PAGES: Final = (1, 4)
PAGE: Final = (1240, 1754)
"""A page of A4 at 150 dots per inch."""
NUM_SHARED: Final = 32
"""Pictures that requests of the kind ``reuse`` share. The n-th is asked for 1/n as often as the first."""
MAX_TURNS: Final = 5
TURN_GAP_S: Final = 10.0
"""The least time between two turns of a conversation."""
SPIKE: Final = (0.4, 0.6)
"""The part of the schedule in which a spike is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The medians of the sizes.

    Args:
        text_tokens: Tokens of a text.
        output_tokens: Tokens of an answer.
        megapixels: Millions of pixels of a picture that is not a page.
        max_side: The most pixels of a picture's side; larger pictures and pages are scaled down.
    """

    text_tokens: float = 100.0
    output_tokens: float = 64.0
    megapixels: float = 0.5
    max_side: int = 4096


@dataclass(frozen=True, slots=True)
class SyntheticLoad:
    """A load to make a schedule from.

    Args:
        duration_s: The length in seconds.
        rate_per_s: The arrivals per second: of a steady load, and before a ramp, step or spike.
        peak_per_s: The arrivals per second at the end of a ramp, after a step and during a spike.
        shape: ``steady``; ``ramp``, evenly up to the peak; ``step``, to the peak after half of the time; ``spike``, at
            the peak for the middle fifth.
        cv: The coefficient of variation of the gaps between arrivals; 1 gives a Poisson process.
        weights: How often each kind of request comes, in proportion.
        sizes: The medians of the sizes.
    """

    duration_s: float
    rate_per_s: float
    peak_per_s: float = 0.0
    shape: Shape = "steady"
    cv: float = 1.0
    weights: Mapping[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    sizes: Sizes = Sizes()

    def spans(self) -> list[Span]:
        """The rate over time."""
        low, high, all_s = self.rate_per_s, self.peak_per_s, self.duration_s
        match self.shape:
            case "steady":
                return [Span(all_s, low, low)]
            case "ramp":
                return [Span(all_s, low, high)]
            case "step":
                return [Span(all_s / 2, low, low), Span(all_s / 2, high, high)]
            case "spike":
                before, after = (part * all_s for part in SPIKE)
                return [Span(before, low, low), Span(after - before, high, high), Span(all_s - after, low, low)]


def synthetic(load: SyntheticLoad, seed: int) -> tuple[Heading, Iterator[Arrival]]:
    """Makes the schedule of a load. The same load and seed give the same schedule."""
    peak = "" if load.shape == "steady" else f" to {load.peak_per_s:g}"
    source = f"{load.shape} load, {load.rate_per_s:g}{peak} requests/s"
    return Heading(source=source, seed=seed, duration_s=load.duration_s), _arrivals(load, random.Random(seed))


def _arrivals(load: SyntheticLoad, draw: random.Random) -> Iterator[Arrival]:
    maker, gap = _Maker(load.sizes, draw), gamma_gap(load.cv)
    kinds, weights = [*load.weights], [*load.weights.values()]
    for at_s in times(((span, gap) for span in load.spans()), draw):
        [kind] = draw.choices(kinds, weights)
        yield maker.arrival(kind, at_s)


class _Maker:
    """Draws what each arrival asks."""

    def __init__(self, sizes: Sizes, draw: random.Random) -> None:
        self._sizes = sizes
        self._draw = draw
        self._num_pictures = 0
        self._shared = [self._picture(f"shared {number}") for number in range(NUM_SHARED)]
        self._num_conversations = 0
        self._open: list[Arrival] = []
        """The last turn of each conversation that may go on."""

    def arrival(self, kind: Kind, at_s: float) -> Arrival:
        pictures: tuple[ScheduledPicture, ...] = ()
        conversation, turn = None, 0
        match kind:
            case "picture":
                pictures = (self._picture(),)
            case "pictures":
                pictures = tuple(self._picture() for _ in range(self._draw.randint(*SEVERAL)))
            case "pages":
                pictures = tuple(
                    _scaled(self._name(), *PAGE, self._sizes.max_side) for _ in range(self._draw.randint(*NUM_PAGES))
                )
            case "reuse":
                weights = [1 / place for place in range(1, NUM_SHARED + 1)]
                pictures = tuple(self._draw.choices(self._shared, weights))
            case "turns":
                conversation, turn = self._next_turn(at_s)
                pictures = () if turn else (self._picture(),)
            case "text":
                pass
        arrival = Arrival(
            at_s=at_s,
            client=kind,
            text_tokens=self._tokens(self._sizes.text_tokens),
            pictures=pictures,
            output_tokens=self._tokens(self._sizes.output_tokens),
            conversation=conversation,
            turn=turn,
        )
        if conversation is not None and turn + 1 < MAX_TURNS:
            self._open.append(arrival)
        return arrival

    def _next_turn(self, at_s: float) -> tuple[str, int]:
        """Continues the conversation that has waited longest. If none has waited ``TURN_GAP_S``, starts a new one."""
        if self._open and at_s - self._open[0].at_s >= TURN_GAP_S:
            last = self._open.pop(0)
            return str(last.conversation), last.turn + 1
        self._num_conversations += 1
        return f"conversation {self._num_conversations}", 0

    def _tokens(self, median: float) -> int:
        return max(1, round(self._draw.lognormvariate(math.log(median), SPREAD)))

    def _picture(self, name: str = "") -> ScheduledPicture:
        num_pixels = self._draw.lognormvariate(math.log(self._sizes.megapixels * 1e6), SPREAD)
        return drawn_picture(name or self._name(), num_pixels, self._draw, max_side=self._sizes.max_side)

    def _name(self) -> str:
        self._num_pictures += 1
        return f"picture {self._num_pictures}"


def drawn_picture(name: str, num_pixels: float, draw: random.Random, *, max_side: float = math.inf) -> ScheduledPicture:
    """A picture of about so many pixels, with a ratio of its sides that is drawn from ``RATIOS``."""
    ratio = draw.choice(RATIOS)
    return _scaled(name, math.sqrt(num_pixels * ratio), math.sqrt(num_pixels / ratio), max_side)


def _scaled(name: str, width: float, height: float, max_side: float) -> ScheduledPicture:
    """A picture with these sides, scaled down until the longer one has at most ``max_side`` pixels."""
    scale = min(1.0, max_side / max(width, height, MIN_SIDE))
    width, height = (max(MIN_SIDE, round(side * scale)) for side in (width, height))
    return ScheduledPicture(name=name, width=width, height=height)
