"""The command ``prism plan``: the cheapest cluster that meets a goal on a schedule, by simulation."""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from cluster.config import POOLS
from cluster.scaling.planning.load import busiest_part
from cluster.scaling.planning.plan import plan as search
from cluster.scaling.schedules.schedule import ScheduleError, read_schedule
from cluster.scaling.simulation.outcomes import LatencyGoal
from deployments.local.catalogue import SHIPPED_CATALOGUE, CatalogueError, read_catalogue
from deployments.local.entries import DEPLOYMENTS, MEASURED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cluster.scaling.planning.catalogue import Catalogue
    from cluster.scaling.planning.plan import Candidate, PlanResult
    from cluster.scaling.planning.roofline import Layout
    from cluster.scaling.schedules.schedule import Arrival, Heading

    Drawing = Callable[[PlanResult, Catalogue, LatencyGoal, Path], None]

NOT_DEPLOYABLE: Final = "not deployable yet"
"""Prism cannot run a vision tower inside its decoders yet, so a colocated plan is only for comparison."""
MINUTE_S: Final = 60

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def plan(
    schedule: Annotated[Path, typer.Argument(help="A schedule, as prism schedule writes it.")],
    ttft: Annotated[float, typer.Option(help="The longest time to the first token, in seconds.", min=0.001)] = 1.0,
    itl: Annotated[
        float, typer.Option(help="The longest mean time between tokens of an answer, in seconds.", min=0.0001)
    ] = 0.05,
    share: Annotated[float, typer.Option(help="The share of requests that must meet both.", min=0.01, max=1)] = 0.95,
    catalogue: Annotated[
        Path,
        typer.Option(
            help="The model, and GPUs with their speeds and prices. Default: Prism's own.", show_default=False
        ),
    ] = SHIPPED_CATALOGUE,
    minutes: Annotated[
        float, typer.Option(help="How much of the schedule is simulated: its busiest part.", min=0.1, max=10_000)
    ] = 5,
    plot: Annotated[Path | None, typer.Option(help="Where to write a plot, as PNG. It needs matplotlib.")] = None,
) -> None:
    """Searches pool sizes, GPUs, and split against colocated, for the cheapest that meets a goal. Needs no cluster."""
    drawing = _drawing(plot)
    heading, arrivals, figures = _read(schedule, catalogue)
    heading, arrivals = busiest_part(heading, arrivals, minutes * MINUTE_S)
    goal = LatencyGoal(ttft, itl, share)
    out.print(f"{len(arrivals)} arrivals in {heading.duration_s:g} s; {heading.source}", markup=False)
    out.print(f"The goal: {share:.0%} of requests with TTFT ≤ {ttft:g} s and ITL ≤ {itl * 1000:g} ms.\n")
    with err.status("Simulating …") as spinner:
        found = search(
            heading, arrivals, figures, goal, progress=lambda layout: spinner.update(f"Simulating {_words(layout)} …")
        )
    _print(found, figures, goal)
    if plot is not None:
        try:
            drawing(found, figures, goal, plot)
        except OSError as error:
            _fail(f"{plot}: it cannot be written: {error}")
        out.print(f"\nThe plot is in {plot}.", markup=False)


def _read(schedule: Path, catalogue: Path) -> tuple[Heading, list[Arrival], Catalogue]:
    try:
        heading, arrivals = read_schedule(schedule)
        figures = read_catalogue(catalogue)
    except CatalogueError as error:
        _fail("\n".join(f"{catalogue}: {problem}" for problem in error.problems))
    except (OSError, ScheduleError) as error:
        _fail(f"{schedule}: {error}")
    if not arrivals:
        _fail(f"{schedule}: it has no arrivals")
    return heading, arrivals, figures


def _print(found: PlanResult, catalogue: Catalogue, goal: LatencyGoal) -> None:
    cheapest = found.cheapest()
    shown = [one for one in found.best if one.is_met] or found.best
    headings = ("decoders", "encoders", "preprocessors", "Routers", "price/h", "attained", "TTFT", "ITL", "binding", "")
    table = Table(*headings, title=f"{catalogue.model.name}: the cheapest of each layout")
    for one in sorted(shown, key=lambda one: one.price_per_hour):
        table.add_row(*_row(one, is_cheapest=one is cheapest), style="bold" if one is cheapest else None)
    out.print(table)
    out.print(f"TTFT and ITL are those that {goal.share:.0%} of requests do not exceed. CPUs are not priced.")
    for reason, layouts in _left_out(found, {one.layout for one in shown}).items():
        out.print(f"Left out: {layouts}: {reason}.", markup=False)
    out.print(f"\n{verdict(found)}", markup=False)
    if (deployable := found.cheapest(is_split=True)) is not None:
        out.print("\nTo deploy the cheapest split, put this into the application file:\n")
        out.print(block(deployable), markup=False)


def _row(one: Candidate, *, is_cheapest: bool) -> list[str]:
    notes = ["cheapest"] if is_cheapest else []
    notes += [] if one.layout.is_split else [NOT_DEPLOYABLE]
    notes += [] if one.is_met else ["misses the goal"]
    layout, sizes = one.layout, one.sizes
    return [
        f"{sizes['decoder']} × {layout.tensor_parallel_size} {layout.decoder_gpu}",
        f"{sizes['encoder']} × 1 {layout.encoder_gpu}" if layout.is_split else "colocated",
        str(sizes["preprocessor"]),
        str(sizes["router"]),
        f"{one.price_per_hour:.2f}",
        f"{one.attainment:.1%}",
        f"{one.ttft_s:.2f} s" if math.isfinite(one.ttft_s) else "none",
        f"{one.itl_s * 1000:.0f} ms" if math.isfinite(one.itl_s) else "none",
        one.binding_pool,
        ", ".join(notes),
    ]


def _left_out(found: PlanResult, shown: Collection[Layout]) -> dict[str, str]:
    """The layouts that the table does not have, by the reason. Decoders stand alone if the encoders do not matter."""
    reasons = {one.layout: "it misses the goal at the price of the best" for one in found.best}
    reasons = {layout: reason for layout, reason in (found.left_out | reasons).items() if layout not in shown}
    num_kinds = len({layout.encoder_gpu for layout in (*found.left_out, *(one.layout for one in found.best))})
    groups: dict[tuple[str, str], list[str]] = {}
    for layout, reason in reasons.items():
        decoder = f"{layout.tensor_parallel_size} {layout.decoder_gpu}"
        groups.setdefault((reason, decoder), []).append(layout.encoder_gpu or "none")
    lines: dict[str, list[str]] = {}
    for (reason, decoder), encoders in groups.items():
        with_encoders = "" if len(encoders) == num_kinds else f" (encoders: {', '.join(encoders)})"
        lines.setdefault(reason, []).append(decoder + with_encoders)
    return {reason: "; ".join(decoders) for reason, decoders in lines.items()}


def _words(layout: Layout) -> str:
    encoders = f"encoders of 1 {layout.encoder_gpu}" if layout.is_split else "colocated"
    return f"decoders of {layout.tensor_parallel_size} {layout.decoder_gpu}, {encoders}"


def verdict(found: PlanResult) -> str:
    """Says whether the split pays."""
    split, colocated = found.cheapest(is_split=True), found.cheapest(is_split=False)
    if split is None and colocated is None:
        return "No configuration meets the goal. Raise --ttft or --itl, lower --share, or add faster GPUs."
    if split is None:
        return f"The split does not pay here: only colocated meets the goal, and colocated is {NOT_DEPLOYABLE}."
    if colocated is None:
        return "The split pays here: no colocated configuration meets the goal."
    prices = f"it costs {split.price_per_hour:.2f} an hour, and colocated {colocated.price_per_hour:.2f}"
    if split.price_per_hour < colocated.price_per_hour:
        return f"The split pays here: {prices}."
    return f"The split does not pay here: {prices}. Colocated is {NOT_DEPLOYABLE}."


def block(one: Candidate) -> str:
    """The part of an application file that has the sizes of a configuration."""
    lines = [
        f"# {one.layout.decoder_gpu} for decoders, {one.layout.encoder_gpu} for encoders; below args:, decoder: has",
        f"# tensor_parallel_size: {one.layout.tensor_parallel_size}",
        "deployments:",
    ]
    for pool, name in zip(POOLS, DEPLOYMENTS, strict=True):
        size = one.sizes[pool]
        bounds = {"min_replicas": size, "max_replicas": size, **MEASURED}
        inner = ", ".join(f"{key}: {value}" for key, value in bounds.items())
        lines += [f"  - name: {name}", f"    autoscaling_config: {{{inner}}}"]
    return "\n".join(lines)


def _drawing(plot: Path | None) -> Drawing:
    """The function that draws. A missing library or folder is named at once, and not after the search."""
    if plot is None:
        return lambda *_: None
    if not plot.absolute().parent.is_dir():
        _fail(f"{plot}: there is no folder {plot.absolute().parent}")
    try:
        from deployments.local.plan_plot import draw
    except ModuleNotFoundError as error:
        _fail(f"--plot needs {error.name}, which is not installed: pip install 'prism-serve[demo]'")
    return draw


def _fail(message: str) -> NoReturn:
    err.print(message, style="red", markup=False)
    raise typer.Exit(2)
