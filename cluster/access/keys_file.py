"""The file of keys on disk, which is read again when it changes.

A path may be a file, or a directory such as a mounted Kubernetes Secret, whose files are read all. Kubernetes replaces
such a directory by changing a symbolic link, so the files behind the links are compared.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cluster.access.keys import KeyRing, KeysError, parse_entries

MAX_BYTES: Final = 2**20
"""The most bytes of all files together."""
MAX_FILES: Final = 1_000

Signature = tuple[tuple[int | str, ...], ...]


class KeysFile:
    """A file or directory of keys.

    The methods block, so they belong into a thread.

    Args:
        path: The file or directory.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._signature: Signature | None = None

    def read_if_changed(self) -> KeyRing | None:
        """Reads the keys if anything has changed since the last call; otherwise returns None.

        If the content is wrong, too large or missing, the call raises once, and again only after the next change. If
        the file system refuses the read, each call raises until one succeeds. If the file changes while it is read, the
        result is None, and the next call reads it again.

        Raises:
            KeysError: The file cannot be read, is too large, or has an error.
        """
        signature = self._sign()
        if signature == self._signature:
            return None
        self._signature = signature
        if not signature:
            raise KeysError("there is no file")
        if sum(int(size) for *_, size in signature) > MAX_BYTES:
            raise KeysError(f"there are more than {MAX_BYTES} bytes")
        self._signature = None  # what cannot be read now is tried again
        texts = [_read(Path(str(path))) for path, *_ in signature]
        self._signature = signature
        entries = [entry for text in texts for entry in parse_entries(text)]
        if self._sign() != signature:
            self._signature = None  # it changed while it was read, so it is read again
            return None
        return KeyRing(entries)

    def _sign(self) -> Signature:
        """Returns the paths, identities, times and sizes of the files, which differ after every change. The result is
        empty if there is no file."""
        try:
            is_folder = self._path.is_dir()
            paths = [path for path in self._path.iterdir() if path.name[0] != "."] if is_folder else [self._path]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise _unreadable(error) from None
        if len(paths) > MAX_FILES:
            return (("", 0, 0, 0, 0, MAX_BYTES + 1),)
        return tuple(sorted(found for path in paths if (found := _file(path))))


def _file(path: Path) -> tuple[int | str, ...] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(error) from None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (str(path), found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


def _read(path: Path) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would block
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(error) from None
    if len(text) > MAX_BYTES:
        raise KeysError(f"there are more than {MAX_BYTES} bytes")
    return text


def _unreadable(error: OSError) -> KeysError:
    return KeysError(f"it cannot be read ({error.strerror})")
