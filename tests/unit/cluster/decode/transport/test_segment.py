"""Segments of shared memory, across processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.decode.transport.segment import Address, Segment

ROWS = np.arange(6 * 4096, dtype=np.uint32).reshape(6, 4096).view(np.uint8)
OWNER = """
import sys, numpy as np
from cluster.decode.transport.segment import Segment
segment = Segment.of(np.arange(6 * 4096, dtype=np.uint32).view(np.uint8))
print(*segment.address, flush=True)
sys.stdin.read()
"""


def holders(name: str) -> list[str]:
    """Returns the descriptors that lead to a segment, in all processes that can be read."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if name in os.readlink(link):
                found.append(str(link))
        except OSError:
            continue
    return found


def test_another_process_reads_what_was_written() -> None:
    """Another process that opens a segment by its address reads the bytes of the array."""
    segment = Segment.of(ROWS)
    opened = Segment.opened(segment.address, ROWS.nbytes)
    assert np.array_equal(np.fromfile(opened.path, np.uint8), ROWS.reshape(-1))
    opened.close()
    segment.close()
    assert holders(segment.name) == []


def test_a_segment_cannot_be_changed() -> None:
    """A segment that workers have mapped cannot be shortened, extended or written. A shortened file would kill the
    workers."""
    segment = Segment.of(ROWS)
    for change in (
        lambda fd: os.ftruncate(fd, 1),
        lambda fd: os.ftruncate(fd, 2**20),
        lambda fd: os.pwrite(fd, b"x", 0),
    ):
        with pytest.raises(PermissionError):
            change(segment.descriptor)
    segment.close()


def test_a_segment_that_is_gone_is_not_mistaken_for_another() -> None:
    """A descriptor that is closed, that belongs to another file now, or whose file has another length is refused."""
    segment = Segment.of(ROWS)
    address = segment.address
    with pytest.raises(LookupError, match="does not have"):
        Segment.opened(address, ROWS.nbytes + 1)
    segment.close()
    with pytest.raises(LookupError, match="gone"):
        Segment.opened(address, ROWS.nbytes)
    other = Segment.of(ROWS)
    assert other.descriptor == segment.descriptor
    with pytest.raises(LookupError, match="gone"):
        Segment.opened(address, ROWS.nbytes)
    other.close()
    with pytest.raises(LookupError):
        Segment.opened(Address(2**22 + 1, 3, "nobody"), 1)


def test_a_killed_owner_leaves_nothing_behind() -> None:
    """After SIGKILL of its owner, a segment lives until the last process that has it open closes it. It never has a
    name in a directory."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        pid, descriptor, name = owner.stdout.readline().split()
        opened = Segment.opened(Address(int(pid), int(descriptor), name), ROWS.nbytes)
        assert [path.name for path in Path("/dev/shm").iterdir() if name in path.name] == []
        owner.kill()
    assert np.array_equal(np.fromfile(opened.path, np.uint8), ROWS.reshape(-1))
    assert holders(name) == [opened.path]
    opened.close()
    assert holders(name) == []
