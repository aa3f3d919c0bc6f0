"""The messages between a preprocessor and its children, over a pair of sockets that keeps messages apart.

A message is one packet, so it is sent and received whole, by one system call. Bytes that do not fit into a packet go
into a nameless file (``memfd``), whose descriptor travels with the packet. The kernel frees such a file when the last
process that uses it has ended, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cluster.messages import Picture, Pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.errors import PrismError

INLINE_BYTES: Final = 176 * 1024
"""At most this many bytes of a file or of patches travel in a packet. Measured (two shared cores of an AMD EPYC, 150 KB
of patches, 2026-11-30): CPU time of both ends with a memfd → in the packet: 0.35 ms → 0.1 ms."""
PACKET_BYTES: Final = 192 * 1024
"""No packet is longer. Linux's default buffer holds 208 KiB."""

PICKLE: Final = pickle.PROTO
"""The first byte of every message."""

SMALLEST: Final = Picture(
    digest="",
    data=bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108020000"
        "00907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
        "0000000049454e44ae426082"
    ),
    width=1,
    height=1,
    param="",
)
"""A PNG of one white pixel. It proves that a child works."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A child's first message. ``cpu_s`` is the CPU time that it has used in seconds."""

    pid: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """A picture to prepare, and the memory in bytes that the child may add for it."""

    picture: Picture
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A child's answer to a ``Job``: the pixels, the refusal of the picture, or the traceback of a defect.

    ``cpu_s`` is the CPU time in seconds that the child has used since its start.
    """

    result: Pixels | PrismError | str
    cpu_s: float


class Fault(EOFError):
    """The other process ends because of a signal that its own code caused, such as SIGSEGV or SIGABRT."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_BYTES)
    return ends


def send(channel: socket.socket, message: Any) -> None:
    """Sends a message. Its file or its patches go into a memfd if they are large.

    Raises:
        OSError: The other process has ended.
    """
    match message:
        case Job(picture) if len(picture.data) > INLINE_BYTES:
            with _memfd(picture.data) as file:
                _send(channel, replace(message, picture=replace(picture, data=b"")), file)
        case Reply(Pixels() as pixels) if pixels.patches.nbytes > INLINE_BYTES:
            with _memfd(pixels.patches.data) as file:
                _send(channel, replace(message, result=replace(pixels, patches=pixels.patches[:0])), file)
        case _:
            _send(channel, message)


def receive(channel: socket.socket) -> Any:
    """Receives a message, and maps its memfd without a copy.

    Raises:
        EOFError: The other process has ended.
        Fault: It is ending after a fault. ``faulthandler`` writes its report into the socket then.
        BlockingIOError: The socket does not block, and no message is there.
    """
    try:
        packet, files, _, _ = socket.recv_fds(channel, PACKET_BYTES, 1)
    except ConnectionError:
        # If the other process left a message unread, the kernel tells this first, once, and its last messages after it.
        packet, files, _, _ = socket.recv_fds(channel, PACKET_BYTES, 1)
    if not packet:
        raise EOFError
    if packet[:1] != PICKLE:
        raise Fault
    message = pickle.loads(packet)  # noqa: S301 -- from a process of our own
    if not files:
        return message
    mapped = _mapped(files[0])
    if isinstance(message, Job):
        return replace(message, picture=replace(message.picture, data=mapped[:]))
    pixels = message.result
    patches = np.frombuffer(mapped, np.uint8).reshape(-1, pixels.patches.shape[1])
    return replace(message, result=replace(pixels, patches=patches))


def send_socket(channel: socket.socket, sent: socket.socket) -> None:
    """Passes a socket to the process at the other end.

    Raises:
        OSError: The other process has ended.
    """
    socket.send_fds(channel, [b"\0"], [sent.fileno()])


def receive_socket(channel: socket.socket) -> socket.socket:
    """Receives a socket.

    Raises:
        EOFError: The other process has ended.
    """
    packet, files, _, _ = socket.recv_fds(channel, 1, 1)
    if not packet:
        raise EOFError
    return socket.socket(fileno=files[0])


def _send(channel: socket.socket, message: Any, *files: int) -> None:
    socket.send_fds(channel, [pickle.dumps(message, pickle.HIGHEST_PROTOCOL)], files)


@contextmanager
def _memfd(data: bytes | memoryview) -> Iterator[int]:
    with os.fdopen(os.memfd_create("prism-picture", os.MFD_CLOEXEC), "wb") as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def _mapped(file: int) -> mmap.mmap:
    """The contents of a memfd, which are unmapped when nothing refers to them any more."""
    try:
        return mmap.mmap(file, os.fstat(file).st_size, prot=mmap.PROT_READ)
    finally:
        os.close(file)
