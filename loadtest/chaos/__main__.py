"""Kills real processes of a cluster under load and judges every request.

    python -m loadtest.chaos --kills 6 --seed 1                     # starts a cluster with two replicas of each pool
    python -m loadtest.chaos --url URL --root PID --kills 6          # a cluster that runs on this machine
    python -m loadtest.chaos --minutes 10 --workers 64               # no kills: saturation must replace no replica
    python -m loadtest.chaos --sum bench/chaos/*/verdict.json        # adds up runs

Each kill comes when the cluster is whole again; with --overlap, when the pool that it hits is. Every answer is compared
with that of the undisturbed run before.

Exit codes: 0 nothing was lost; 1 a request was lost, or the cluster did not become whole, or it replaced a replica that
nobody killed; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from loadtest.chaos import results
from loadtest.chaos.killing import KINDS, MORE_KINDS, Killer, plan_kills
from loadtest.chaos.mix import make_requests
from loadtest.chaos.processes import ClusterProcesses
from loadtest.chaos.running import chaos, say
from loadtest.priority import go_first
from loadtest.servers import LOOPBACK, ROOT, free_port, prism_line, process, sized
from loadtest.workload import positive, positive_number

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_REPLICAS: Final = 2
KEPT_BYTES: Final = 2**20
"""An encoder's cache and a decoder's shared memory hold few pictures, so that encoders work all the time."""
SHARED_BYTES: Final = 16 * 2**20
FOLDER: Final = ROOT / "bench" / "chaos"


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _options(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is ended on the way out
    if options.sum:
        return _report_sum(options.sum)
    kinds = list(plan_kills(options.seed, options.kinds, 0 if options.minutes else options.kills))
    requests = make_requests(options.requests, seed=options.seed, model=options.model, timeout_s=options.timeout)
    with _cluster(options) as (url, root):
        processes = ClusterProcesses(root)
        killer = Killer(url, processes, options.seed)
        go_first()
        work = chaos(
            killer,
            url,
            requests,
            kinds,
            num_workers=options.workers,
            seed=options.seed,
            seconds=(options.minutes or 0) * 60,
            limit_s=options.limit,
            overlap=options.overlap,
        )
        run = asyncio.run(work)
    tally = results.ChaosTally.of(run)
    folder = options.output or FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-seed-{options.seed}"
    results.write(folder, run, tally, {"command": sys.argv[1:], "date": time.strftime("%Y-%m-%d"), "kinds": kinds})
    say(f"written to {folder}\n{tally.text()}")
    return 0 if tally.is_good else 1


def _options(words: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.chaos", description="Kills processes under load and judges every request."
    )
    parser.add_argument("--kills", type=positive, default=6, help="how many processes are killed")
    parser.add_argument(
        "--kinds", type=_kinds, default=list(KINDS), help="kinds of kills, such as engine:kill,router:stop"
    )
    parser.add_argument("--minutes", type=positive_number, help="no kills: load for so long, which must replace nobody")
    parser.add_argument(
        "--limit", type=positive_number, default=1e9, help="no kill so many seconds after the beginning"
    )
    parser.add_argument("--overlap", action="store_true", help="wait for the pool of the next kill only")
    parser.add_argument("--seed", type=int, default=0, help="seed of requests and kills")
    parser.add_argument("--workers", type=positive, default=4, help="how many requests are under way at a time")
    parser.add_argument("--requests", type=positive, default=64, help="how many different requests there are")
    parser.add_argument("--timeout", type=positive_number, default=60.0, help="deadline of each request in seconds")
    parser.add_argument("--tensor-parallel", type=positive, default=1, help="workers of each engine of the new cluster")
    parser.add_argument("--model", default="prism-demo", help="served name of the model")
    parser.add_argument("--url", help="a cluster that runs on this machine; needs --root")
    parser.add_argument("--root", type=int, help="the process that started it")
    parser.add_argument("--output", type=Path, help="folder for verdict.json and records.jsonl")
    parser.add_argument("--sum", type=Path, nargs="+", metavar="VERDICT", help="only add up these files")
    options = parser.parse_args(words)
    if (options.url is None) != (options.root is None):
        parser.error("--url and --root belong together")
    return options


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in (*KINDS, *MORE_KINDS)]:
        wanted = ", ".join((*KINDS, *MORE_KINDS))
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {wanted}")
    return kinds


@contextmanager
def _cluster(options: Any) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a cluster and its first process: the given one, or a new one with two replicas of each pool."""
    if options.url:
        yield options.url, psutil.Process(options.root)
        return
    changes: dict[str, dict[str, Any]] = {
        **{name: sized(NUM_REPLICAS) for name in ("Router", "Preprocessor", "Decoder")},
        "VisionEncoder": {**sized(NUM_REPLICAS), "user_config": {"cache_bytes": KEPT_BYTES}},
        "decoder": {
            "shared_bytes": SHARED_BYTES,
            "tensor_parallel_size": options.tensor_parallel,
            "resources": {"num_cpus": 0.2, "pool_label": "decoder"},
        },
    }
    with tempfile.TemporaryDirectory(prefix="pc-", ignore_cleanup_errors=True) as folder:
        port, log = free_port(), FOLDER / f"cluster-{options.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        line = prism_line(changes, Path(folder), port)
        say("the cluster starts")
        with process(line, {**os.environ, "TMPDIR": folder}, log, port) as root:
            yield f"http://{LOOPBACK}:{port}", root


def _report_sum(paths: list[Path]) -> int:
    total = results.ChaosTally()
    for path in paths:
        total.add(results.read(path))
    sys.stdout.write(f"{len(paths)} runs\n{total.text()}\n")
    return 0 if total.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
