"""Checkpoints: where the files of one are on this machine, what its settings say, and which revision it is.

This is the only module that reads a checkpoint's settings, and the only one that downloads: no more of a checkpoint
than the calling pool needs, from the Hugging Face Hub.
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
"""All but the weights: configurations, tokenizer, chat template. A few megabytes."""

INDEX: Final = "model.safetensors.index.json"
ONE_FILE: Final = "model.safetensors"


class ProcessorSettings(Frozen):
    """How a checkpoint wants its pictures prepared, as its ``preprocessor_config.json`` says; the YAML cannot change
    it."""

    patch_size: int = 14
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest picture."""
        return self.num_tokens(self.max_pixels)

    @property
    def patch_bytes(self) -> int:
        """Of one patch as the preprocessor gives it: three colours, a byte each."""
        return 3 * self.patch_size**2

    @classmethod
    def from_checkpoint(cls, checkpoint: Path) -> ProcessorSettings:
        """Reads ``preprocessor_config.json``; both the older ``min_pixels`` and the newer ``size`` spellings count."""
        raw: dict[str, Any] = json.loads((checkpoint / "preprocessor_config.json").read_text())
        size = raw.get("size") or {}
        raw.setdefault("min_pixels", size.get("shortest_edge") or size.get("min_pixels"))
        raw.setdefault("max_pixels", size.get("longest_edge") or size.get("max_pixels"))
        return cls(**{key: raw[key] for key in cls.model_fields if raw.get(key) is not None})

    def num_patches(self, num_pixels: int) -> int:
        """About how many patches a picture of so many pixels comes to; its rounded sides may make it a little more or
        less."""
        return max(self.min_pixels, min(num_pixels, self.max_pixels)) // self.patch_size**2

    def num_tokens(self, num_pixels: int) -> int:
        """About how many tokens the language model reads of it."""
        return self.num_patches(num_pixels) // self.merge_size**2


class Checkpoint:
    """The checkpoint that a model's configuration names. It is found or downloaded when a property is first read.

    Args:
        model: ``model.checkpoint`` is ``demo``, a directory, or a name on the Hugging Face Hub.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._model: Final = model

    @cached_property
    def settings_path(self) -> Path:
        """A directory with the checkpoint's settings on this machine, its weights there or not."""
        return self._local_path or fetch(self._model.checkpoint, self._model.hub_revision)

    @cached_property
    def path(self) -> Path:
        """The whole checkpoint's directory on this machine."""
        return self.path_with(("",))

    def path_with(self, prefixes: tuple[str, ...]) -> Path:
        """A directory with the settings and at least those weights whose names start with one of the prefixes."""
        return self._local_path or fetch(self._model.checkpoint, self._model.hub_revision, prefixes)

    @cached_property
    def processor(self) -> ProcessorSettings:
        return ProcessorSettings.from_checkpoint(self.settings_path)

    @cached_property
    def revision(self) -> str:
        """A fingerprint of the encoder as 16 hex digits: the checkpoint's settings, the dtype, and the commit on the
        Hub.

        For a directory the ends of each weight file stand in for the commit: names, shapes and some of the numbers.
        """
        fingerprint = hashlib.sha256(self._model.dtype.encode())
        for name in ("config.json", "preprocessor_config.json"):
            fingerprint.update((self.settings_path / name).read_bytes())
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
    """A checkpoint's directory in the Hub's cache, fetched on first use.

    Args:
        name: Such as ``Qwen/Qwen2.5-VL-32B-Instruct``.
        revision: A commit, tag or branch; the main branch, if none.
        prefixes: Weight files are fetched if they hold a weight whose name starts with one of these; ``""`` fetches
            all.

    Raises:
        HfHubHTTPError, LocalEntryNotFoundError: The Hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # slow to import, and the demo checkpoint does without

    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(SETTINGS)))
    if prefixes:
        snapshot_download(name, revision=folder.name, allow_patterns=weight_files(folder, prefixes))
    return folder


def weight_files(folder: Path, prefixes: tuple[str, ...]) -> list[str]:
    """The files of a checkpoint that hold weights with such names, by its index; a small checkpoint is one file without
    one."""
    index = folder / INDEX
    if not index.exists():
        return [ONE_FILE]
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return sorted({file for weight, file in places.items() if weight.startswith(prefixes)})


def _ends(file: Path) -> bytes:
    """The size, first and last mebibyte of a file."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - MEBIBYTE))
        last = stream.read(MEBIBYTE)
        stream.seek(0)
        return b"%d:" % size + stream.read(MEBIBYTE) + last
