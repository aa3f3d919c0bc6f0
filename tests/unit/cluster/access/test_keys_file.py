"""The file of keys on disk: what counts as a change, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.access.keys import KeyRing, KeysError
from cluster.access.keys_file import MAX_BYTES, MAX_FILES, KeysFile


def text(*tenants: str) -> str:
    """Returns a file with a key for each tenant."""
    return "".join(f"- {{tenant: {tenant}, sha256: {tenant.encode().hex():a>64}}}\n" for tenant in tenants)


def tenants(ring: KeyRing | None) -> list[str]:
    """Returns the tenants of a ring that was read."""
    assert ring is not None
    return sorted(entry.tenant for entry in ring.entries.values())


def test_a_file_is_read_once_for_each_change(tmp_path: Path) -> None:
    """A file is read at first, and again when it was replaced, also by one of equal size and time."""
    path, new = tmp_path / "keys.yaml", tmp_path / "new.yaml"
    path.write_text(text("a"))
    file = KeysFile(path)
    assert tenants(file.read_if_changed()) == ["a"]
    assert file.read_if_changed() is None
    new.write_text(text("b"))
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)
    assert tenants(file.read_if_changed()) == ["b"]
    assert file.read_if_changed() is None


def test_a_mounted_secret_is_read_whole_and_followed(tmp_path: Path) -> None:
    """The files of a directory are read together. Hidden ones are not: Kubernetes keeps its links and versions there.
    A new version appears when Kubernetes changes its link."""
    for version, names in (("..1", {"x": "a", "y": "b"}), ("..2", {"x": "c"})):
        (tmp_path / version).mkdir()
        for name, tenant in names.items():
            (tmp_path / version / name).write_text(text(tenant))
    for name in ("x", "y"):
        (tmp_path / name).symlink_to(Path("..data") / name)
    (tmp_path / "..data").symlink_to("..1")
    file = KeysFile(tmp_path)
    assert tenants(file.read_if_changed()) == ["a", "b"]
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert tenants(file.read_if_changed()) == ["c"]
    assert file.read_if_changed() is None


def test_a_wrong_file_raises_once(tmp_path: Path) -> None:
    """A file that cannot be read raises when it comes, and not again until it changes."""
    path = tmp_path / "keys.yaml"
    path.write_text("- tenant")
    file = KeysFile(path)
    with pytest.raises(KeysError):
        file.read_if_changed()
    assert file.read_if_changed() is None
    path.write_text(text("abc"))
    assert tenants(file.read_if_changed()) == ["abc"]
    path.unlink()
    with pytest.raises(KeysError, match="no file"):
        file.read_if_changed()


def test_one_key_in_two_files_is_refused(tmp_path: Path) -> None:
    """A key that two files of a directory name is refused."""
    (tmp_path / "x").write_text(text("a"))
    (tmp_path / "y").write_text(text("a"))
    with pytest.raises(KeysError, match="same sha256"):
        KeysFile(tmp_path).read_if_changed()


def test_what_is_no_file_does_not_block(tmp_path: Path) -> None:
    """A pipe, a missing path and a path through a file are no files, and looking at them returns at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "pipe", tmp_path / "missing", tmp_path / "file" / "below", Path("/dev/zero")):
        with pytest.raises(KeysError, match="no file"):
            KeysFile(path).read_if_changed()


def test_the_size_is_bounded(tmp_path: Path) -> None:
    """A file that is too large, several that are so together, and too many files are refused without being read."""
    large, several, many = tmp_path / "large", tmp_path / "several", tmp_path / "many"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    several.mkdir()
    for name in "xyz":
        (several / name).write_bytes(b" " * (MAX_BYTES // 2))
    many.mkdir()
    for number in range(MAX_FILES + 1):
        (many / str(number)).touch()
    for path in (large, several, many):
        with pytest.raises(KeysError, match="more than"):
            KeysFile(path).read_if_changed()


def test_a_read_that_fails_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that could not be opened once is read at the next look, although it did not change."""
    path = tmp_path / "keys.yaml"
    path.write_text(text("a"))
    file = KeysFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: os.close(-1))
        with pytest.raises(KeysError, match="cannot be read"):
            file.read_if_changed()
    assert tenants(file.read_if_changed()) == ["a"]
