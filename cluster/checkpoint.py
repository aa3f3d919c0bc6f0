"""Finds or downloads the files of a checkpoint, reads its settings, and computes its revision.

No other module reads a checkpoint's settings or downloads anything. A pool downloads only the files that it needs.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.config import Frozen

if TYPE_CHECKING:
    from cluster.config import ModelConfig

DEMO_CHECKPOINT: Final = Path(__file__).parent / "demo" / "checkpoint"
MEBIBYTE: Final = 2**20

SETTINGS: Final = ("*.json", "*.jinja", "*.txt")
"""The files of a checkpoint that are not weights: configurations, tokenizer and chat template. They take a few
megabytes."""

INDEX: Final = "model.safetensors.index.json"
ONE_FILE: Final = "model.safetensors"


class ProcessorSettings(Frozen):
    """The sizes and constants for preparing a checkpoint's pictures, from its ``preprocessor_config.json``. The YAML
    can narrow the bounds of pixels: see ``within``."""

    patch_size: int = 14
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def max_tokens(self) -> int:
        """The tokens of the largest picture."""
        return self.num_tokens(self.max_pixels)

    @property
    def patch_bytes(self) -> int:
        """The bytes of one patch as the preprocessor gives it: three colours, one byte each."""
        return 3 * self.patch_size**2

    @classmethod
    def from_checkpoint(cls, checkpoint: Path) -> ProcessorSettings:
        """Reads ``preprocessor_config.json``, in the older spelling with ``min_pixels`` and in the newer one with
        ``size``."""
        raw: dict[str, Any] = json.loads((checkpoint / "preprocessor_config.json").read_text())
        size = raw.get("size") or {}
        raw.setdefault("min_pixels", size.get("shortest_edge") or size.get("min_pixels"))
        raw.setdefault("max_pixels", size.get("longest_edge") or size.get("max_pixels"))
        return cls(**{key: raw[key] for key in cls.model_fields if raw.get(key) is not None})

    def within(self, model: ModelConfig) -> ProcessorSettings:
        """The settings with the bounds of pixels that the configuration sets. The largest picture never grows."""
        max_pixels = min(self.max_pixels, model.max_pixels or self.max_pixels)
        min_pixels = min(model.min_pixels or self.min_pixels, max_pixels)
        return self.model_copy(update={"min_pixels": min_pixels, "max_pixels": max_pixels})

    def num_patches(self, num_pixels: int) -> int:
        """The approximate number of patches of a picture with this many pixels. Rounding of its sides may change it
        a little."""
        return max(self.min_pixels, min(num_pixels, self.max_pixels)) // self.patch_size**2

    def num_tokens(self, num_pixels: int) -> int:
        """The approximate number of tokens that the language model reads for such a picture."""
        return self.num_patches(num_pixels) // self.merge_size**2


class Checkpoint:
    """The checkpoint that a model's configuration names. Its files are found or downloaded when they are first needed.

    Args:
        model: ``model.checkpoint`` is ``demo``, a directory, or a name on the Hugging Face Hub.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model: Final = model

    @cached_property
    def settings_path(self) -> Path:
        """The directory of the checkpoint's settings on this machine. Weights may be missing there."""
        return self._local_path or fetch(self._model.checkpoint, self._model.hub_revision)

    @cached_property
    def path(self) -> Path:
        """The directory of the whole checkpoint on this machine."""
        return self.path_with(("",))

    def path_with(self, prefixes: tuple[str, ...]) -> Path:
        """A directory with the settings and with all weights whose names start with one of the prefixes."""
        return self._local_path or fetch(self._model.checkpoint, self._model.hub_revision, prefixes)

    @cached_property
    def processor(self) -> ProcessorSettings:
        """The settings for preparing this checkpoint's pictures, with the bounds of the configuration."""
        return ProcessorSettings.from_checkpoint(self.settings_path).within(self._model)

    @cached_property
    def revision(self) -> str:
        """A fingerprint of the encoder as 16 hex digits. It covers the settings, the dtype, the configuration's bounds
        of pixels, and the commit on the Hub.

        For a directory it covers the size, the first mebibyte and the last mebibyte of each weight file instead of a
        commit.
        """
        fingerprint = hashlib.sha256(self._model.dtype.encode())
        for name in ("config.json", "preprocessor_config.json"):
            fingerprint.update((self.settings_path / name).read_bytes())
        if (bounds := (self._model.min_pixels, self._model.max_pixels)) != (None, None):
            fingerprint.update(repr(bounds).encode())
        if self._local_path is None:
            fingerprint.update(self.settings_path.name.encode())
        else:
            for weights in sorted(self._local_path.glob("*.safetensors")):
                fingerprint.update(_ends(weights))
        return fingerprint.hexdigest()[:16]

    @cached_property
    def _local_path(self) -> Path | None:
        if self._model.checkpoint == "demo":
            return DEMO_CHECKPOINT
        local = Path(self._model.checkpoint)
        return local if local.is_dir() else None


def fetch(name: str, revision: str | None, prefixes: tuple[str, ...] = ()) -> Path:
    """Downloads a checkpoint from the Hub on first use.

    Args:
        name: A name such as ``Qwen/Qwen2.5-VL-32B-Instruct``.
        revision: A commit, tag or branch. None means the main branch.
        prefixes: Weight files are downloaded if they hold a weight whose name starts with one of these. ``("",)``
            downloads all of them, and ``()`` none.

    Returns:
        The checkpoint's directory in the Hub's cache.

    Raises:
        HfHubHTTPError, LocalEntryNotFoundError: The Hub does not have the checkpoint, or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # slow to import, and the demo checkpoint does without

    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(SETTINGS)))
    if prefixes:
        snapshot_download(name, revision=folder.name, allow_patterns=weight_files(folder, prefixes))
    return folder


def weight_files(folder: Path, prefixes: tuple[str, ...]) -> list[str]:
    """The names of the files that hold weights with one of the prefixes, by the checkpoint's index.

    A small checkpoint has no index, and all its weights are in one file.
    """
    index = folder / INDEX
    if not index.exists():
        return [ONE_FILE]
    file_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return sorted({file for weight, file in file_of.items() if weight.startswith(prefixes)})


def _ends(file: Path) -> bytes:
    """The size of a file, and its first and last mebibyte."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - MEBIBYTE))
        last = stream.read(MEBIBYTE)
        stream.seek(0)
        return b"%d:" % size + stream.read(MEBIBYTE) + last
