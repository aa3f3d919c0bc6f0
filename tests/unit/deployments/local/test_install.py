"""The set-up of ``.venv``, as far as it goes without installing anything."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from deployments.local.install import ROOT, TORCH, lock_for

if TYPE_CHECKING:
    from pathlib import Path

LOCKS = sorted(ROOT.glob("requirements-*.lock"))
PINS = {lock.name: dict(re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS}


@pytest.mark.parametrize("extras", ["cpu", "cpu,dev", "dev,cpu", "gpu", "gpu,dev"])
def test_every_choice_of_extras_has_a_lock_file(extras: str) -> None:
    """The lock file for any set of extras exists, in whatever order they are named."""
    assert lock_for(extras).is_file()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_developers_run_the_versions_that_are_deployed(kind: str) -> None:
    """Each version in a runtime lock file equals that in the developers' lock file."""
    runtime, dev = PINS[f"requirements-{kind}.lock"], PINS[f"requirements-{kind}-dev.lock"]
    assert runtime.items() <= dev.items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_files_hold_what_pyproject_pins(lock: Path) -> None:
    """Each exact pin of pyproject.toml is in the lock files."""
    name = lock.name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][name.split("-")[1].removesuffix(".lock")]]
    if "-dev" in name:
        wanted += [one for extra in ("dev", "demo", "load") for one in project["optional-dependencies"][extra]]
    names = {re.split(r"[\[>=~<]", one)[0].lower() for one in wanted} - {"prism-serve"}
    assert names <= PINS[name].keys()
    for package, version in (re.split(r"(?:\[\w+\])?==", one) for one in wanted if "==" in one):
        assert PINS[name][package].removesuffix("+cpu") == version


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_files_name_no_machine(lock: Path) -> None:
    """A lock file contains no index, no address and no folder."""
    assert not re.search(r"https?:|file:|^-|\s/\w", lock.read_text(), re.MULTILINE)


def test_cpu_lock_files_end_with_cpu_torch() -> None:
    """The CPU lock files end with the lines that ``make lock`` appends, and contain no CUDA package."""
    for name in ("requirements-cpu.lock", "requirements-cpu-dev.lock"):
        assert (ROOT / name).read_text().endswith(TORCH.read_text())
        assert not [package for package in PINS[name] if package.startswith(("nvidia-", "cuda-"))]


def test_an_unknown_extra_is_refused() -> None:
    """An unknown extra ends the set-up before anything is installed."""
    line = [sys.executable, str(ROOT / "deployments" / "local" / "install.py"), "--extras", "tpu"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "There is no extra tpu; EXTRAS is cpu or gpu.\n")
