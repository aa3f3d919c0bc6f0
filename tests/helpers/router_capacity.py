"""Measures what Routers can carry: CPU seconds per request, per piece of a stream and per megabyte of pictures.

python -m tests.helpers.router_capacity --out runs        one and two Routers in alternation: a JSON file, and lines

The decoders sleep. The Routers, HAProxy, Serve's calls and the routing are real.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
from ray.serve.schema import ServeDeploySchema

from deployments.local.app_file import ApplicationFile
from deployments.local.entries import MEASURED
from deployments.local.launch import running
from loadtest.servers import APP, ROOT, free_port
from tests.helpers.closed_loop import paced_content
from tests.helpers.router_client import Seen, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NUM_DECODERS: Final = 2
MIB: Final = 2**20
GROUPS: Final = {
    "ServeReplica:prism:Router": "Router",
    "ServeReplica:prism:Decoder": "Decoder",
    "ServeReplica:prism:VisionEncoder": "VisionEncoder",
    "ServeReplica:prism:Preprocessor": "Preprocessor",
    "cluster.isolation.child": "Preprocessor",
    "router_client": "client",
    "haproxy.cfg": "HAProxy",
    "ServeController": "Ray",
    "raylet": "Ray",
    "gcs_server": "Ray",
}
"""The group of a process, by a part of its command line."""

STREAMS: Final = tuple(Step("stream", n, num_tokens=250, stream=True) for n in (1, 32, 64, 128, 192, 256))
JOINED: Final = tuple(
    Step("joined", n, num_tokens=401, stream=True, piece_s=0.05, piece_tokens=4) for n in (64, 128, 256, 384)
)
SHORT: Final = tuple(Step("short", n, piece_s=0.0) for n in (1, 4, 8, 16, 32, 64))
PICTURES: Final = tuple(
    Step(kind, 4, piece_s=0.0, picture=kind, picture_bytes=num_bytes)
    for kind in ("seen", "new", "refused")
    for num_bytes in (MIB // 8, MIB // 2, 2 * MIB, 8 * MIB)
)
LOADS: Final = {"idle": (Step("idle", 0),), "stream": STREAMS, "joined": JOINED, "short": SHORT, "pictures": PICTURES}


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of processes and threads.

    ``processes`` has them by the group and the id of the process. ``threads`` has, for each thread, the seconds in
    which it ran and those in which it waited for a core.
    """

    processes: dict[tuple[str, int], float]
    threads: dict[tuple[str, int, int], tuple[float, float]]

    @classmethod
    def now(cls) -> Cpu:
        """The CPU seconds of all descendants of this process, since their starts."""
        processes, threads = {}, {}
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                line = " ".join(process.cmdline())
                group = next((name for part, name in GROUPS.items() if part in line), "other")
                times = process.cpu_times()
                processes[group, process.pid] = times.user + times.system
                for thread in process.threads():
                    stat = Path(f"/proc/{process.pid}/task/{thread.id}/schedstat").read_text().split()
                    threads[group, process.pid, thread.id] = int(stat[0]) / 1e9, int(stat[1]) / 1e9
        return cls(processes, threads)

    def since(self, before: Cpu) -> dict[str, float]:
        """The CPU seconds of each group since an earlier time."""
        spent: dict[str, float] = {}
        for key, cpu_s in self.processes.items():
            spent[key[0]] = spent.get(key[0], 0.0) + cpu_s - before.processes.get(key, 0.0)
        return spent

    def busiest_thread_s(self, group: str, before: Cpu) -> tuple[float, float]:
        """The seconds in which the busiest thread of a group ran and waited for a core, since an earlier time."""
        none = (0.0, 0.0)
        spans = (
            (ran_s - before.threads.get(key, none)[0], waited_s - before.threads.get(key, none)[1])
            for key, (ran_s, waited_s) in self.threads.items()
            if key[0] == group
        )
        return max(spans, default=none)


@dataclass(frozen=True)
class Point:
    """The figures of one step. Rates are per second, and CPU is in cores."""

    num_routers: int
    step: Step
    requests: float
    tokens: float
    pieces: float
    megabytes: float
    ttft_ms: tuple[float, float]
    gap_ms: tuple[float, float]
    """p50 and p99."""
    cores: dict[str, float]
    router_thread: tuple[float, float]
    """The shares of the time in which the busiest thread of a Router ran, and waited for a core."""
    statuses: dict[str, int]
    num_cut: int
    load_average: float

    @classmethod
    def of(cls, num_routers: int, step: Step, seen: Seen, before: Cpu, after: Cpu) -> Point:
        """The figures of one step from what the client saw and from the CPU seconds around it."""
        ran_s, waited_s = after.busiest_thread_s("Router", before)
        requests, tokens = seen.num_requests / seen.took_s, seen.num_tokens / seen.took_s
        return cls(
            num_routers,
            step,
            requests,
            tokens,
            tokens / step.piece_tokens if step.stream else requests,
            requests * step.picture_bytes / 1e6,
            seen.ttft_ms,
            seen.gap_ms,
            {group: spent_s / seen.took_s for group, spent_s in after.since(before).items()},
            (ran_s / seen.took_s, waited_s / seen.took_s),
            seen.statuses,
            seen.num_cut,
            os.getloadavg()[0],
        )

    def line(self) -> str:
        """The figures on one line."""
        cores = " ".join(f"{name} {share:.2f}" for name, share in sorted(self.cores.items()) if share >= 0.005)
        size = f" {self.step.picture_bytes / 1e6:.2f} MB" if self.step.picture else ""
        return (
            f"{self.num_routers} {self.step.name:8}{self.step.num_in_flight:4}{size} | {self.requests:7.1f} req/s "
            f"{self.tokens:7.0f} tok/s {self.pieces:7.0f} pieces/s {self.megabytes:6.1f} MB/s | TTFT "
            f"{self.ttft_ms[0]:.1f}/{self.ttft_ms[1]:.1f} gap {self.gap_ms[0]:.1f}/{self.gap_ms[1]:.1f} ms | {cores} | "
            f"thread {self.router_thread[0]:.2f} waits {self.router_thread[1]:.2f} | {self.statuses} "
            f"cut {self.num_cut} load {self.load_average:.1f}"
        )


def capacity_file(num_routers: int) -> ApplicationFile:
    """The embedded default with paced pools of fixed sizes that take no time, and limits that are never reached."""
    content = paced_content(
        {"pixel_s": 0.0, "patch_s": 0.0, "token_s": 0.0, "max_running": 2048, "kv_tokens": 1_000_000}
    )
    [application] = content["applications"]
    application["args"]["decoder"]["max_num_seqs"] = 2048
    sizes = {"Router": num_routers, "Decoder": NUM_DECODERS}
    for entry in application["deployments"]:
        count = sizes.get(entry["name"], 1)
        entry["autoscaling_config"] = {"min_replicas": count, "max_replicas": count, **MEASURED}
        entry["max_ongoing_requests"] = 2048
        if entry["name"] == "Router":
            entry["user_config"] = {"max_in_flight": 2048, "max_held_bytes": 2 * 2**30}
    file = ApplicationFile.read(APP)
    return replace(file, serve=ServeDeploySchema.model_validate(content))


class Client:
    """The client process."""

    def __init__(self, url: str) -> None:
        line = [sys.executable, "-m", "tests.helpers.router_client", url.removeprefix("http://")]
        self._process = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, step: Step) -> tuple[Seen, Cpu, Cpu]:
        """Runs a step; gives what it saw, and the CPU seconds at both ends of its window."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(step)) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "begin\n"
        before = Cpu.now()
        assert self._process.stdout.readline() == "end\n"
        after = Cpu.now()
        return Seen(**json.loads(self._process.stdout.readline())), before, after

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@contextmanager
def capacity_cluster(num_routers: int) -> Iterator[Client]:
    """Runs the paced cluster and the client inside the block, and yields the client."""
    with running(capacity_file(num_routers), port=free_port()) as cluster:
        client = Client(cluster.url)
        try:
            client.run(Step("warm-up", 4, num_tokens=20, stream=True, window_s=1.0))
            yield client
        finally:
            client.end()


def measure_routers(num_routers: int, steps: list[Step]) -> list[Point]:
    """Starts a cluster and runs all steps."""
    points = []
    with capacity_cluster(num_routers) as client:
        for step in steps:
            points.append(Point.of(num_routers, step, *client.run(step)))
            print(points[-1].line(), flush=True)  # noqa: T201
            time.sleep(1.0)  # the Router cancels the streams that the client has left
    return points


def summary(points: Sequence[Point]) -> Iterator[str]:
    """Yields one line for each number of Routers and each load, with its cost and its highest rate, and a line for idle
    Routers.

    A cost is the CPU time of all Routers, without what they need when idle, per piece or per request. There is one for
    each step, because it falls when the load rises. Pictures have two costs, one per request and one per megabyte, from
    a line through all sizes.
    """
    for num_routers in dict.fromkeys(point.num_routers for point in points):
        ours = [point for point in points if point.num_routers == num_routers]
        idle = [point.cores["Router"] for point in ours if point.step.name == "idle"] or [0.0]
        yield f"{num_routers} idle: {statistics.mean(idle):.3f} cores"
        for name in dict.fromkeys(point.step.name for point in ours if point.step.num_in_flight):
            steps = [point for point in ours if point.step.name == name]
            yield f"{num_routers} {name}: " + (_picture_cost if steps[0].step.picture else _costs)(
                steps, statistics.mean(idle)
            )


def _picture_cost(points: Sequence[Point], idle: float) -> str:
    line = [(point.step.picture_bytes / 1e6, (point.cores["Router"] - idle) / point.requests) for point in points]
    slope_s, base_s = statistics.linear_regression(*zip(*line, strict=True))
    highest = max(point.megabytes for point in points)
    return f"{1000 * base_s:.1f} ms and {1000 * slope_s:.2f} ms per megabyte, at most {highest:.0f} MB/s"


def _costs(points: Sequence[Point], idle: float) -> str:
    unit = "piece" if points[0].step.stream else "request"
    costs = []
    for step in dict.fromkeys(point.step for point in points):
        same = [point for point in points if point.step == step]
        cost_s = statistics.mean((point.cores["Router"] - idle) / point.pieces for point in same)
        costs.append(f"{1000 * cost_s:.3f}")
    return f"{', '.join(costs)} ms per {unit}, at most {max(point.pieces for point in points):.0f} {unit}s/s"


def main() -> None:
    """Measures all clusters, and prints and saves the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", type=int, nargs="+", default=[1, 2, 1, 2], help="numbers of Routers, in order")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--window", type=float, help="seconds of each step")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = [step for load in options.loads for step in LOADS[load]]
    if options.window:
        steps = [replace(step, window_s=options.window) for step in steps]
    points: list[Point] = []
    for num_routers in options.routers:
        points += measure_routers(num_routers, steps)
        (options.out / "router_capacity.json").write_text(json.dumps([asdict(point) for point in points]))
    print(*summary(points), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
