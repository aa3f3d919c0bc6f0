"""Records the calls of Prism's own functions in every process of a cluster, and puts them into one order.

sitecustomize.py   loaded by every process that starts while ``recording`` is on; it makes Prism's functions record
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Makes the processes that start inside the block record their calls, one file of the folder per process."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PRISM_RECORDS"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
    try:
        yield
    finally:
        del os.environ["PRISM_RECORDS"], os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """A call of one of Prism's functions: its monotonic time, its process, its file, its qualified name."""

    at_s: float
    pid: int
    file: str
    function: str


def calls_between(folder: Path, start_s: float, end_s: float) -> list[Record]:
    """Returns the calls of all processes between two times, in order of time."""
    found = []
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            at_s, _, name = line.partition(" ")
            if name and start_s <= float(at_s) <= end_s:
                found.append(Record(float(at_s), int(file.name), *name.split(":")))
    return sorted(found)
