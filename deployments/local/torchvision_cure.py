"""Makes torchvision importable, and hides torchaudio and torchcodec, where they are CUDA builds next to a CPU torch.

Their C++ libraries cannot load without CUDA. The import of torchvision then fails because two operators are not
declared, and that of transformers fails because it imports every torchaudio that is installed. ``install`` copies this
file into site-packages as ``prism_torchvision.py``, next to a ``.pth`` file that calls its ``apply`` at the start of
every Python process of the environment, vLLM's own processes included. The copy works without Prism, so this file needs
the standard library alone, and its slow imports stand inside functions.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would make every start of Python slower
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.metadata import Distribution
    from pathlib import Path

    import torch

COPY = "prism_torchvision"
"""The name of the copy in site-packages, and of its ``.pth`` file."""

OPERATORS = ("nms", "qnms")
PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def apply(*packages: str) -> None:
    """Makes this process import torchvision in spite of its library, and take the other packages for not installed.

    Args:
        packages: Those of ``PACKAGES`` whose libraries cannot load.
    """
    for name in packages:
        if name == "torchvision":
            sys.meta_path.insert(0, FINDER)
        else:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's way to say that there is none


class TorchvisionFinder:
    """An import finder that declares torchvision's operators at the first import of torchvision, and finds nothing."""

    def __init__(self) -> None:
        self._library: torch.library.Library | None = None

    def find_spec(self, name: str, *_: object) -> None:
        """Declares the operators if ``name`` is torchvision. Python asks the next finder in any case."""
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        self._library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in OPERATORS:
            signature = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            self._library.define(signature)  # type: ignore[no-untyped-call]


class CureNotWritableError(RuntimeError):
    """The environment needs the copy, and its site-packages cannot be written."""


def install(packages: Path | None = None) -> bool:
    """Writes the copy into the environment if it is needed and not there, and applies it to this process as well.

    No package is imported for it.

    Args:
        packages: The folder to write to; by default the site-packages of this environment.

    Returns:
        Whether anything was written.

    Raises:
        CureNotWritableError: The copy is needed and the folder cannot be written; the message says what to do.
    """
    import sysconfig
    from pathlib import Path

    folder = packages or Path(sysconfig.get_path("purelib"))
    names = unloadable()
    files = {
        f"{COPY}.py": Path(__file__).read_text(),
        f"{COPY}.pth": f"import {COPY}; {COPY}.apply({', '.join(map(repr, names))})\n",
    }
    if not names or all(_text(folder / name) == text for name, text in files.items()):
        return False
    try:
        for name, text in files.items():  # the .pth file last, for it imports the other
            _replace(folder / name, text)
    except OSError as error:
        raise CureNotWritableError(
            f"{' and '.join(names)} in this environment are CUDA builds next to a CPU torch. Prism works with them once"
            f" {COPY}.py and {COPY}.pth are in {folder}, which cannot be written ({error.strerror}). Run prism serve"
            " once as a user who may write to that folder, or install Prism in a virtual environment of your own."
        ) from error
    if packages is None and COPY not in sys.modules:
        apply(*names)
    return True


def unloadable(path: Sequence[str] | None = None) -> list[str]:
    """Names the ``PACKAGES`` that are builds for an accelerator next to a CPU build of torch, by what their files say.

    Args:
        path: The folders to search; by default those that Python imports from.
    """
    import re

    torch = _distribution("torch", path)
    if torch is None or not torch.version.endswith("+cpu"):
        return []
    found = []
    for name in PACKAGES:
        package = _distribution(name, path)
        # The metadata of a registry's CUDA build says 0.28.0, its version.py says 0.28.0+cu130.
        text = (_text(package.locate_file(f"{name}/version.py")) if package else None) or ""
        if re.search(r"^__version__ = '[^']*\+(?!cpu')", text, flags=re.MULTILINE):
            found.append(name)
    return found


def _distribution(name: str, path: Sequence[str] | None) -> Distribution | None:
    from importlib.metadata import distributions

    return next(iter(distributions(name=name, path=list(sys.path if path is None else path))), None)


def _text(file: object) -> str | None:
    from pathlib import Path

    try:
        return Path(str(file)).read_text()
    except OSError:
        return None


def _replace(file: Path, text: str) -> None:
    """Writes a file in one step, so that a Python process that starts now finds either all of it or nothing."""
    import os

    whole = file.with_name(f"{file.name}.{os.getpid()}")
    whole.write_text(text)
    whole.replace(file)


FINDER = TorchvisionFinder()
"""The one of this process. The declarations live as long as its library object."""

if __name__ == "__main__":
    install()
