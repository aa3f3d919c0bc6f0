"""Runs a steady load for a long time and checks that memory stays flat.

    python -m loadtest.soak --minutes 60 --rate 28

This starts ``prism serve`` with the default application file and sends requests as ``probe`` does. The memory for
embeddings is cut to ``KEPT_BYTES``, so that caches and shared memory are full within minutes. The memory of every
process is measured about once a minute.

Exit codes: 0 no answer failed and memory is flat; 1 an answer failed or memory grew; 2 the command line is wrong.
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
"""The file for the cluster's output."""
KEPT_BYTES: Final = 64 * 2**20
"""The limit for embeddings in each encoder's cache and in each decoder's shared memory, in bytes."""
FLAT: Final = 0.02
"""How much the total memory may grow from the second third of a run to the last, as a fraction."""
EACH_FLAT: Final = 0.05
"""The same limit for each pool and for shared memory, because the leak of a small pool would be lost in the total."""
GROUPS: Final = ("Router", "Preprocessor", "VisionEncoder", "Decoder")
Memory = dict[str, float]


def memory(root: psutil.Process) -> Memory:
    """The memory of the cluster in MiB: of each pool's replicas with their children, of the rest of Ray, and shared
    memory.

    For a process this is its USS: the memory that no other process maps. ``shared`` is all shared memory of the
    machine.
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
    """The growth of each figure, and of their sum as ``total``, from the second third of a run to the last, as a
    fraction.

    The medians of the two thirds are compared.

    Args:
        samples: At least three; the first third is ignored, because caches fill then.
    """
    third = len(samples) // 3
    whole = [sample | {"total": sum(sample.values())} for sample in samples]
    medians = [
        {name: statistics.median(sample[name] for sample in part) for name in whole[0]}
        for part in (whole[third : 2 * third], whole[2 * third :])
    ]
    return {name: (medians[1][name] - before) / max(before, 1.0) for name, before in medians[0].items()}


def is_flat(grown: Memory) -> bool:
    """Returns True if the total grew by at most ``FLAT`` and each figure by at most ``EACH_FLAT``."""
    return grown["total"] <= FLAT and max(grown.values()) <= EACH_FLAT


async def _watch(root: psutil.Process, every_s: float) -> list[Memory]:
    """Measures and prints the memory of a process and its descendants every ``every_s`` seconds until it is
    cancelled, then returns all samples."""
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
    tally = await load(url, from_options(options), options.model, options.minutes * 60)
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
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.soak", description="Checks that memory stays flat under load."
    )
    parser.add_argument("--minutes", type=positive, default=60, help="how long requests arrive")
    add_options(parser)
    options = parser.parse_args(words)
    changes: dict[str, dict[str, Any]] = {
        "VisionEncoder": {"user_config": {"cache_bytes": KEPT_BYTES}},
        "decoder": {"shared_bytes": KEPT_BYTES},
    }
    with tempfile.TemporaryDirectory(prefix="ps-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        line = prism_line(changes, Path(folder), port)
        LOG.parent.mkdir(exist_ok=True)
        with process(line, {**os.environ, "TMPDIR": folder}, LOG, port) as root:
            return 0 if asyncio.run(_soak(f"http://{LOOPBACK}:{port}", root, options)) else 1


if __name__ == "__main__":
    sys.exit(main())
