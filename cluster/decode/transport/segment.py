"""One embedding in shared memory: a sealed, nameless file (``memfd``) that other processes open through its owner.

Such a file is in no directory, so the size of ``/dev/shm`` does not limit it. The kernel frees it with the last process
that has it open or mapped. So a killed process leaves nothing behind, and nobody can shorten a file that a worker has
mapped.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_numbers: Final = itertools.count()


class Address(NamedTuple):
    """The place at which other processes of this machine find a segment: its owner, the owner's file descriptor, and
    its name."""

    pid: int
    descriptor: int
    name: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that this process has open. ``name`` is unique, also after the segment is closed."""

    descriptor: int
    name: str

    @classmethod
    def of(cls, rows: NDArray[np.uint8]) -> Self:
        """Makes a segment with the bytes of an array. Its content can never be changed.

        Raises:
            OSError: There is no memory for it, or this process has too many files open.
        """
        name = f"prism-{os.getpid()}-{next(_numbers)}"
        segment = cls(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), name)
        try:
            left = rows.reshape(-1).data
            while left:
                left = left[os.write(segment.descriptor, left) :]
            fcntl.fcntl(segment.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            segment.close()
            raise
        return segment

    @classmethod
    def opened(cls, address: Address, num_bytes: int) -> Self:
        """Opens another process's segment. From then on it outlives its owner.

        Raises:
            LookupError: The segment is gone, or has another length.
            OSError: This process has too many files open.
        """
        pid, descriptor, name = address
        try:
            own = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LookupError(f"{name} is gone") from None
        segment = cls(own, name)
        # Descriptors are used again: only the name tells whose this one is now.
        if os.readlink(segment.path) != f"/memfd:{name} (deleted)" or os.fstat(own).st_size != num_bytes:
            segment.close()
            raise LookupError(f"{name} is gone, or does not have {num_bytes} bytes")
        return segment

    @property
    def address(self) -> Address:
        """The owner, descriptor and name by which another process can open the segment."""
        return Address(os.getpid(), self.descriptor, self.name)

    @property
    def path(self) -> str:
        """The path by which other processes of the same user can open the segment while this process has it open."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def close(self) -> None:
        """Closes the file descriptor."""
        os.close(self.descriptor)


def allow_many_files() -> int:
    """Raises this process's limit of open files to the maximum and gives the new limit. Each segment is an open
    file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most
