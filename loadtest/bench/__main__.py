"""The command line: ``python -m loadtest.bench``.

Exit codes: 0 everything ran; 1 a system did not start or an answer failed; 2 the command line is wrong. A missed bar is
reported but is no error, because figures from a busy machine must not break a build.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtest.bench.load import Client
from loadtest.bench.requests import letters
from loadtest.bench.results import Record, about
from loadtest.bench.systems import PEERS_PYTHON, SYSTEMS, Setup, running
from loadtest.bench.workloads import SCENARIOS, SMALL, SQUARE, Phase, Scenario, Writer, warm_up
from loadtest.priority import go_first
from loadtest.servers import ROOT
from loadtest.workload import positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.bench.load import Sample

DEMO: Final = ROOT / "cluster" / "demo" / "checkpoint"
OF_PEERS: Final = frozenset({"ray-serve-llm", "vllm-router", "vllm-router-session"})
"""The systems that run in the peers' environment."""


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _options(words)
    checkpoints = {"demo": DEMO, "bench": options.geometry}
    if any(scenario.setup.geometry == "bench" for scenario in options.only):
        _make_geometry(options.geometry)
    record = Record(about(options.repeats, quick=options.quick, client_first=go_first()))
    left_out: set[str] = set()
    if not PEERS_PYTHON.exists():
        left_out = {system for system in options.systems if system in OF_PEERS}
        record.notes += [
            f"{system}: left out, because the peers' environment is missing (`make bench` makes it)"
            for system in left_out
        ]
    for repeat in range(options.repeats):
        for setup in dict.fromkeys(scenario.setup for scenario in options.only):
            for system in options.systems:
                scenarios = [each for each in options.only if each.setup == setup and system in each.systems]
                if not scenarios or system in left_out:
                    continue
                try:
                    _measure(record, system, setup, scenarios, checkpoints[setup.geometry], repeat, options)
                except (RuntimeError, TimeoutError) as error:
                    _say(f"{system}, {setup.name}: {error}")
                    record.notes.append(f"{system}, {setup.name}, repeat {repeat + 1}: {str(error).splitlines()[0]}")
                record.write(options.out, options.only)
    _say((options.out / "results.md").read_text())
    return 1 if record.failures or record.notes else 0


def _measure(
    record: Record,
    system: str,
    setup: Setup,
    scenarios: Sequence[Scenario],
    checkpoint: Path,
    repeat: int,
    options: Any,
) -> None:
    """Starts a system, runs these scenarios on it, adds their samples to the record, and ends the system."""
    allowed = letters(checkpoint)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"{system}-{setup.geometry}.log"
    began_s = time.monotonic()
    with running(system, setup, checkpoint, log) as url:
        _say(f"repeat {repeat + 1}, {system} ({setup.name}): up after {time.monotonic() - began_s:.0f} s")
        warm = Writer(random.Random(f"warm-up {repeat}"), allowed)
        asyncio.run(_run(url, [warm_up(warm, SMALL if setup.geometry == "demo" else SQUARE)]))
        for scenario in scenarios:
            phases = scenario.phases(Writer(random.Random(f"{scenario.name} {repeat}"), allowed, options.quick))
            began_s = time.monotonic()
            samples = asyncio.run(_run(url, phases))
            record.add(scenario, system, samples)
            _say(f"  {scenario.name}: {sum(map(len, samples.values()))} answers in {time.monotonic() - began_s:.1f} s")


async def _run(url: str, phases: Sequence[Phase]) -> dict[str, list[Sample]]:
    async with Client(url) as client:
        every = {phase.name: (phase.recorded, await phase.run(client)) for phase in phases}
    return {name: samples for name, (recorded, samples) in every.items() if recorded}


def _make_geometry(folder: Path) -> None:
    line = [sys.executable, "-m", "cluster.demo.training.bench_checkpoint", str(folder)]
    subprocess.run(line, check=True, cwd=ROOT)  # noqa: S603


def _options(words: list[str] | None) -> Any:
    names = {scenario.name: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench", description="Compares Prism with other servers on this machine."
    )
    parser.add_argument("--only", type=_among(names), default=list(names), help=f"scenarios: {', '.join(names)}")
    parser.add_argument("--systems", type=_among(SYSTEMS), default=list(SYSTEMS), help=f"systems: {', '.join(SYSTEMS)}")
    parser.add_argument("--repeats", type=positive, default=3, help="how many times to measure each system")
    parser.add_argument("--quick", action="store_true", help="send a quarter of the requests")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "results", help="folder for tables, plots and logs"
    )
    parser.add_argument(
        "--geometry", type=Path, default=ROOT / "bench" / "geometry", help="folder to make the bench checkpoint in"
    )
    options = parser.parse_args(words)
    options.only = [names[name] for name in options.only]
    options.out, options.geometry = options.out.absolute(), options.geometry.absolute()
    return options


def _among(names: Any) -> Any:
    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(names)):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(names)}")
        return [name for name in names if name in chosen]

    return read


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
