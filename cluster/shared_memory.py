"""Finds and removes segments of shared memory (files in ``/dev/shm``) that killed processes leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER: Final = "/dev/shm/"  # noqa: S108 - nothing is created there


def held_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """The named segments that processes have mapped now, and the semaphores that loky has named after the processes."""
    found: set[Path] = set()
    for process in processes:
        found.update(Path(FOLDER).glob(f"sem.loky-{process.pid}-*"))
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:
            continue  # it has just ended, or is not ours to read
        found.update(Path(line.split(maxsplit=5)[5]) for line in lines if FOLDER in line)
    return {segment for segment in found if segment.exists()}


def unlink(segments: set[Path], *, ignore: int | None = None) -> None:
    """Removes those of the segments that no process has mapped any more.

    Args:
        segments: The segments.
        ignore: The id of a process that does not count, because it is about to end.
    """
    if segments:
        for segment in segments - held_by(process for process in psutil.process_iter() if process.pid != ignore):
            segment.unlink(missing_ok=True)
