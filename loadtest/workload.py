"""The workload of a load test without a schedule file: arrivals at random times, of three kinds.

Locust and the probe share this, so that their figures can be compared. Each sends requests and times answers with its
own code.
"""

from __future__ import annotations

import argparse
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from loadtest.schedule import LoadArrival, LoadPicture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LoadKind = Literal["text", "new", "seen"]
KINDS: Final[tuple[LoadKind, ...]] = get_args(LoadKind)

PATH: Final = "/v1/chat/completions"
MIX: Final = "text=2,new=1,seen=1"
TEXT_TOKENS: Final = 16
PICTURE_PIXELS: Final = (224, 168)


@dataclass(frozen=True, slots=True)
class Workload:
    """A Poisson process of arrivals.

    Args:
        rate_per_s: The mean of arrivals per second.
        output_tokens: The length of each answer, in tokens.
        num_pictures: How many pictures the requests of the kind ``seen`` share.
        weights: How often each kind comes, in proportion.
        seed: The seed of all random choices. It also names the new pictures, so another seed gives others.
    """

    rate_per_s: float
    output_tokens: int = 32
    num_pictures: int = 8
    weights: Mapping[LoadKind, float] = field(default_factory=lambda: read_mix(MIX))
    seed: int = 0

    def arrivals(self) -> Iterator[LoadArrival]:
        """Yields arrivals without end, in the order of time. The same workload gives the same arrivals."""
        draw = random.Random(self.seed)
        at_s = 0.0
        for number in itertools.count():
            at_s += draw.expovariate(self.rate_per_s)
            [kind] = draw.choices([*self.weights], [*self.weights.values()])
            seen = draw.randrange(self.num_pictures)
            name = f"new {self.seed} {number}" if kind == "new" else f"shared {seen}"
            pictures = () if kind == "text" else (LoadPicture(name, *PICTURE_PIXELS),)
            yield LoadArrival(at_s, kind, TEXT_TOKENS, self.output_tokens, pictures)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a workload, the same for Locust and the probe. Locust also shows them on its web page."""
    parser.add_argument("--model", default="prism-demo", help="served name of the model")
    parser.add_argument("--rate", type=positive_number, default=4.0, help="arrivals per second, at random times")
    parser.add_argument("--mix", type=valid_mix, default=MIX, help="how often each kind of request comes")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--max-tokens", type=positive, default=32, help="length of each answer in tokens")
    parser.add_argument(
        "--pictures", type=positive, default=8, help="how many pictures the requests of seen ones share"
    )


def from_options(options: argparse.Namespace) -> Workload:
    """The workload that the options of ``add_options`` describe."""
    return Workload(options.rate, options.max_tokens, options.pictures, read_mix(options.mix), options.seed)


def read_mix(text: str) -> dict[LoadKind, float]:
    """Reads the weights of a mix, such as ``text=2,new=1,seen=1``.

    Raises:
        argparse.ArgumentTypeError: A part is no ``KIND=WEIGHT``, or all weights are 0.
    """
    weights: dict[LoadKind, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None or not weight.replace(".", "", 1).isdecimal():
            wanted = f"each part must be KIND=WEIGHT with a kind of {', '.join(KINDS)}"
            raise argparse.ArgumentTypeError(f"{wanted}, and {part!r} is not")
        weights[kind] = float(weight)
    if not any(weights.values()):
        raise argparse.ArgumentTypeError("one weight must be above 0")
    return weights


def valid_mix(text: str) -> str:
    """Returns a mix unchanged if ``read_mix`` can read it, for argparse. A text can be shown on Locust's web page."""
    read_mix(text)
    return text


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for argparse.

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def positive_number(text: str) -> float:
    """Reads a number above 0, for argparse.

    Raises:
        argparse.ArgumentTypeError: The text is not such a number.
    """
    if not text.replace(".", "", 1).isdecimal() or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)
