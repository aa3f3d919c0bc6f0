"""Records every call of Prism's own functions, in every process of a cluster, and puts the records into one order.

Python loads a module ``sitecustomize`` at the start of each process. The one that ``recording`` puts on the path
records there the functions of ``cluster`` and ``deployments`` that are called, with a clock that all processes of the
machine share.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from loadtest.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SITE: Final = f"""
import os, sys, threading, time

ROOT = {str(ROOT)!r} + "/"
names = {{}}
log = open(os.path.join(os.environ["PRISM_RECORDS"], str(os.getpid())), "a", buffering=1)


def note(frame, event, _):
    if event != "call":
        return
    code = frame.f_code
    name = names.get(code)
    if name is None:
        file = code.co_filename
        is_own = file.startswith((ROOT + "cluster/", ROOT + "deployments/"))
        names[code] = name = file.removeprefix(ROOT) + ":" + code.co_qualname if is_own else ""
    if name:
        log.write(str(time.monotonic()) + " " + name + "\\n")


threading.setprofile(note)
sys.setprofile(note)
"""


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Has the processes that start inside the block record their calls, one file of the folder per process."""
    site, records = folder / "site", folder / "records"
    site.mkdir()
    records.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    before = os.environ.get("PYTHONPATH")
    os.environ["PRISM_RECORDS"] = str(records)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), before)))
    try:
        yield
    finally:
        del os.environ["PRISM_RECORDS"], os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def calls_since(folder: Path, start_s: float) -> list[tuple[str, str]]:
    """Returns the calls since a time of the monotonic clock as pairs of file and qualified name, in their order."""
    found: list[tuple[float, str]] = []
    for file in (folder / "records").iterdir():
        for line in file.read_text().splitlines():
            at_s, _, name = line.partition(" ")
            if name and float(at_s) >= start_s:
                found.append((float(at_s), name))
    return [(name.partition(":")[0], name.partition(":")[2]) for _, name in sorted(found)]
