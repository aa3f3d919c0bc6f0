"""Compares the joint policy with its baselines on ServeGen's workload, in the simulator.

  python -m tests.helpers.compare_policies path/to/servegen --out runs --jobs 2 --seeds 50
  python -m tests.helpers.compare_policies path/to/servegen --out runs report

Each baseline is tuned on half of the clients: of the settings in ``GRIDS``, it gets the cheapest with which at least as
many requests meet the goal as with the joint policy there. The other half of the clients is the test. Each simulation
is a file, and one that exists is not run again. The processes run only while the machine has nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from tests.helpers.sizing_report import draw, sweep_table, table
from tests.helpers.sizing_trials import Hour, Trial, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HOURS: Final[tuple[Hour, ...]] = get_args(Hour)
GRIDS: Final = {
    "serve": ["serve 28 1.6 600", "serve 22 1.1 600", "serve 36 1.6 600", "serve 28 1.1 600", "serve 28 1.6 120"],
    "knative": ["knative 28 1.6 60", "knative 22 1.1 60", "knative 36 1.6 60", "knative 28 1.6 180"],
    "fixed": ["fixed 3 5", "fixed 4 5", "fixed 4 6"],
    "clairvoyant": ["clairvoyant 0.6 4", "clairvoyant 0.3 4", "clairvoyant 0.9 4"],
}
"""The settings that are tried: target calls of decoders and encoders and the delay for going down; target calls of both
and the stable window; replicas of both, for both hours; the reserve and the price of a shortage. The targets lie around
the calls of fixed sizes with which 91 to 98 % of the requests meet the goal: 13 to 44 for a decoder and 1.0 to 1.9 for
an encoder."""
TUNING_SEEDS: Final = range(1)
COLD_STARTS_S: Final = (4.0, 18.0, 85.0, 278.0, 600.0)
"""A wake from sleep, a snapshot, a warm start and a cold start of a model of 61 GiB on an H100, as llm-d has measured
them, and a cold start after a slow pull of the image."""
AGES_S: Final = (2.0, 10.0, 25.0)
SWEPT: Final = ("serve", "knative")


def tuning_trials() -> list[Trial]:
    """All trials on the tuning half."""
    policies = ["joint", *(one for grid in GRIDS.values() for one in grid)]
    return [Trial("tuning", hour, seed, policy) for seed in TUNING_SEEDS for policy in policies for hour in HOURS]


def chosen(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The settings of each baseline, by its name.

    Args:
        results: The results of the tuning half.
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if result["half"] == "tuning":
            found[result["policy"]].append(result)
    scores = {policy: (attainment(some), gpu_hours(some)) for policy, some in found.items()}
    wanted = scores["joint"][0]
    best = {}
    for name, grid in GRIDS.items():
        tried = [policy for policy in grid if policy in scores]
        enough = [policy for policy in tried if scores[policy][0] >= wanted]
        if enough:
            best[name] = min(enough, key=lambda policy: scores[policy][1])
        elif tried:
            best[name] = max(tried, key=lambda policy: scores[policy][0])
    return best


def attainment(results: Sequence[dict[str, Any]]) -> float:
    """The share of all requests of these results that met the goal."""
    num_met = sum(one["attainment"] * one["num_requests"] for one in results)
    return float(num_met / sum(one["num_requests"] for one in results))


def gpu_hours(results: Iterable[dict[str, Any]]) -> float:
    """The GPU-hours of all results."""
    return sum(sum(one["gpu_hours"].values()) for one in results)


def trials_of_test(seeds: Iterable[int], best: dict[str, str]) -> list[Trial]:
    """The trials on the test half, all policies of a seed one after the other."""
    return [
        Trial("test", hour, seed, policy) for seed in seeds for hour in HOURS for policy in ("joint", *best.values())
    ]


def sweep_trials(seeds: Iterable[int], best: dict[str, str]) -> list[Trial]:
    """The trials with other starts and ages, at the peak."""
    policies = ("joint", *(best[name] for name in SWEPT))
    return [
        Trial("test", "peak", seed, policy, start_s, age_s)
        for seed in seeds
        for start_s in COLD_STARTS_S
        for age_s in AGES_S
        for policy in policies
    ]


class Runner:
    """Runs trials in several processes and keeps their results as files.

    Args:
        folder: The folder of ServeGen's data.
        out: The folder of the results.
        num_jobs: The number of processes.
        end_s: No trial begins after this time, in seconds since the epoch.
    """

    def __init__(self, folder: Path, out: Path, num_jobs: int, end_s: float) -> None:
        self._folder: Final = folder
        self._out: Final = out
        self._num_jobs: Final = num_jobs
        self._end_s: Final = end_s
        out.mkdir(parents=True, exist_ok=True)

    def run(self, trials: Sequence[Trial]) -> None:
        """Runs the trials that have no result yet. One process takes all trials with the same arrivals."""
        groups: dict[tuple[str, str, int], list[Trial]] = defaultdict(list)
        for trial in trials:
            if not self._file(trial).exists():
                groups[trial.half, trial.hour, trial.seed].append(trial)
        tasks = list(groups.values())
        if len(tasks) <= self._num_jobs:  # too few groups for all processes
            tasks = [[trial] for group in tasks for trial in group]
        with multiprocessing.Pool(self._num_jobs, _give_way) as pool:
            for _ in pool.imap_unordered(self._run, tasks, chunksize=1):
                pass

    def results(self) -> list[dict[str, Any]]:
        """All results that there are."""
        return [json.loads(path.read_text()) for path in sorted(self._out.glob("*.json"))]

    def _file(self, trial: Trial) -> Path:
        return self._out / f"{trial.name}.json"

    def _run(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if time.time() > self._end_s:
                return
            result = run(self._folder, trial)
            path = self._file(trial)
            path.with_suffix(".part").write_text(json.dumps(result))
            path.with_suffix(".part").rename(path)


def _give_way() -> None:
    """Lets a process run only while the machine has nothing else to do."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Runs the stages that are given, or all, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servegen", type=Path)
    parser.add_argument("stages", nargs="*", default=["tune", "test", "sweep", "report"])
    parser.add_argument("--out", type=Path, default=Path("policy-runs"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--sweep-seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=120.0, help="no simulation begins later")
    options = parser.parse_args()
    runner = Runner(options.servegen, options.out, options.jobs, time.time() + 60 * options.minutes)
    if "tune" in options.stages:
        runner.run(tuning_trials())
    best = chosen(runner.results())
    print(*best.values(), sep="\n")  # noqa: T201
    if "test" in options.stages:
        runner.run(trials_of_test(range(options.seeds), best))
    if "sweep" in options.stages:
        runner.run(sweep_trials(range(options.sweep_seeds), best))
    if "report" in options.stages:
        results = [one for one in runner.results() if one["half"] == "test"]
        print(table(results), sweep_table(results), sep="\n\n")  # noqa: T201
        draw(runner.results(), options.out / "policies.png")


if __name__ == "__main__":
    main()
