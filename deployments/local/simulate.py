"""The command ``prism simulate``: the times that a cluster of given sizes would give the requests of a schedule."""

from __future__ import annotations

import statistics
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError

from cluster.scaling.schedules.schedule import ScheduleError, read_schedule
from cluster.scaling.simulation.outcomes import LatencyGoal
from cluster.scaling.simulation.replicas import PoolSize
from cluster.scaling.simulation.simulate import joint_policy
from cluster.scaling.simulation.simulate import simulate as run
from cluster.scaling.simulation.speeds import Speeds
from deployments.local.problems import wrong_values

QUANTILES = (0.5, 0.9, 0.95, 0.99)
POOL_HELP = "How many replicas, such as 2, or the bounds for the scaling policy, such as 1-4."


def simulate(
    schedule: Annotated[Path, typer.Argument(help="A schedule, as prism schedule writes it.")],
    speeds: Annotated[Path, typer.Option(help="The speeds, as prism measure writes them.")],
    routers: Annotated[str, typer.Option(help=POOL_HELP)] = "1",
    preprocessors: Annotated[str, typer.Option(help=POOL_HELP)] = "1",
    encoders: Annotated[str, typer.Option(help=POOL_HELP)] = "1",
    decoders: Annotated[str, typer.Option(help=POOL_HELP)] = "1",
    ttft: Annotated[float, typer.Option(help="The longest time to the first token, in seconds.", min=0.001)] = 1.0,
    itl: Annotated[float, typer.Option(help="The longest mean time between tokens, in seconds.", min=0.0001)] = 0.05,
) -> None:
    """Simulates a schedule on a cluster of these sizes, or with the scaling policy. Needs no cluster."""
    try:
        heading, arrivals = read_schedule(schedule)
        figures = read_speeds(speeds)
    except (OSError, ScheduleError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    given = {"router": routers, "preprocessor": preprocessors, "encoder": encoders, "decoder": decoders}
    sizes = {pool: size_of(text, f"--{pool}s") for pool, text in given.items()}
    policy = joint_policy(figures) if any("-" in text for text in given.values()) else None
    goal, result = LatencyGoal(ttft, itl), run(heading, arrivals, figures, sizes, policy=policy)
    typer.echo(f"{len(arrivals)} arrivals in {heading.duration_s:g} s: {dict(result.endings)}")
    for name, time_s in (("TTFT", result.ttft_s), ("ITL", result.itl_s)):
        cells = [f"p{round(100 * share)} {1000 * time_s(share):.1f} ms" for share in QUANTILES]
        typer.echo(f"{name:<5}" + "".join(f"{cell:>18}" for cell in cells))
    busy = ", ".join(f"{pool} {share:.0%}" for pool, share in result.busy_shares.items())
    typer.echo(f"busy: {busy}; binding: {result.binding_pool(goal)}; {result.attainment(goal):.1%} within the goal")
    for pool in sizes if policy is not None else ():
        ticks = [tick for tick in result.ticks if tick.pool == pool]
        mean = statistics.mean(tick.num_running + tick.num_starting + tick.num_draining for tick in ticks)
        typer.echo(f"{pool}: at most {max(tick.target for tick in ticks)} replicas, {mean:.2f} on average")


def read_speeds(path: Path) -> Speeds:
    """Reads a file of speeds.

    Raises:
        ValueError: It is no YAML, or a value is missing or wrong. The message names the file and the key.
        OSError: It cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Speeds.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        problems = wrong_values(error, content, "") if isinstance(content, dict) else ["it must be a mapping"]
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems)) from None


def size_of(text: str, option: str) -> PoolSize:
    """Reads the size of a pool: a number, or a smallest and a largest number.

    Raises:
        typer.BadParameter: It is neither.
    """
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) <= 10_000 for part in parts) or int(parts[-1]) < 1:
        raise typer.BadParameter(f"it must be a number such as 2, or bounds such as 1-4, not {text}", param_hint=option)
    least, most = int(parts[0]), int(parts[-1])
    if least > most:
        raise typer.BadParameter(f"the smaller number comes first, not {text}", param_hint=option)
    return PoolSize(max(1, least), least, most)
