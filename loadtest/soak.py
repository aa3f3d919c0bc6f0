"""A long run at a steady load: does memory stay flat?

    python -m loadtest.soak --minutes 60 -u 14

Starts ``prism serve`` on the embedded default, with what it may keep of embeddings cut to ``KEPT_BYTES`` so that caches
and shared memory are full within minutes; lets users chat as ``probe`` does; and looks at every process about once a
minute.

Exit codes: 0 no answer failed and memory is flat; 1 one of the two is not so; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from loadtest.probe import load
from loadtest.report import table
from loadtest.servers import LOOPBACK, ROOT, free_port, prism_line, process
from loadtest.workload import add_options, from_options, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG: Final = ROOT / "bench" / "soak.log"
"""What the cluster printed."""
KEPT_BYTES: Final = 64 * 2**20
"""Of embeddings, in each encoder's cache and in each decoder's shared memory."""
FLAT: Final = 0.02
"""By which part the last third of a run may have more memory than the second, all together."""
EACH_FLAT: Final = 0.05
"""By which part each pool may, and shared memory: a small one's leak is lost in the sum."""
GROUPS: Final = ("Router", "Preprocessor", "VisionEncoder", "Decoder")
Memory = dict[str, float]


def memory(root: psutil.Process) -> Memory:
    """What the cluster takes, in MiB: each pool's replicas with their children, the rest of Ray, and shared memory.

    Of a process what is mapped nowhere else (USS), also of shared memory; ``shared`` is all of that, the whole
    machine's.
    """
    taken = dict.fromkeys((*GROUPS, "others", "shared"), 0.0)
    groups = {root.pid: "others"}
    for child in [root, *root.children(recursive=True)]:  # parents come first
        with contextlib.suppress(psutil.Error):
            title = " ".join(child.cmdline())
            own = next((group for group in GROUPS if f"ServeReplica:prism:{group}" in title), None)
            groups[child.pid] = group = own or groups.get(child.ppid(), "others")
            taken[group] += child.memory_full_info().uss / 2**20
    taken["shared"] = psutil.virtual_memory().shared / 2**20
    return taken


def growth(samples: Sequence[Memory]) -> Memory:
    """By which part each figure's median over the last third is above the one over the second; ``total`` is of their
    sum.

    Args:
        samples: At least three; the first third is for caches to fill.
    """
    third = len(samples) // 3
    whole = [sample | {"total": sum(sample.values())} for sample in samples]
    medians = [
        {name: statistics.median(sample[name] for sample in part) for name in whole[0]}
        for part in (whole[third : 2 * third], whole[2 * third :])
    ]
    return {name: (medians[1][name] - before) / max(before, 1.0) for name, before in medians[0].items()}


def is_flat(grown: Memory) -> bool:
    """Whether this growth is none."""
    return grown["total"] <= FLAT and max(grown.values()) <= EACH_FLAT


async def _watch(root: psutil.Process, every_s: float) -> list[Memory]:
    """Looks until it is cancelled."""
    samples: list[Memory] = []
    start_s = time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            samples.append(await asyncio.to_thread(memory, root))
            row = "".join(f"{value:>15.0f}" for value in samples[-1].values())
            sys.stdout.write(f"{(time.monotonic() - start_s) / 60:>7.1f}{row}\n")
            sys.stdout.flush()
            await asyncio.sleep(every_s)
    return samples


async def _soak(url: str, root: psutil.Process, options: Any) -> bool:
    sys.stdout.write(f"{'MiB':<7}" + "".join(f"{name:>15}" for name in (*GROUPS, "others", "shared")) + "\n")
    watching = asyncio.create_task(_watch(root, min(60.0, options.minutes * 10.0)))
    tally = await load(url, from_options(options), options.users, options.minutes * 60)
    watching.cancel()
    grown = growth(await watching)
    failures = "".join(f"{count} x {cause}\n" for cause, count in tally.failures.most_common())
    sys.stdout.write("grown  " + "".join(f"{part:>15.1%}" for part in grown.values()) + " in all\n")
    sys.stdout.write(
        f"{tally.num_answers} whole answers, {tally.failures.total()} failures\n{failures}{table(tally.rows())}\n"
    )
    return tally.num_answers > 0 and not tally.failures and is_flat(grown)


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description="A long run at a steady load.")
    parser.add_argument("-u", "--users", type=positive, default=14, help="how many users chat at once")
    parser.add_argument("--minutes", type=positive, default=60, help="how long they chat")
    add_options(parser)
    options = parser.parse_args(words)
    changes = {"encoder": {"cache_bytes": KEPT_BYTES}, "decoder": {"shared_bytes": KEPT_BYTES}}
    with tempfile.TemporaryDirectory(prefix="ps-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        line = prism_line(changes, Path(folder), port)
        LOG.parent.mkdir(exist_ok=True)
        with process(line, {**os.environ, "TMPDIR": folder}, LOG, port) as root:
            return 0 if asyncio.run(_soak(f"http://{LOOPBACK}:{port}", root, options)) else 1


if __name__ == "__main__":
    sys.exit(main())
