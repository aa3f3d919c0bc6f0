"""Messages between a preprocessor and its children arrive whole, whatever their size."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cluster.errors import InvalidPicture
from cluster.isolation import wire
from cluster.isolation.wire import INLINE_BYTES, SMALLEST, Job, Ready, Reply
from cluster.media.header import read_size
from cluster.messages import Picture, Pixels

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

COLUMNS = 588
SIZES = [1, INLINE_BYTES, INLINE_BYTES + 1, 20 * 2**20]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a pair of sockets."""
    one, other = wire.pair()
    with one, other:
        yield one, other


@pytest.mark.parametrize("num_bytes", SIZES)
def test_a_file_arrives_whole(num_bytes: int, ends: tuple[socket.socket, socket.socket]) -> None:
    """A file of any size arrives with its picture, and no descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    job = Job(Picture("0" * 64, os.urandom(num_bytes), 5, 7, "messages[0]"), 9)
    wire.send(ends[0], job)
    assert wire.receive(ends[1]) == job
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("num_rows", [1, INLINE_BYTES // COLUMNS, INLINE_BYTES // COLUMNS + 1, 20_000])
def test_patches_arrive_whole(num_rows: int, ends: tuple[socket.socket, socket.socket]) -> None:
    """Patches of any size arrive as they were. They are mapped, and unmapped once nobody has them."""
    patches = np.random.default_rng(num_rows).integers(0, 256, (num_rows, COLUMNS), np.uint8)
    before = len(os.listdir("/proc/self/fd")), num_maps()
    wire.send(ends[0], Reply(Pixels("0" * 64, patches, (1, 1, num_rows), 0.5), 1.5))
    reply = wire.receive(ends[1])
    np.testing.assert_array_equal(reply.result.patches, patches)
    assert (reply.result.grid, reply.result.ran_s, reply.cpu_s) == ((1, 1, num_rows), 0.5, 1.5)
    assert num_maps() - before[1] == (patches.nbytes > INLINE_BYTES)
    del reply
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), num_maps()) == before


def num_maps() -> int:
    """Returns the number of pictures that this process has mapped."""
    with open("/proc/self/maps") as file:
        return file.read().count("memfd:prism-picture")


def test_refusals_and_greetings_arrive_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    """Messages without bytes arrive one by one, a refusal with its field."""
    refusal = InvalidPicture("No.", param="messages[0]")
    for message in (Ready(5, 0.5), Reply(refusal, 1.0), Reply("Traceback", 2.0)):
        wire.send(ends[0], message)
    assert wire.receive(ends[1]) == Ready(5, 0.5)
    received = wire.receive(ends[1])
    assert received.result.to_openai() == refusal.to_openai()
    assert wire.receive(ends[1]) == Reply("Traceback", 2.0)


def test_the_end_of_the_other_process_is_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    """Receiving from a process that has ended, and sending to it, fails. Without a message nobody waits."""
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.receive(ends[1])
    ends[0].close()
    with pytest.raises(EOFError):
        wire.receive(ends[1])
    with pytest.raises(OSError, match="Broken pipe"):
        wire.send(ends[1], Ready(1, 0.0))


def test_a_fault_is_noticed_also_if_a_message_was_left_unread(ends: tuple[socket.socket, socket.socket]) -> None:
    """A process that crashes before it has read its message is not taken for one that was killed."""
    here, there = ends
    wire.send(here, Job(SMALLEST, 1))
    there.send(b"Fatal Python error: Segmentation fault")
    there.close()
    with pytest.raises(wire.Fault):
        wire.receive(here)
    with pytest.raises(EOFError):
        wire.receive(here)


def test_sockets_are_passed_on(ends: tuple[socket.socket, socket.socket]) -> None:
    """A socket that is passed on works at the other end."""
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send_socket(ends[0], theirs)
        with wire.receive_socket(ends[1]) as passed:
            wire.send(passed, Ready(1, 0.0))
            assert wire.receive(ours) == Ready(1, 0.0)
    ends[0].close()
    with pytest.raises(EOFError):
        wire.receive_socket(ends[1])


def test_the_smallest_picture_is_one() -> None:
    """The picture of the health check has the size that it says."""
    assert read_size(SMALLEST.data) == (SMALLEST.width, SMALLEST.height) == (1, 1)
