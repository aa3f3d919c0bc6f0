"""The command ``prism schedule``: writes a schedule of arrivals from distributions, or from ServeGen's data."""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from cluster.scaling.schedules.schedule import ScheduleError, write_schedule
from cluster.scaling.schedules.servegen import from_servegen
from cluster.scaling.schedules.synthetic import KINDS, Kind, Shape, Sizes, SyntheticLoad, synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.scaling.schedules.schedule import Arrival, Heading

SHAPES = get_args(Shape)
HOUR_S = 3600
OF_SERVEGEN = "with --servegen: "


def schedule(
    file: Annotated[Path, typer.Argument(help="Where to write the schedule, as JSON lines.")],
    seed: Annotated[int, typer.Option(help="The seed of all random choices.")] = 0,
    duration: Annotated[float, typer.Option(help="How long arrivals go on, in seconds.", min=1, max=1e7)] = 600,
    rate: Annotated[float, typer.Option(help="Arrivals per second.", min=0.001, max=1e5)] = 4,
    peak: Annotated[
        float, typer.Option(help="Arrivals per second at the end of a ramp, after a step, in a spike.", min=0, max=1e5)
    ] = 12,
    shape: Annotated[str, typer.Option(help=f"The shape of the load: {', '.join(SHAPES)}.")] = "steady",
    cv: Annotated[
        float, typer.Option(help="Burstiness: 1 is a Poisson process, more is more bursty.", min=0.01, max=20)
    ] = 1,
    mix: Annotated[
        str, typer.Option(help=f"How often each kind comes, such as text=2,picture=1. Kinds: {', '.join(KINDS)}.")
    ] = "text=2,picture=1,reuse=1",
    text_tokens: Annotated[float, typer.Option(help="Median tokens of a text.", min=1, max=1e6)] = 100,
    output_tokens: Annotated[float, typer.Option(help="Median tokens of an answer.", min=1, max=1e6)] = 64,
    megapixels: Annotated[float, typer.Option(help="Median size of a picture.", min=0.001, max=1e4)] = 0.5,
    max_side: Annotated[int, typer.Option(help="The longest side of a picture or page.", min=28, max=100_000)] = 4096,
    servegen: Annotated[Path | None, typer.Option(help="The folder of ServeGen's data, to take instead.")] = None,
    start_hour: Annotated[
        float, typer.Option(help=f"{OF_SERVEGEN}the hour of the day to begin at.", min=0, max=1e4)
    ] = 0,
    hours: Annotated[float, typer.Option(help=f"{OF_SERVEGEN}how many hours of the day.", min=0.01, max=1e4)] = 1,
    speed_up: Annotated[float, typer.Option(help=f"{OF_SERVEGEN}how many times as fast.", min=0.001, max=1e6)] = 1,
    clients: Annotated[str, typer.Option(help=f"{OF_SERVEGEN}names of clients, such as 0,2,4. Empty: all.")] = "",
) -> None:
    """Writes a schedule: which requests arrive when, and how large they are. The same options give the same file."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"it must be one of {', '.join(SHAPES)}, not {shape}", param_hint="--shape")
    try:
        if servegen is not None:
            made = from_servegen(
                servegen,
                start_s=start_hour * HOUR_S,
                duration_s=hours * HOUR_S,
                speed_up=speed_up,
                seed=seed,
                clients=[name for name in clients.split(",") if name],
            )
        else:
            sizes = Sizes(text_tokens, output_tokens, megapixels, max_side)
            load = SyntheticLoad(
                duration, rate, peak, next(one for one in SHAPES if one == shape), cv, _weights(mix), sizes
            )
            made = synthetic(load, seed)
        _write(file, *made)
    except ScheduleError as error:
        raise typer.BadParameter(str(error), param_hint="--servegen") from None
    except OSError as error:
        raise typer.BadParameter(f"it cannot be written: {error}", param_hint="FILE") from None


def _write(file: Path, heading: Heading, arrivals: Iterator[Arrival]) -> None:
    with file.open("w", encoding="utf-8") as sink:
        num_arrivals = write_schedule(sink, heading, arrivals)
    print(f"{file}: {num_arrivals} arrivals in {heading.duration_s:g} s; {heading.source}")  # noqa: T201


def _weights(mix: str) -> dict[Kind, float]:
    weights: dict[Kind, float] = {}
    for part in mix.split(","):
        name, _, weight = part.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None or not weight.replace(".", "", 1).isdecimal():
            wanted = f"each part must be KIND=WEIGHT with a kind of {', '.join(KINDS)}, and {part!r} is not"
            raise typer.BadParameter(wanted, param_hint="--mix")
        weights[kind] = float(weight)
    if not 0 < sum(weights.values()) < math.inf:
        raise typer.BadParameter("one weight must be above 0, and all must be finite", param_hint="--mix")
    return weights
