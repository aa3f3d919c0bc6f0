"""Runs broken pictures through the real children of a preprocessor: each gets an answer or a clear refusal.

    python -m tests.fuzz.pictures --num 10000 --seed 0 [--first 0] [--pillow]

With ``--pillow`` it downloads the source of the installed Pillow, runs all of its test pictures as they are, and breaks
those too. The summary is JSON. A file is found again by its number and seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil

from cluster.checkpoint import ProcessorSettings
from cluster.config import MediaConfig
from cluster.errors import InvalidPicture, InvalidRequest, PictureTooExpensive, PictureTooLarge
from cluster.isolation.budget import Budget
from cluster.isolation.children import Children
from cluster.media.header import READERS
from cluster.media.reader import MediaReader
from cluster.preprocess import preprocess
from tests.fuzz.mutations import mutated
from tests.helpers.pictures import BROKEN, CUT_HEADERS, NO_PICTURES, SAMPLES, data_url
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cluster.messages import Picture, Pixels

PARAM: Final = "messages[0].content[0].image_url.url"
HANG_S: Final = 120.0
"""A picture that is not answered in this time hangs."""
CLEAR: Final = (InvalidPicture, PictureTooLarge, PictureTooExpensive)
FRAME_BYTES: Final = 64 * 2**20
"""Memory that a child may have in addition to its template's and its picture's."""
SETTINGS: Final = ProcessorSettings()


@dataclass
class Findings:
    """The outcomes of a run. ``faults`` is empty if all is well."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    """The files that crashed their decoder. They are refused clearly, and somebody should tell Pillow."""
    slowest_s: float = 0.0
    peak_bytes: int = 0


class Fuzzer:
    """Runs files through one preprocessor's children, and judges what comes back.

    Args:
        children: Started children.
        media: The limits on pictures.
    """

    def __init__(self, children: Children, media: MediaConfig) -> None:
        self.findings = Findings()
        self._children = children
        self._reader = MediaReader(media, revision="fuzz")
        self._budgets: dict[int, int] = {}

    async def run(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Runs files, which have names."""
        for name, data in files:
            started_s = time.monotonic()
            outcome = await self._outcome(name, data)
            self.findings.outcomes[outcome] += 1
            self.findings.slowest_s = max(self.findings.slowest_s, time.monotonic() - started_s)

    async def _outcome(self, name: str, data: bytes) -> str:
        """Sends a file. Returns the code of its error, or ``answered``."""
        try:
            async with asyncio.timeout(HANG_S):
                picture = await self._reader.read(data_url(data), PARAM)
                pixels = await self._children.prepare(picture)
        except CLEAR as error:
            if not 400 <= error.status < 500 or error.param != PARAM:
                self._fault(name, f"{error.status} {error.param}")
            if "crashed" in error.message:
                self.findings.crashed.append(name)
                return "crashed"
            return error.code
        except InvalidRequest as error:
            self._fault(name, f"{error.code}: {error.message}")
            return error.code
        except Exception as error:  # noqa: BLE001 -- every other end is a finding
            self._fault(name, f"{type(error).__name__}: {error}")
            return type(error).__name__
        self._look_at_memory(name, picture)
        if not _is_right(pixels, picture):
            self._fault(name, "other pixels than the stage's own")
        return "answered"

    def _look_at_memory(self, name: str, picture: Picture) -> None:
        """Compares the most memory that the idle child ever had with the largest budget of its pictures."""
        child = self._children._idle
        template = self._children._template
        if child is None or child._process is None or template is None:
            return
        pid = child._process.pid
        self._budgets[pid] = max(self._budgets.get(pid, 0), Budget.of(picture).max_bytes)
        peak_bytes = _peak_bytes(pid)
        self.findings.peak_bytes = max(self.findings.peak_bytes, peak_bytes)
        limit_bytes = psutil.Process(template.pid).memory_info().rss + self._budgets[pid] + FRAME_BYTES
        if peak_bytes > limit_bytes:
            self._fault(name, f"the child had {peak_bytes} bytes; {limit_bytes} are allowed")

    def _fault(self, name: str, fault: str) -> None:
        self.findings.faults.append(f"{name}: {fault[:500]}")


def _peak_bytes(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _is_right(pixels: Pixels, picture: Picture) -> bool:
    """Returns True if a child has answered what the stage gives in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the children do so too
        expected = preprocess(picture, SETTINGS)
    is_same = pixels.digest == picture.digest and pixels.grid == expected.grid
    return is_same and np.array_equal(pixels.patches, expected.patches)


def corpus(folder: Path | None = None) -> list[bytes]:
    """Returns the files to break: those of the tests, and those below a folder that have a format that Prism reads."""
    files = [sample.data for sample in SAMPLES.values()]
    for _, data in _files(folder):
        if data.startswith(tuple(READERS)):
            files.append(data)
    return files


def as_they_are(folder: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the bytes of each file of the tests and of a folder."""
    yield from ((name, sample.data) for name, sample in SAMPLES.items())
    yield from (pair for files in (BROKEN, CUT_HEADERS, NO_PICTURES) for pair in files.items() if pair[1])
    yield from _files(folder)


def broken(first: int, num: int, seed: int, files: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields so many broken files, from the number ``first`` on."""
    for number in range(first, first + num):
        yield f"seed {seed} number {number}", mutated(number, seed, files)


def _files(folder: Path | None) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.is_file() and (data := path.read_bytes()):
            yield str(path.relative_to(folder or path)), data


async def fuzz(files: Iterable[tuple[str, bytes]], media: MediaConfig) -> Findings:
    """Runs files through the children of a preprocessor of their own. No process is left afterwards.

    Args:
        files: Names and bytes.
        media: The limits on pictures.
    """
    children = Children(SETTINGS, 0)
    await children.start()
    assert children._template is not None
    template = psutil.Process(children._template.pid)
    try:
        fuzzer = Fuzzer(children, media)
        await fuzzer.run(files)

        async def one_is_left() -> bool:
            return len(psutil.Process(children._template.pid).children()) <= 1 if children._template else True

        await until(one_is_left, 10.0, "children are left")
    finally:
        left = [template, *template.children()] if template.is_running() else []
        children.end()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []
    return fuzzer.findings


def pillows_pictures(folder: Path) -> Path:
    """Downloads the source of the installed Pillow into a folder, and returns the folder of its test pictures."""
    line = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *line, f"pillow=={version('pillow')}"], check=True)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        members = [member for member in source.getmembers() if "/Tests/images/" in member.name and member.isfile()]
        source.extractall(folder / "source", members, filter="data")
    return folder / "source"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pillow", action="store_true")
    parser.add_argument("--images", type=Path, help="a folder with more pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pillows_pictures(Path(scratch)) if options.pillow else options.images
        files = corpus(folder)
        started_s = time.monotonic()
        plain = asyncio.run(fuzz(as_they_are(folder), MediaConfig()))
        mutations = broken(options.first, options.num, options.seed, files)
        found = asyncio.run(fuzz(mutations, MediaConfig()))
    summary: dict[str, Any] = {"corpus": len(files), "seconds": round(time.monotonic() - started_s, 1)}
    for name, findings in (("as they are", plain), ("broken", found)):
        summary[name] = {
            "outcomes": dict(findings.outcomes.most_common()),
            "crashed": findings.crashed,
            "faults": findings.faults,
            "slowest_s": round(findings.slowest_s, 2),
            "peak_mib": findings.peak_bytes // 2**20,
        }
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    sys.exit(1 if plain.faults or found.faults else 0)


if __name__ == "__main__":
    main()
