"""Makes a schedule from ServeGen, the workload of a production service (Alibaba Cloud Model Studio, Apache-2.0).

The data have two files for each client. ``chunk-N-trace.csv`` has a row for each ten minutes: start in seconds,
requests per second, coefficient of variation of the gaps, the distribution that fits the gaps (``Gamma`` or
``Weibull``), its shape and its scale. ``chunk-N-dataset.json`` has the distributions of sizes, for each six hours.

The data give each size on its own, so sizes are drawn independently of each other. ``image_tokens`` are those of one
picture: they are never more than 1,280, however many pictures a client's requests have. Every picture is new, because
the data do not say which pictures come again.
"""

from __future__ import annotations

import ast
import csv
import itertools
import json
import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cluster.scaling.schedules.arrivals import Span, gamma_gap, times, weibull_gap
from cluster.scaling.schedules.schedule import Arrival, Heading, ScheduledPicture, ScheduleError, in_order
from cluster.scaling.schedules.synthetic import drawn_picture

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from cluster.scaling.schedules.arrivals import Gap

WINDOW_S: Final = 600.0
SIDE_PER_TOKEN: Final = 28
"""Qwen2.5-VL makes one token from 28 × 28 pixels."""
MIN_TOKENS: Final = 1
MAX_RATE_PER_S: Final = 1e5
MIN_SHAPE: Final = 0.01
"""A smaller shape would make gaps of which nearly all are zero."""
MAX_PICTURES: Final = 1000
MAX_SIZE: Final = 10_000_000
"""The most pictures of a request, and the largest other size. The data stay far below both."""


@dataclass(frozen=True, slots=True)
class Window:
    """Ten minutes of a client: their start in seconds, the rate per second, and the gaps between requests."""

    start_s: float
    rate_per_s: float
    gap: Gap


@dataclass(frozen=True, slots=True)
class Values:
    """A distribution of whole numbers: the numbers, and the running sum of their weights."""

    numbers: tuple[int, ...]
    cumulative: tuple[float, ...]

    def draw(self, draw: random.Random) -> int:
        """Draws a number."""
        return self.numbers[bisect_right(self.cumulative[:-1], draw.random() * self.cumulative[-1])]


@dataclass(frozen=True, slots=True)
class TraceClient:
    """One client of the workload: its name, its windows, and its distributions of sizes, by the second of the day from
    which each applies."""

    name: str
    windows: tuple[Window, ...]
    sizes: dict[float, dict[str, Values]]

    def arrivals(self, start_s: float, end_s: float, speed_up: float, seed: int) -> Iterator[Arrival]:
        """Yields what the client sends between two times of the day, as seconds of the schedule."""
        draw = random.Random(f"{seed} {self.name}")
        parts = []
        reached_s = start_s
        for window in self.windows:
            first_s, last_s = max(start_s, window.start_s), min(end_s, window.start_s + WINDOW_S)
            if first_s < last_s:
                if first_s > reached_s:  # a window is missing: nothing comes in it
                    parts.append((Span(first_s - reached_s, 0.0, 0.0), window.gap))
                parts.append((Span(last_s - first_s, window.rate_per_s, window.rate_per_s), window.gap))
                reached_s = last_s
        starts = sorted(self.sizes)
        for number, at_s in enumerate(times(parts, draw)):
            sizes = self.sizes[starts[max(0, bisect_right(starts, start_s + at_s) - 1)]]
            yield Arrival(
                at_s=at_s / speed_up,
                client=self.name,
                text_tokens=max(MIN_TOKENS, sizes["text_tokens"].draw(draw)),
                pictures=_pictures(f"{self.name} {number}", sizes, draw),
                output_tokens=max(MIN_TOKENS, sizes["output_tokens"].draw(draw)),
            )


def read_clients(folder: Path) -> list[TraceClient]:
    """Reads all clients of the data, in the order of their numbers.

    Raises:
        ScheduleError: The folder has no such data, or a file of them cannot be understood.
    """
    traces = list(folder.glob("chunk-*-trace.csv"))
    if not traces:
        raise ScheduleError(f"{folder} has no files chunk-N-trace.csv; it must be a folder with ServeGen's data")
    clients = []
    for trace in sorted(traces, key=lambda path: (len(path.name), path.name)):  # 2 comes before 10
        dataset = trace.with_name(trace.name.replace("-trace.csv", "-dataset.json"))
        path = trace
        try:
            windows = _read_windows(trace)
            path = dataset
            sizes = _read_sizes(dataset)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with the data, the file is named
            raise ScheduleError(f"{path} is not as ServeGen's data are: {error}") from None
        clients.append(TraceClient(trace.name.split("-")[1], windows, sizes))
    return clients


def from_servegen(
    folder: Path, *, start_s: float, duration_s: float, speed_up: float, seed: int, clients: Collection[str] = ()
) -> tuple[Heading, Iterator[Arrival]]:
    """Makes a schedule from ServeGen's data. The same arguments give the same schedule.

    Args:
        folder: The folder of the data.
        start_s: The time of the day at which the schedule begins, in seconds.
        duration_s: How much of the day it covers, in seconds.
        speed_up: How many seconds of the day pass in one second of the schedule. Rates grow by this factor.
        seed: The seed of all random choices.
        clients: The names of the clients to take; none means all.

    Raises:
        ScheduleError: The data cannot be read, do not reach that far, or have no such client.
    """
    found = {client.name: client for client in read_clients(folder)}
    if unknown := set(clients) - found.keys():
        raise ScheduleError(f"there are no clients {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    chosen = [client for name, client in found.items() if not clients or name in clients]
    last_s = max(client.windows[-1].start_s for client in chosen) + WINDOW_S
    if start_s + duration_s > last_s:
        raise ScheduleError(f"the data end after {last_s / 3600:g} hours")
    source = f"ServeGen, {len(chosen)} clients, from {start_s:g} s of the day, {speed_up:g} times as fast"
    heading = Heading(source=source, seed=seed, duration_s=duration_s / speed_up)
    return heading, in_order(client.arrivals(start_s, start_s + duration_s, speed_up, seed) for client in chosen)


def _read_windows(path: Path) -> tuple[Window, ...]:
    with path.open(newline="") as file:
        windows = sorted((_window(*row) for row in csv.reader(file)), key=lambda window: window.start_s)
    if not windows:
        raise ValueError("it has no rows")
    for before, after in itertools.pairwise(windows):
        if after.start_s < before.start_s + WINDOW_S:
            raise ValueError(f"the rows at {before.start_s:g} and {after.start_s:g} s overlap")
    return tuple(windows)


def _window(start_s: str, rate_per_s: str, _: str, kind: str, shape: str, __: str) -> Window:
    gaps = {"Gamma": lambda: gamma_gap(1 / math.sqrt(float(shape))), "Weibull": lambda: weibull_gap(float(shape))}
    start, rate = float(start_s), float(rate_per_s)
    if not (0 <= start < math.inf and 0 <= rate <= MAX_RATE_PER_S):
        raise ValueError(f"{start_s} s and {rate_per_s} requests/s are no start and rate")
    if kind and not MIN_SHAPE <= float(shape) < math.inf:
        raise ValueError(f"{shape} is no shape of a distribution")
    return Window(start, rate, gaps[kind]() if kind else gamma_gap(1.0))


def _read_sizes(path: Path) -> dict[float, dict[str, Values]]:
    content: dict[str, dict[str, str]] = json.loads(path.read_text())
    wanted = ("text_tokens", "image_tokens", "image_count", "output_tokens")
    sizes = {
        float(start_s): {name: _values(ast.literal_eval(parts[name])) for name in wanted}
        for start_s, parts in content.items()
        if parts
    }
    if not sizes:
        raise ValueError("it has no sizes")
    return sizes


def _values(weights: dict[Any, float]) -> Values:
    values = Values(tuple(map(int, weights)), tuple(itertools.accumulate(weights.values())))
    if not all(0 <= number <= MAX_SIZE for number in values.numbers):
        raise ValueError(f"a size is below 0 or above {MAX_SIZE}")
    if not all(weight >= 0 for weight in weights.values()) or not 0 < values.cumulative[-1] < math.inf:
        raise ValueError("the weights of a size are negative, infinite or none")
    return values


def _pictures(name: str, sizes: dict[str, Values], draw: random.Random) -> tuple[ScheduledPicture, ...]:
    num_pictures = min(MAX_PICTURES, sizes["image_count"].draw(draw))
    return tuple(
        drawn_picture(f"{name} {number}", sizes["image_tokens"].draw(draw) * SIDE_PER_TOKEN**2, draw)
        for number in range(num_pictures)
    )
